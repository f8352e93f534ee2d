"""How much work a network is for a GPU, beside ResNet-50, for which the GPUs' figures are."""

from dataclasses import dataclass
from typing import Any

from infra.plan.speed import PARAMETERS, REFERENCE_PX

REFERENCE = "resnet50"
REFERENCE_OPERATIONS, REFERENCE_OUTPUTS = 4.089e9, 32.04e6
"""Multiplications of a forward pass, and numbers that its layers give, of torchvision's ResNet-50 at 224 px; counted
(tests/infra/test_plan.py)."""


@dataclass(frozen=True)
class Network:
    """What a network costs.

    Attributes:
        cost: of a training step on a GPU, beside ResNet-50's.
        parameters: whose gradients travel between the machines.
    """

    cost: float
    parameters: int


def network_of(name: str, num_classes: int, image_px: int) -> Network:
    """Return what model.name costs; it is built on torch's meta device, without memory.

    The cost is an estimate: the mean of how many times as much it multiplies and of how many times as many numbers its
    layers give. A ResNet's step in 16 bits is bound by both, now the one and now the other.

    Raises:
        ConfigError: timm is not installed, or has no such network.
    """
    if name == REFERENCE:
        return Network(1.0, PARAMETERS)
    operations, outputs, parameters = counted(name, num_classes, image_px)
    return Network((operations / REFERENCE_OPERATIONS + outputs / REFERENCE_OUTPUTS) / 2, parameters)


def counted(name: str, num_classes: int, image_px: int) -> tuple[float, float, int]:
    """Return multiplications and layers' outputs of a forward pass of one image of 224 px, and parameters.

    A network that takes images of one size alone is counted at that size, and taken to go with the pixels.
    """
    import torch
    from torch import nn
    from torch.utils.flop_counter import FlopCounterMode

    from train.config.networks import VITS
    from train.networks import build_network

    px = image_px if name in VITS else REFERENCE_PX
    with torch.device("meta"), torch.no_grad():
        network = build_network(name, num_classes, image_px=px).eval()
        outputs = [0]

        def add(layer: nn.Module, given: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor):
                outputs[0] += output.numel()

        for layer in network.modules():
            if not list(layer.children()):
                layer.register_forward_hook(add)
        with FlopCounterMode(display=False) as counter:
            network(torch.empty(1, 3, px, px))
    scale = (REFERENCE_PX / px) ** 2
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return counter.get_total_flops() / 2 * scale, outputs[0] * scale, parameters
