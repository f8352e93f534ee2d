"""Which networks there are, what each kind has, and which settings therefore do nothing or cannot work in it.

ResNets are what the recipes are for. The others are torchvision's that train on square crops and normalise by BatchNorm
or LayerNorm, and timm's by name. Of timm's it is known only once it is imported what they are (`train.networks`).
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from train.config.algorithms import AlgorithmConfig
    from train.config.model import ModelConfig
    from train.config.sections import DataConfig

TIMM = "timm:"

RESNETS = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2"),
)
OTHERS_WITH_BATCHNORM = (
    *("densenet121", "densenet161", "densenet169", "densenet201"),
    *(f"efficientnet_b{size}" for size in range(8)),
    *("efficientnet_v2_s", "efficientnet_v2_m", "efficientnet_v2_l"),
    *("mnasnet0_5", "mnasnet0_75", "mnasnet1_0", "mnasnet1_3"),
    *("mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large"),
    *(f"regnet_{kind}_{size}" for kind in "xy" for size in ("400mf", "800mf", "1_6gf", "3_2gf", "8gf", "16gf", "32gf")),
    "regnet_y_128gf",
    *("shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "shufflenet_v2_x1_5", "shufflenet_v2_x2_0"),
    *("vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn"),
)
CONVNEXTS = ("convnext_tiny", "convnext_small", "convnext_base", "convnext_large")
SWINS = ("swin_t", "swin_s", "swin_b", "swin_v2_t", "swin_v2_s", "swin_v2_b")
VITS = {"vit_b_16": 16, "vit_b_32": 32, "vit_l_16": 16, "vit_l_32": 32, "vit_h_14": 14}
"""With the edge of a patch, px."""
NETWORKS = (*RESNETS, *OTHERS_WITH_BATCHNORM, *CONVNEXTS, *SWINS, *VITS)
UNFIT = {
    "alexnet": "it normalises nothing",
    **dict.fromkeys(("squeezenet1_0", "squeezenet1_1"), "it normalises nothing"),
    **dict.fromkeys(("vgg11", "vgg13", "vgg16", "vgg19"), "it normalises nothing; take the one with _bn"),
    **dict.fromkeys(("googlenet", "inception_v3"), "it has auxiliary outputs with losses of their own"),
    "maxvit_t": "its windows fit images of 224 px alone",
}
"""What torchvision has beside them, and why a run cannot be of it."""
WITHOUT_BATCHNORM = (*CONVNEXTS, *SWINS, *VITS)
WITHOUT_STRIDED_CONVOLUTIONS = (*SWINS, *VITS)  # but for the first, of 3 channels, which algorithms leave alone
BOTTLENECK_MODELS = tuple(name for name in RESNETS if name not in ("resnet18", "resnet34"))

Fault = tuple[Any, str, tuple[str | int, ...]]
"""A value, what is wrong with it, and where in its section it stands."""


def check_network(name: str) -> str:
    """Return model.name, which must be a network that there is."""
    if name in NETWORKS or (name.startswith(TIMM) and name != TIMM):
        return name
    if reason := UNFIT.get(name):
        raise ValueError(f"cannot be trained here: {reason}")
    nearest = difflib.get_close_matches(name, NETWORKS, n=1)
    hint = f"; did you mean '{nearest[0]}'?" if nearest else ""
    raise ValueError(f"must be one of torchvision's networks, such as {', '.join(RESNETS[:5])}, or timm:NAME{hint}")


def fault_of_model(model: ModelConfig, data: DataConfig | None) -> Fault | None:
    """Return what does not fit the network among the model's own settings and the sizes of the images."""
    name = model.name
    if model.init == "mosaic" and name not in RESNETS:
        return "mosaic", f"is for ResNets, and model.name is {name}; give torchvision, the network's own", ("init",)
    if model.zero_init_last_gamma and name not in RESNETS:
        words = f"is for the residual blocks of ResNets, and model.name is {name}; give false"
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


def fault_of_algorithms(network: str, algorithms: Sequence[AlgorithmConfig]) -> Fault | None:
    """Return the first algorithm that cannot work in the network, or finds nothing there to work on."""
    for place, algorithm in enumerate(algorithms):
        name = str(getattr(algorithm, "name", ""))
        if name in ("blurpool", "squeeze_excite") and network in WITHOUT_STRIDED_CONVOLUTIONS:
            return name, f"does nothing in {network}, which has no convolutions for it; remove it", (place, "name")
        if name in ("progressive_resizing", "resolution_ramp") and network in VITS:
            return name, f"cannot go with {network}, which takes images of one size alone", (place, "name")
    return None
