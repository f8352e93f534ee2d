"""Parts of Composer 0.32.1 that launch one operation for each tensor, made to launch one for all of them.

On a GPU the processor launches operations more slowly than small images need them. The arithmetic is upstream's,
operation by operation, so that on a CPU the bits are the same (`tests/unit/test_lean.py`). Names and states are
upstream's too: a checkpoint of either is one of the other.
"""

import itertools
from collections.abc import Sequence

import torch
from composer.algorithms import EMA as ComposerEMA
from composer.algorithms.blurpool import blurpool_layers
from composer.core import Event, State
from composer.loggers import Logger
from composer.optim import DecoupledSGDW as ComposerDecoupledSGDW
from torch import Tensor

STEP = 2
"""Counts changes of the operations of a step; on a GPU another one may round in another way, so the contract has it."""


class DecoupledSGDW(ComposerDecoupledSGDW):
    """Upstream's loops over the parameters (`composer.optim.DecoupledSGDW.sgdw`): four operations for each."""

    @staticmethod
    def sgdw(
        params: list[Tensor],
        d_p_list: list[Tensor],
        momentum_buffer_list: list[Tensor | None],
        *,
        weight_decay: float,
        momentum: float,
        lr: float,
        initial_lr: float,
        dampening: float,
        nesterov: bool,
    ) -> None:
        """Update parameters and momentum in place; see upstream for the arguments."""
        if not params:
            return
        updates = d_p_list
        if momentum:
            buffers = _with_momentum(d_p_list, momentum_buffer_list, momentum, dampening)
            updates = list(torch._foreach_add(d_p_list, buffers, alpha=momentum)) if nesterov else buffers
        if weight_decay:
            torch._foreach_mul_(params, 1 - (lr / initial_lr if initial_lr else 1.0) * weight_decay)
        torch._foreach_add_(params, updates, alpha=-lr)


def _with_momentum(
    gradients: list[Tensor], buffers: list[Tensor | None], momentum: float, dampening: float
) -> list[Tensor]:
    """Return the buffers with the gradients added; those that are not there yet begin as the gradients."""
    new = [at for at, buffer in enumerate(buffers) if buffer is None]
    for at in new:
        buffers[at] = torch.clone(gradients[at]).detach()
    old = sorted({*range(len(buffers))} - {*new})
    if there := [buffer for at in old if (buffer := buffers[at]) is not None]:
        torch._foreach_mul_(there, momentum)
        torch._foreach_add_(there, [gradients[at] for at in old], alpha=1 - dampening)
    return [buffer for buffer in buffers if buffer is not None]


class EMA(ComposerEMA):
    """Upstream's averages tensor by tensor, three operations for each (`composer.algorithms.ema.ema.compute_ema`)."""

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        if event not in (Event.BATCH_END, Event.EPOCH_END):
            super().apply(event, state, logger)
            return
        assert self.ema_model is not None and isinstance(self.smoothing, float)
        averages = self.ema_model.named_parameters_dict | self.ema_model.named_buffers_dict
        model = itertools.chain(state.model.named_parameters(), state.model.named_buffers())
        average([(averages[name], tensor.data) for name, tensor in model if name in averages], self.smoothing)


@torch.no_grad()
def average(pairs: Sequence[tuple[Tensor, Tensor]], smoothing: float) -> None:
    """Set each pair's first tensor to `first * smoothing + second * (1 - smoothing)`.

    Whole numbers, of which BatchNorm counts batches, go through float32 and lose their fraction, as upstream's do.
    """
    floats = [pair for pair in pairs if pair[0].is_floating_point()]
    if floats:
        averages, tensors = ([pair[side] for pair in floats] for side in (0, 1))
        means = torch._foreach_mul(averages, smoothing)
        torch._foreach_add_(means, torch._foreach_mul(tensors, 1.0 - smoothing))
        torch._foreach_copy_(averages, means)
    counters = [pair for pair in pairs if not pair[0].is_floating_point()]
    if counters:
        before, now = (torch.stack([pair[side] for pair in counters]) for side in (0, 1))
        means_of_counters = (before * smoothing + now * (1.0 - smoothing)).to(before.dtype)
        torch._foreach_copy_([pair[0] for pair in counters], list(means_of_counters.unbind()))


def pad_without_reading_back() -> None:
    """Have BlurPool's layers work out half a filter's size in Python.

    Upstream does so by a tensor at each of 14 layers, and reads it back
    (`composer.algorithms.blurpool.blurpool_layers._padding_for_filt_2d_same`). A subclass of BlurPool would not do:
    where a checkpoint names BlurPool, Composer adds its own beside whatever is not of exactly that class.
    """
    blurpool_layers._padding_for_filt_2d_same = same_padding


def same_padding(filt: Tensor) -> tuple[int, int]:
    """Return the padding, rows and columns, with which a filter (C, 1, H, W) of odd H and W keeps an image's size."""
    height, width = filt.shape[-2:]
    for name, edge in (("height", height), ("width", width)):
        if edge % 2 == 0:
            raise IndexError(f"Filter must have odd {name}; got {edge}")
    return height // 2, width // 2
