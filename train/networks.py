"""torchvision's and timm's networks by name, and what is known of one of timm's once it is there."""

import difflib
from importlib.metadata import version
from typing import Any

import torchvision
from torch import nn

from train.config.algorithms import BlurPool, SizeSchedule, SqueezeExcite
from train.config.networks import TIMM, VITS, WITHOUT_BATCHNORM
from train.config.run_config import Config, ConfigError
from train.step.network import BatchNorm2d

PX = 224
"""The edge of an image where nobody says otherwise: torchvision's and timm's own."""


def build_network(name: str, num_classes: int, *, image_px: int = PX) -> nn.Module:
    """Return a network of its library's own layers, freshly initialised; torch's global generator decides the weights.

    Args:
        name: model.name.
        image_px: the edge of all images, for networks that take one size alone.

    Raises:
        ConfigError: timm is not installed, or has no such network.
    """
    if name.startswith(TIMM):
        return _timms(name.removeprefix(TIMM), num_classes, image_px)
    sized = {"image_size": image_px} if name in VITS else {}
    network: nn.Module = getattr(torchvision.models, name)(num_classes=num_classes, **sized)
    return network


def count_together(network: nn.Module) -> None:
    """Have torch's own BatchNorms leave it to `LayersTogether` to count their batches."""
    for layer in network.modules():
        if type(layer) is nn.BatchNorm2d:  # subclasses have a forward pass of their own
            layer.__class__ = BatchNorm2d


def environment_of_network(name: str) -> dict[str, str]:
    """Return the version of the library that decides a network's layers, where it is not torchvision."""
    return {"timm": version("timm")} if name.startswith(TIMM) else {}


def check_timms(cfg: Config) -> None:
    """Refuse what does not fit a network of timm's; of torchvision's the configuration itself knows.

    Raises:
        ConfigError: timm is not installed or has no such network, it takes images of one size alone, or a setting is
            about BatchNorm, which it has not.
    """
    if not cfg.model.name.startswith(TIMM):
        return
    name = cfg.model.name.removeprefix(TIMM)
    if _takes_one_size(name):
        if cfg.data.crop_size != cfg.data.eval_crop_size:
            raise ConfigError(
                f"model.name: {cfg.model.name} takes images of one size alone; data.crop_size is {cfg.data.crop_size} "
                f"and data.eval_crop_size {cfg.data.eval_crop_size}; let them be the same"
            )
        for place, algorithm in enumerate(cfg.algorithms):
            if isinstance(algorithm, BlurPool | SqueezeExcite):
                raise ConfigError(
                    f"algorithms.{place}.name: '{algorithm.name}' does nothing in {cfg.model.name}, which takes images "
                    "of one size alone, as a ViT"
                )
            if isinstance(algorithm, SizeSchedule):
                raise ConfigError(
                    f"algorithms.{place}.name: it cannot go with {cfg.model.name}, which takes images of one size alone"
                )
    norms = cfg.model.sync_batchnorm or not cfg.optimizer.decay_batchnorm
    if norms and not normalises_by_batches(cfg):
        key = "model.sync_batchnorm: true" if cfg.model.sync_batchnorm else "optimizer.decay_batchnorm: false"
        raise ConfigError(f"{key} does nothing in {cfg.model.name}, which has no BatchNorm")


def normalises_by_batches(cfg: Config) -> bool:
    """Return whether the run's network has a BatchNorm; one of timm's is built for that."""
    if not cfg.model.name.startswith(TIMM):
        return cfg.model.name not in WITHOUT_BATCHNORM
    return has_batchnorm(build_network(cfg.model.name, 2, image_px=cfg.data.crop_size))


def has_batchnorm(network: nn.Module) -> bool:
    """Return whether a network normalises by batches anywhere."""
    return any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in network.modules())


def _timms(name: str, num_classes: int, image_px: int) -> nn.Module:
    sized = {"img_size": image_px} if _takes_one_size(name) else {}
    try:
        network: nn.Module = _timm().create_model(name, pretrained=False, num_classes=num_classes, **sized)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"model.name: timm cannot build {name} for images of {image_px} px: {' '.join(str(error).split())[:300]}"
        ) from error
    return network


def _takes_one_size(name: str) -> bool:
    timm = _timm()
    if not timm.is_model(name):
        nearest = difflib.get_close_matches(name, timm.list_models(), n=1)
        hint = f"; did you mean timm:{nearest[0]}?" if nearest else ""
        raise ConfigError(f"model.name: timm {version('timm')} has no {name}{hint}")
    pretrained = timm.models.get_pretrained_cfg(name)
    return bool(pretrained and pretrained.fixed_input_size)


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise ConfigError(
            "model.name: timm:... needs timm, which is not installed here; install it, or take one of torchvision's"
        ) from error
    return timm
