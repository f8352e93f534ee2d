"""Names a rank that is slower than the others for minutes: all wait for it, and nothing else shows which it is."""

import logging
import socket
import statistics
import time
from collections.abc import Callable

from composer.utils import dist

from train.step.statistics import Step

log = logging.getLogger(__name__)

SLOWER = 1.3  # times the median
SECONDS_THAT_COUNT = 180.0
NEWEST_SHARE = 0.2  # of the newest measurement in a rank's time: single slow steps do not count


class Stragglers:
    """Reads each rank's own time of a step (train/step/own_time.py); says once of a rank that it holds up the others.

    Rank 0 says which rank it is, and that rank on which host.

    Args:
        now: a clock, seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._times: list[float] = []
        self._slow_since: dict[int, float] = {}
        self._told: set[int] = set()

    def take(self, step: Step) -> None:
        """Take a step's times, if it was measured and all ranks know theirs."""
        if not step.own_s or min(step.own_s) <= 0:
            return
        if not self._times:
            self._times = list(step.own_s)
        pairs = zip(self._times, step.own_s, strict=True)
        self._times = [(1 - NEWEST_SHARE) * before + NEWEST_SHARE * now for before, now in pairs]
        median = statistics.median_low(self._times)  # of two ranks the faster one's
        for rank, seconds in enumerate(self._times):
            if self._is_slow_for_long(rank, seconds > SLOWER * median) and rank not in self._told:
                self._told.add(rank)
                self._tell(rank, seconds, median, step.name)

    def _is_slow_for_long(self, rank: int, is_slow: bool) -> bool:
        if not is_slow:
            self._slow_since.pop(rank, None)
            return False
        return self._now() - self._slow_since.setdefault(rank, self._now()) >= SECONDS_THAT_COUNT

    def _tell(self, rank: int, seconds: float, median: float, name: str) -> None:
        machine, local_rank = divmod(rank, dist.get_local_world_size())
        words = (
            f"rank {rank} (rank {local_rank} of machine {machine}) holds up the others: for {SECONDS_THAT_COUNT:g} s "
            f"it has needed {seconds:.3g} s for its own part of a step, and the median is {median:.3g} s; at {name}"
        )
        if dist.get_global_rank() == rank:
            where = "look there at nvidia-smi -q -d PERFORMANCE and at the disk of data.local"
            log.warning("%s. Its host is %s: %s", words, socket.gethostname(), where)
        elif dist.get_global_rank() == 0:
            log.warning("%s. Its own log names its host", words)
