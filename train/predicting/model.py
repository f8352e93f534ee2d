"""The network that predicts: an exported folder's, or a checkpoint's."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from composer.functional import apply_stochastic_depth
from safetensors import SafetensorError
from torch import nn

from imagestream.data.job_dir import scratch_folder
from imagestream.storage.places import open_place
from train.config.algorithms import StochasticDepth
from train.config.run_config import ConfigError, config_from_dict
from train.evaluation import WeightsChoice, read_run
from train.exporting import shipped_model
from train.exporting.files import EXPORT_FORMAT, describe
from train.exporting.shipped_model import CONFIG_NAME, WEIGHTS_NAME
from train.model import build_model
from train.weights.beginning import replace_layers
from train.weights.choosing import Which, choose_checkpoint
from train.weights.loading import load_into
from train.weights.reading import read_weights


@dataclass(frozen=True)
class PredictingModel:
    """A network, in evaluation mode, and what its config.json says."""

    network: nn.Module
    described: dict[str, Any]
    shown: str

    @property
    def classes(self) -> list[str]:
        """Names by logit."""
        names: list[str] = self.described["label_names"]
        return [self.described["label_descriptions"].get(name, name) for name in names]


def open_model(location: str, *, which: Which, weights: WeightsChoice) -> PredictingModel:
    """Return the network at a place: what export.py made, a run's save folder, or one of its checkpoints.

    Of an exported folder config.json and model.safetensors are read; its model.py is never run.

    Args:
        which: of a run's checkpoints.
        weights: of a run with EMA.

    Raises:
        RefusedError: there is none, or it is damaged.
    """
    with tempfile.TemporaryDirectory(prefix="model-", dir=scratch_folder()) as scratch:
        if not location.endswith(".pt") and (place := open_place(location)).stat(CONFIG_NAME) is not None:
            folder = place.get(WEIGHTS_NAME, Path(scratch)).parent
            place.get(CONFIG_NAME, folder)
            return _exported(folder, location)
        place, name = choose_checkpoint(location, which)
        return _of_checkpoint(place.get(name, Path(scratch)), f"{place}/{name}", weights)


def _exported(folder: Path, shown: str) -> PredictingModel:
    try:
        number = shipped_model.read_config(folder).get("format")
        if number != EXPORT_FORMAT:
            raise ConfigError(
                f"{shown}/{CONFIG_NAME} is of format {number}, and this version reads {EXPORT_FORMAT}; export the run "
                "again, or load it by its own model.py"
            )
        return PredictingModel(shipped_model.load(folder), shipped_model.read_config(folder), shown)
    except ConfigError:
        raise
    except ModuleNotFoundError as error:  # timm, for one of its networks
        raise ConfigError(
            f"{shown} needs the package {error.name}, which is not installed here; `pip install {error.name}`"
        ) from error
    except (AttributeError, KeyError, OSError, RuntimeError, SafetensorError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"{shown} is not what train/export.py makes: {type(error).__name__}: {reason}") from error


def _of_checkpoint(path: Path, shown: str, weights: WeightsChoice) -> PredictingModel:
    saved = read_run(path)
    cfg = config_from_dict(saved["config"])
    model = build_model(cfg.model, saved["num_classes"], image_px=cfg.data.crop_size)
    replace_layers(model, cfg.algorithms)
    for algorithm in cfg.algorithms:
        if isinstance(algorithm, StochasticDepth):
            apply_stochastic_depth(model, **algorithm.model_dump(exclude={"name"}))
    stored = read_weights(path, shown, wants_average=weights == "averaged")
    load_into(model.module, stored, num_classes=saved["num_classes"], classes=None, shown=shown)
    described = describe(cfg, model.module, saved, None)
    return PredictingModel(model.module.eval(), described, shown)


def logits_of(network: nn.Module, images: torch.Tensor, described: dict[str, Any]) -> torch.Tensor:
    """Return logits float32 (B, classes) of uint8 (B, H, W, 3) on the network's device."""
    pixels = described["pixels"]
    mean, std = (torch.tensor(pixels[key], device=images.device).view(1, 3, 1, 1) for key in ("mean", "std"))
    return network(torch.sub(images.permute(0, 3, 1, 2), mean).div_(std)).float()
