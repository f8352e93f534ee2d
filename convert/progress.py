"""How far a conversion has come, for the person who waits for it."""

import logging
import time

from tqdm import tqdm

from convert.tally import ShardResult

logger = logging.getLogger("convert")

LOG_EVERY_S = 30


class Progress:
    """Images done, rate and time left: a bar on a terminal, else a line now and then."""

    def __init__(self, total: int) -> None:
        self._bar = tqdm(total=total, unit=" images", smoothing=0.05, disable=None)  # None: off without a terminal
        self._left, self._made = total, 0
        self._started = self._last_line = time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.close()

    def add(self, result: ShardResult) -> None:
        """Count a shard; those an earlier run or another machine has made tell nothing of the rate."""
        if not result.reused and not result.by_another:
            self._made += result.images
        elif not self._bar.disable:
            self._bar.initial += result.images
        self._left -= result.images
        self._bar.update(result.images)
        now = time.monotonic()
        if self._bar.disable and self._made and now - self._last_line >= LOG_EVERY_S:
            self._last_line = now
            per_sec = self._made / (now - self._started)
            minutes = self._left / per_sec / 60
            logger.info("%s images to go, %.0f images/s, %.0f min left", f"{self._left:,}", per_sec, minutes)
