"""What a step finds out, read by the host a step later, so that the GPU never runs out of work for it."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from composer.core import State
from composer.utils import dist
from torch import Tensor


@dataclass(frozen=True)
class Step:
    """What the ranks found out together in one step.

    Attributes:
        batch: its number in the run, from 0.
        name: as a person reads it, such as "batch 7 (batch 1 of epoch 2)".
        learning_rate: that it was to be taken with.
        loss: mean over all ranks, in nats a sample.
        is_finite: whether the gradients were; where not, the step was left out, and every later one.
        is_stop_asked: whether a rank had been told to stop.
        own_s: seconds that each rank needs for a step by itself, 0 where one does not know; empty where not measured.
    """

    batch: int
    name: str
    learning_rate: float
    loss: float
    is_finite: bool
    is_stop_asked: bool
    own_s: tuple[float, ...] = ()


@dataclass
class _Sent:
    step: Callable[[list[float]], Step]
    values: Tensor
    arrival: torch.cuda.Event | None


class StepStatistics:
    """Sends each step's figures to the host, and hands them to its listeners once they are there.

    Attributes:
        lag_steps: how many steps may be under way at once; 0: each one is read at its end.
    """

    def __init__(self) -> None:
        self.lag_steps = 1
        self._readers: list[Callable[[Step], None]] = []
        self._sent: deque[_Sent] = deque()
        self._place: Tensor | None = None

    def tell(self, reader: Callable[[Step], None]) -> None:
        """Have every step handed to `reader`, in their order, after those who have asked before."""
        self._readers.append(reader)

    def send(
        self, state: State, loss: Tensor, nonfinite: Tensor, *, is_stop_asked: bool, own_s: float | None = None
    ) -> None:
        """Add up a step's figures over the ranks, and read those of earlier ones. Collective.

        Args:
            loss: float32 of one element, the rank's mean.
            nonfinite: float32 of one element, 1 where gradients are not finite.
            own_s: what this rank needs for a step by itself; given by all ranks or by none.
        """
        asked = torch.full((1,), float(is_stop_asked), device=loss.device)
        parts = [loss.detach().reshape(1), nonfinite.reshape(1), asked]
        if own_s is not None:
            parts.append(self._in_its_place(loss.device) * own_s)
        values = torch.cat(parts)
        dist.all_reduce(values, reduce_operation="SUM")
        arrival = None
        if values.is_cuda:
            values = values.to("cpu", non_blocking=True)  # into pinned memory
            arrival = torch.cuda.Event()
            arrival.record()
        self._sent.append(_Sent(_reading(state), values, arrival))
        knows_alone = is_stop_asked and dist.get_world_size() == 1  # several ranks have to stop after the same batch
        self._read_to(0 if knows_alone else self.lag_steps)

    def _in_its_place(self, device: torch.device) -> Tensor:
        """Zeros, but for a one at this rank: the sum over the ranks then has each one's figure."""
        if self._place is None:
            self._place = torch.zeros(dist.get_world_size(), device=device)
            self._place[dist.get_global_rank()] = 1
        return self._place

    def settle(self) -> None:
        """Read what is under way: before an epoch's end, an evaluation, a checkpoint and the end."""
        self._read_to(0)

    def _read_to(self, left: int) -> None:
        while len(self._sent) > left:
            sent = self._sent.popleft()
            if sent.arrival is not None:
                sent.arrival.synchronize()
            step = sent.step(sent.values.tolist())
            for reader in self._readers:
                reader(step)


def _reading(state: State) -> Callable[[list[float]], Step]:
    """Return how the values of a step are to be read; the state is another one by then."""
    now, learning_rate = state.timestamp, state.schedulers[0].get_last_lr()[0]
    name = f"batch {int(now.batch)} (batch {int(now.batch_in_epoch)} of epoch {int(now.epoch)})"

    def read(values: list[float]) -> Step:
        loss, nonfinite, asked, *own_s = values
        mean = loss / dist.get_world_size()
        return Step(int(now.batch), name, learning_rate, mean, nonfinite == 0, asked > 0, tuple(own_s))

    return read
