"""How long a rank needs for a step by itself: what it waits for its data, and its passes; not what it waits for others.

All ranks' steps take equally long, since each waits for the slowest when gradients are added up. The forward pass waits
for nobody, and forward and backward together take about three times as long as it.
"""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import torch
from composer.core import State
from composer.utils import dist

EVERY_STEPS = 10  # so that it costs nothing
PASSES_A_FORWARD = 3.0  # as infra/plan/speed.py has it


class OwnTime:
    """Measures every tenth step; what was measured is known ten steps later, so that nobody waits for the device.

    Args:
        is_on: whether to measure: not where a forward pass waits for the other ranks (model.sync_batchnorm).
    """

    def __init__(self, *, is_on: bool) -> None:
        self._is_on, self._is_measured = is_on and dist.get_world_size() > 1, False
        self._marks: list[tuple[Any, Any]] = []
        self._known: list[tuple[Any, Any]] = []  # of the step that was measured before
        self._waited: float | None = None

    def begin(self, state: State) -> None:
        """A step's passes begin."""
        self._is_measured = self._is_on and int(state.timestamp.batch) % EVERY_STEPS == 0
        self._marks = []

    @contextlib.contextmanager
    def forward(self, device: torch.device) -> Iterator[None]:
        """Measure a forward pass."""
        if not self._is_measured:
            yield
            return
        began = _mark(device)
        yield
        self._marks.append((began, _mark(device)))

    def take(self, state: State) -> float | None:
        """Return the seconds of a step, 0 where they are not known yet; None at a step that was not measured."""
        if not self._is_measured:
            return None
        waited = float(getattr(state.dataloader, "waited_seconds", 0.0))
        wait_s = None if self._waited is None else (waited - self._waited) / EVERY_STEPS
        forward_s = _seconds(self._known)
        self._waited, self._known = waited, self._marks
        if wait_s is None or forward_s is None:
            return 0.0
        return max(0.0, wait_s) + PASSES_A_FORWARD * forward_s


def _mark(device: torch.device) -> Any:
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _seconds(marks: list[tuple[Any, Any]]) -> float | None:
    """The time between marks; None where there are none, or a device has not come to the last one."""
    if not marks:
        return None
    if isinstance(marks[-1][1], float):
        return sum(end - began for began, end in marks)
    if not marks[-1][1].query():
        return None
    return sum(began.elapsed_time(end) for began, end in marks) / 1000
