"""One pass of a network, alone or with its layers together, in a precision."""

import torch
from torch import Tensor, nn

from train.step.network import LayersTogether


def logits_of(network: nn.Module, layers: LayersTogether | None, images: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the logits of a training pass on a CPU; float32 is without autocast."""
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        if layers is None:
            logits: Tensor = network(images)
            return logits
        with layers.forward(images.device):
            together: Tensor = network(images)
            return together
