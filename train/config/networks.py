"""Which networks there are, and what each kind of them has.

ResNets are what the recipes are for. The others are torchvision's that train on square crops and normalise by BatchNorm
or LayerNorm, and timm's by name. Of timm's it is known only once it is imported what they are (`train.networks`).
"""

from __future__ import annotations

import difflib

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


def check_network(name: str) -> str:
    """Return model.name, which must be a network that there is."""
    if name in NETWORKS or (name.startswith(TIMM) and name != TIMM):
        return name
    if reason := UNFIT.get(name):
        raise ValueError(f"cannot be trained here: {reason}")
    nearest = difflib.get_close_matches(name, NETWORKS, n=1)
    hint = f"; did you mean '{nearest[0]}'?" if nearest else ""
    raise ValueError(f"must be one of torchvision's networks, such as {', '.join(RESNETS[:5])}, or timm:NAME{hint}")
