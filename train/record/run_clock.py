"""How far a run is, how long it has taken, and how long it will still take."""

import time
from typing import Any

from composer.core import State


class RunClock:
    """The run's batches and times, as of the last batch.

    The speed by which the time left is estimated is that of this process: with its evaluations and checkpoints.
    """

    def __init__(self) -> None:
        self._batch, self._epoch, self._train_s = 0, 0, 0.0
        self._began: tuple[int, float] | None = None

    def begin(self, state: State) -> None:
        """Note where this process begins to train."""
        self.note(state)
        self._began = self._batch, time.monotonic()

    def note(self, state: State) -> None:
        """Note where the run is."""
        now = state.timestamp
        self._batch, self._epoch = int(now.batch), int(now.epoch)
        self._train_s = now.total_wct.total_seconds()

    def as_dict(self) -> dict[str, Any]:
        """Return the batches and epochs that are done, the same for every run of the same length."""
        return {"batch": self._batch, "epoch": self._epoch}

    def times(self, total_batches: int) -> dict[str, Any]:
        """Return when this was written, the seconds trained (evaluations not counted), and an estimate of those left.

        `left_s` is None before this process has done a batch.
        """
        done = self._batch - self._began[0] if self._began else 0
        left_s = None
        if self._began and done:
            left_s = (time.monotonic() - self._began[1]) / done * max(0, total_batches - self._batch)
        return {"written_unix_s": round(time.time(), 1), "train_s": self._train_s, "left_s": left_s}
