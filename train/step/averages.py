"""Averages of the weights over time, in a few launches for all tensors together."""

from collections.abc import Iterator, Sequence

import torch
from composer.algorithms import EMA as ComposerEMA
from composer.core import Event, State
from composer.loggers import Logger
from torch import Tensor, nn

from train.step.buffers import share_buffers


class EMA(ComposerEMA):
    """Upstream's averages tensor by tensor, three operations for each (`composer.algorithms.ema.ema.compute_ema`), and
    takes each rank's own BatchNorm statistics."""

    def match(self, event: Event, state: State) -> bool:
        if event == self.update_event and self._reads_the_model(state):  # upstream's copies the model in `match`
            # A checkpoint after an epoch's last batch has put the averages there, and upstream takes them for trained.
            self._ensure_training_weights_active(state)
            share_buffers(state.model)
        return super().match(event, state)

    def _reads_the_model(self, state: State) -> bool:
        now = state.timestamp.get(self.update_interval.unit).value
        return now % self.update_interval.value == 0 if self.ema_started else self._should_start(state)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        if event not in (Event.BATCH_END, Event.EPOCH_END):
            super().apply(event, state, logger)
            return
        assert self.ema_model is not None and isinstance(self.smoothing, float)
        averages = self.ema_model.named_parameters_dict | self.ema_model.named_buffers_dict
        model = moving_tensors(state.model)
        average([(averages[name], tensor.data) for name, tensor in model if name in averages], self.smoothing)


def moving_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters that are trained, then the buffers of all layers that are not frozen, each with its name.

    The average of what never moves is itself, and would become another number by rounding.
    """
    yield from ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)
    for place, layer in model.named_modules():
        parameters = list(layer.parameters(recurse=False))
        if not parameters or any(parameter.requires_grad for parameter in parameters):
            yield from layer.named_buffers(place, recurse=False)


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
