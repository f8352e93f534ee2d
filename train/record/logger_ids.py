"""Under which name a run is known elsewhere, kept in its save folder; and whether it can be known there at all."""

import contextlib
import importlib.util
import json
import netrc
import os
from collections.abc import Callable

from imagestream.storage.protocol import Place, read_if_there
from train.config.run_config import ConfigError
from train.config.sections import LoggersConfig


def kept_id(folder: Place, name: str, make: Callable[[], str]) -> str:
    """Return the id in a file of the save folder; where there is none, make one and keep it there."""
    data = read_if_there(folder, name)
    if data is None:
        made = make()
        folder.create(name, (json.dumps({"id": made}) + "\n").encode())
        return made
    try:
        return str(json.loads(data)["id"])
    except (ValueError, KeyError, TypeError):
        raise ConfigError(
            f'{folder}/{name} must be {{"id": ...}}, the run\'s id there; delete it, and a new one is made'
        ) from None


def check_loggers(cfg: LoggersConfig) -> None:
    """Refuse a logger that could not log.

    Raises:
        ConfigError: Weights & Biases would ask for a key that nobody can type, or MLflow is not installed.
    """
    if cfg.mlflow is not None and importlib.util.find_spec("mlflow") is None:
        raise ConfigError(
            "loggers.mlflow: the package mlflow is not installed; `pip install mlflow-skinny`, or give "
            "loggers.mlflow=null"
        )
    if cfg.wandb is None or cfg.wandb.mode != "online" or os.environ.get("WANDB_MODE", "online") != "online":
        return
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").partition("://")[2].partition("/")[0]
    known = None
    with contextlib.suppress(OSError, netrc.NetrcParseError):
        known = netrc.netrc(os.environ.get("NETRC") or None).authenticators(host.partition(":")[0])
    if not os.environ.get("WANDB_API_KEY") and known is None:
        raise ConfigError(
            f"loggers.wandb: there is no key for {host}; set WANDB_API_KEY, run `wandb login`, or give "
            "loggers.wandb.mode=offline"
        )
