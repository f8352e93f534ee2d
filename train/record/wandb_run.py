"""A run in Weights & Biases: one there, however often it is killed here."""

import contextlib
import json
import logging
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imagestream.storage.protocol import Place
from train.config.run_config import Config, ConfigError
from train.config.sections import WandbConfig
from train.record.log_files import Sparing
from train.record.logger_ids import kept_id
from train.resume.checkpoint_file import one_line

log = logging.getLogger(__name__)

ID_NAME = "wandb.json"


class WandbRun:
    """Logs under an id that the save folder keeps.

    What W&B has of a step stays: nothing can be added, or taken back. So it is given a step once, complete. Offline,
    each process has a folder of its own below `wandb/`, all with the same id; `wandb sync --append` makes one run of
    them.
    """

    def __init__(self, cfg: WandbConfig, run: Config, folder: Place, root: str) -> None:
        self._cfg, self._config, self._folder, self._root = cfg, run, folder, root
        self._run: Any = None
        # Its process may have died, its disk may be full, and each version has errors of its own.
        self._sparing = Sparing("what goes to W&B", Exception)

    def begin(self, batch: int) -> int:
        """Open the run, or open it again; return the last step that is there.

        A run that resumes continues where W&B cannot be reached; the next start sends what is missing by then.

        Raises:
            ConfigError: a run that is at its beginning cannot be opened there.
        """
        run_id = kept_id(self._folder, ID_NAME, lambda: uuid.uuid4().hex[:8])
        is_online = self._cfg.mode == "online"
        there = 0 if is_online else last_offline_step(Path(self._root, "wandb"), run_id)
        try:
            self._run = self._init(run_id)
        except Exception as error:  # each version has errors of its own
            end_service()
            if batch == 0:
                raise ConfigError(
                    f"loggers.wandb: {one_line(error)}; mend that, or give loggers.wandb.mode=offline or "
                    "loggers.wandb=null"
                ) from error
            log.warning(
                "W&B cannot be reached: %s; the run continues without it, and what W&B lacks is sent when the run is "
                "started again",
                one_line(error),
            )
            return batch
        return max(there, int(self._run.starting_step) - 1)

    def _init(self, run_id: str) -> Any:
        import wandb

        return wandb.init(
            project=self._cfg.project,
            entity=self._cfg.entity,
            name=self._config.run_name,
            tags=list(self._cfg.tags),
            id=run_id,
            resume="allow" if self._cfg.mode == "online" else None,
            mode=self._cfg.mode,
            dir=self._root,
            config=self._config.model_dump(mode="json"),
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add a step's figures, all at once."""
        if self._run is None:
            return
        with self._sparing.spared():
            self._run.log(dict(values), step=step, commit=True)

    def save(self, batch: int) -> None:
        """Do nothing: wandb has a process that writes."""

    def flush(self) -> None:
        """Do nothing: wandb has a process that writes."""

    def close(self, *, is_finished: bool) -> None:
        """Say how this process has ended, unless Python's own end has told wandb."""
        import wandb

        if wandb.run is not None:
            with self._sparing.spared():
                self._run.finish(exit_code=0 if is_finished else 1)


def end_service() -> None:
    """Kill wandb's process, which did not open the run.

    Otherwise it tries for hours to reach the server, and Python waits for it at its end, as `wandb.teardown` does.
    """
    import wandb
    from wandb.sdk import wandb_setup

    connection: Any = wandb_setup.singleton()._connection
    if connection is None or connection._proc is None:
        return
    connection._proc._process.kill()
    with contextlib.suppress(Exception, SystemExit):  # that of the killed process's exit status
        wandb.teardown(exit_code=1)


def last_offline_step(folder: Path, run_id: str) -> int:
    """Return the last step that earlier processes have written for W&B, 0 for none.

    A file that was cut short by a kill is read up to there.
    """
    from wandb.proto import wandb_internal_pb2
    from wandb.sdk.internal.datastore import DataStore

    kinds: Any = wandb_internal_pb2
    last = 0
    for path in folder.glob(f"*run-*-{run_id}/run-{run_id}.wandb"):
        store: Any = DataStore()
        try:
            store.open_for_scan(str(path))
            while data := store.scan_data():
                record = kinds.Record()
                record.ParseFromString(data)
                for item in record.history.item:
                    if (item.key or "/".join(item.nested_key)) == "_step":
                        last = max(last, int(json.loads(item.value_json)))
        except Exception as error:  # of the end of a file, DataStore raises what comes
            log.debug("%s is read up to %s", path, error)
    return last
