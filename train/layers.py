"""A network's layers from the stem to the head: how deep each parameter lies, and which layer gives the logits."""

import re
from collections.abc import Iterable

from torch import nn

UNITS = (
    r"(layer\d+)\.",  # ResNet, ResNeXt, Wide ResNet: a stage
    r"(trunk_output\.block\d+)\.",  # RegNet: a stage
    r"(encoder\.layers\.encoder_layer_\d+)\.",  # ViT: a block
    r"(features\.\d+\.\d+)\.(?:layer_scale|attn\.)",  # ConvNeXt, Swin: a block
    r"(stages\.\d+\.blocks\.\d+)\.",  # timm's ConvNeXt: a block
    r"(blocks\.\d+)\.",  # timm's ViT: a block; its EfficientNet: a stage
    r"(features\.\d+)\.",  # EfficientNet, MobileNet, VGG: a stage or layer
    r"(features\.denseblock\d+)\.",
    r"(layers\.\d+)\.",  # MNASNet
    r"(stages\.\d+)\.",
    r"([^.]+)\.",  # whatever the network's own children are
)
"""What counts as one layer, by the names of its parameters; the first that a network has two of."""


def depths(names: Iterable[str]) -> dict[str, int]:
    """Return how deep each parameter lies: 0 in the stem, the highest in the head.

    What lies between two units (a ConvNeXt's downsampling) belongs to the one after it, what comes before the first to
    the stem, what comes after the last to the head (as of BEiT, arXiv:2106.08254).

    Args:
        names: of the network's parameters, in its own order.
    """
    names = list(names)
    units = _units(names)
    found: dict[str, int] = {}
    depth, between = 0, list[str]()
    last = ""
    for name in names:
        unit = next((unit for unit in units if name.startswith(f"{unit}.")), None)
        if unit is None:
            between.append(name)
            continue
        if unit != last:
            is_first = last == ""
            depth, last = depth + (bool(between) if is_first else 1), unit
            found |= dict.fromkeys(between, 0 if is_first else depth)
        else:
            found |= dict.fromkeys(between, depth)
        between = []
        found[name] = depth
    return found | dict.fromkeys(between, depth + 1)


def _units(names: list[str]) -> list[str]:
    for pattern in UNITS:
        units = dict.fromkeys(match[1] for name in names if (match := re.match(pattern, name)))
        if len(units) > 1:
            return list(units)
    return []


def head_of(network: nn.Module, num_classes: int) -> str:
    """Return the name of the layer that gives the logits, which is another one for other classes; '' where it is none.

    It is the last one that has as many outputs as there are classes.
    """
    found = ""
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Linear) and layer.out_features == num_classes:
            found = name
        if isinstance(layer, nn.Conv2d) and layer.out_channels == num_classes and layer.kernel_size == (1, 1):
            found = name
    return found
