"""A network's forward pass with a few launches for what torch launches layer by layer.

BatchNorm counts its batches, one operation a layer; autocast casts each weight, and its gradient back, likewise. Here
one operation does so for all layers, or for all of a stage: gradients come stage by stage, so that those of several
ranks are summed beside the backward pass. What is computed is the same, bit for bit.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

CAST = (nn.Conv1d, nn.Conv2d, nn.Linear)  # what autocast runs in 16 bits, of the layers that recipes have


class BatchNorm2d(nn.BatchNorm2d):
    """torch's, which leaves it to `LayersTogether` to count its batches; they decide nothing, but they are saved."""

    uncounted = 0

    def forward(self, images: Tensor) -> Tensor:
        if not self.training or self.momentum is None:
            return super().forward(images)
        self.uncounted += 1
        statistics = (self.running_mean, self.running_var)
        return nn.functional.batch_norm(images, *statistics, self.weight, self.bias, True, self.momentum, self.eps)


class LayersTogether:
    """What one operation does for many of a network's layers; made once the network has its last layers.

    Args:
        casts_weights: whether every layer takes part in every forward pass. A stage's weights get their gradients
            together, so that one that took no part would get zeros where it must get none.
        is_recorded: whether passes are replayed, of which the layers see nothing: then each counts every one.
    """

    def __init__(self, network: nn.Module, *, casts_weights: bool, is_recorded: bool = False) -> None:
        self._is_recorded = is_recorded
        self._norms = [layer for layer in network.modules() if isinstance(layer, BatchNorm2d)]
        stages = [[layer for layer in child.modules() if _is_cast(layer)] for child in network.children()]
        self._stages = [layers for layers in stages if len(layers) > 1 and casts_weights]

    @contextmanager
    def forward(self, device: torch.device) -> Iterator[None]:
        """Cast the weights before a training step's forward pass where autocast would, and count its batch after it."""
        cast = self._cast(torch.get_autocast_dtype(device.type)) if torch.is_autocast_enabled(device.type) else []
        try:
            yield
        finally:
            for layer, weight in cast:
                layer._parameters["weight"] = weight
        self._count()

    def _cast(self, dtype: torch.dtype) -> Sequence[tuple[nn.Module, nn.Parameter | None]]:
        """Have the layers find their weights cast; return each one's own."""
        own = [(layer, layer._parameters["weight"]) for layers in self._stages for layer in layers]
        for layers in self._stages:
            weights = [layer._parameters["weight"] for layer in layers]
            for layer, weight in zip(layers, _CastTogether.apply(dtype, *weights), strict=True):
                layer._parameters["weight"] = weight
        return own

    def _count(self) -> None:
        if self._is_recorded:
            for layer in self._norms:
                layer.uncounted = int(layer.training)
        layers = [layer for layer in self._norms if layer.uncounted]
        counters = [layer.num_batches_tracked for layer in layers if layer.num_batches_tracked is not None]
        if counters:
            torch._foreach_add_(counters, [layer.uncounted for layer in layers])
        for layer in layers:
            layer.uncounted = 0


def _is_cast(layer: nn.Module) -> bool:
    """Return whether a layer's weight is cast with others: a frozen one needs no gradient, and must not ask for one."""
    return isinstance(layer, CAST) and layer.weight.requires_grad


class _CastTogether(torch.autograd.Function):
    """Casts float32 weights, and their gradients back, by one operation."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        return _copied(weights, dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        there = [gradient for gradient in gradients if gradient is not None]
        cast = iter(_copied(there, torch.float32))
        return None, *(None if gradient is None else next(cast) for gradient in gradients)


def _copied(tensors: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
    copies = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
    if copies:
        torch._foreach_copy_(copies, list(tensors))
    return tuple(copies)
