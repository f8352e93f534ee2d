"""What looks at a training step while it is taken: its rate, the host's time, and the GPU's time.

A step says where it is by `begin`, `go_to` and `end` (the parts are benchmarks.step_counts').
"""

import time
from collections import Counter

import torch

from benchmarks.step_counts import Probe

LEAD = 2  # steps at the start of a block that are not looked at: a trainer's `fit` begins with work of its own
SLEEP_CYCLES = 200_000_000  # of the GPU's clock, about 0.1 s: the host launches a whole step in it


def now() -> float:
    """Return seconds, once the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class Rate(Probe):
    """Seconds for a block of steps, one after the other.

    Args:
        steps: of the block, LEAD ones before those that are timed.
    """

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.started = self.ended = 0.0

    def begin(self, part: str) -> None:
        if self.seen == LEAD:
            self.started = now()

    def end(self) -> None:
        super().end()
        if self.seen == self.steps:
            self.ended = now()

    @property
    def seconds_a_step(self) -> float:
        assert self.seen == self.steps, f"{self.seen} of {self.steps} steps were taken"
        return (self.ended - self.started) / (self.steps - LEAD)


class HostTimes(Probe):
    """Seconds of the host for each step, from an idle device until it has launched everything, by part."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[dict[str, float]] = []
        self._part, self._since = "", 0.0
        self._times: Counter[str] = Counter()

    def begin(self, part: str) -> None:
        self._times = Counter()
        self._part, self._since = part, now()

    def go_to(self, part: str) -> None:
        moment = time.perf_counter()
        self._times[self._part] += moment - self._since  # type: ignore[assignment]  # a Counter adds floats, too
        self._part, self._since = part, moment

    def end(self) -> None:
        self.go_to("")
        super().end()
        if self.seen > LEAD:
            self.steps.append(dict(self._times))


class GpuTimes(Probe):
    """Seconds of the GPU for each step that is all launched before the GPU begins with it.

    The GPU is kept busy until the host is done. Where the host waits in mid-step, that does not help, and the time has
    the GPU's waiting for the host in it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []
        self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def begin(self, part: str) -> None:
        torch.cuda.synchronize()
        torch.cuda._sleep(SLEEP_CYCLES)
        self._start.record()

    def end(self) -> None:
        self._end.record()
        torch.cuda.synchronize()
        super().end()
        if self.seen > LEAD:
            self.seconds.append(self._start.elapsed_time(self._end) / 1e3)
