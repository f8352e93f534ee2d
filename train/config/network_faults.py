"""Which settings do nothing in a network, or cannot work there: each is refused with what to give.

Of timm's networks it is known only once timm is imported what they are: see `train.networks.check_timms`.
"""

from collections.abc import Sequence
from typing import Any

from train.config.algorithm import AlgorithmConfig
from train.config.model import ModelConfig
from train.config.networks import RESNETS, TIMM, VITS, WITHOUT_BATCHNORM, WITHOUT_STRIDED_CONVOLUTIONS
from train.config.sections import DataConfig

Fault = tuple[Any, str, tuple[str | int, ...]]
"""A value, what is wrong with it, and where in its section it stands."""


def fault_of_model(model: ModelConfig, data: DataConfig | None) -> Fault | None:
    """Return what does not fit the network among the model's own settings and the sizes of the images."""
    name = model.name
    if model.init == "mosaic" and name not in RESNETS:
        return "mosaic", f"is for ResNets, and model.name is {name}; give torchvision, the network's own", ("init",)
    if model.target_threshold is not None and model.loss != "binary_cross_entropy":
        return model.target_threshold, "is for loss: binary_cross_entropy; give null", ("target_threshold",)
    if model.zero_init_last_gamma and name not in RESNETS:
        words = f"is for the residual blocks of ResNets, and model.name is {name}; give false"
        return True, words, ("zero_init_last_gamma",)
    if model.zero_init_last_gamma and model.weights is not None:
        words = "does nothing beside model.weights, which say where each block begins; give false"
        return True, words, ("zero_init_last_gamma",)
    if model.sync_batchnorm and name in WITHOUT_BATCHNORM:
        return True, f"does nothing in {name}, which has no BatchNorm; give false", ("sync_batchnorm",)
    if str(model.weights).startswith("torchvision:") and name.startswith(TIMM):
        return model.weights, f"is of a network of torchvision, and model.name is {name}", ("weights",)
    if name in VITS and data is not None:
        return _fault_of_sizes(name, data.crop_size, data.eval_crop_size, patch_px=VITS[name])
    return None


def _fault_of_sizes(name: str, crop_size: int, eval_crop_size: int, *, patch_px: int) -> Fault | None:
    if crop_size % patch_px:
        words = f"cuts images into patches of {patch_px} px, of which data.crop_size, {crop_size}, is no multiple"
        return name, words, ("name",)
    if crop_size != eval_crop_size:
        words = (
            f"takes images of one size alone; data.crop_size is {crop_size} and data.eval_crop_size {eval_crop_size}"
        )
        return name, f"{words}; let them be the same", ("name",)
    return None


def fault_of_decay(network: str, *, decay_batchnorm: bool) -> Fault | None:
    """Return what is wrong where BatchNorm is to go without decay in a network that has none."""
    if decay_batchnorm or network not in WITHOUT_BATCHNORM:
        return None
    return False, f"does nothing in {network}, which has no BatchNorm; give true", ("decay_batchnorm",)


def fault_of_algorithms(model: ModelConfig, algorithms: Sequence[AlgorithmConfig]) -> Fault | None:
    """Return the first algorithm that cannot work in the network, or finds nothing there to work on."""
    network = model.name
    for place, algorithm in enumerate(algorithms):
        name = str(getattr(algorithm, "name", ""))
        if name in ("blurpool", "squeeze_excite") and network in WITHOUT_STRIDED_CONVOLUTIONS:
            return name, f"does nothing in {network}, which has no convolutions for it; remove it", (place, "name")
        if name == "label_smoothing" and model.target_threshold is not None:
            return name, "does nothing with model.target_threshold, which makes all targets 0 or 1", (place, "name")
        if name in ("progressive_resizing", "resolution_ramp") and network in VITS:
            return name, f"cannot go with {network}, which takes images of one size alone", (place, "name")
    return None
