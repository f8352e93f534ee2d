"""A sign of life for whoever watches the run from outside: launchers end one that stands still."""

import json
import os
import time
from pathlib import Path

from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

HEARTBEAT_VARIABLE = "HEARTBEAT_FILE"
SECONDS_BETWEEN_BEATS = 1.0


class Heartbeat(Callback):
    """Writes batch, epoch and time into the file that $HEARTBEAT_FILE names; nothing without one.

    The first rank of each machine writes, at most once a second, after batches of training and of evaluation.
    """

    def __init__(self) -> None:
        wanted = os.environ.get(HEARTBEAT_VARIABLE) if dist.get_local_rank() == 0 else None
        self._path = Path(wanted) if wanted else None
        self._beaten_at = 0.0

    def fit_start(self, state: State, logger: Logger) -> None:
        self._beat(state)

    def batch_end(self, state: State, logger: Logger) -> None:
        self._beat(state)

    def eval_batch_end(self, state: State, logger: Logger) -> None:
        self._beat(state)

    def _beat(self, state: State) -> None:
        now = time.time()
        if self._path is None or now - self._beaten_at < SECONDS_BETWEEN_BEATS:
            return
        self._beaten_at = now
        beat = {"batch": int(state.timestamp.batch), "epoch": int(state.timestamp.epoch), "unix_time_s": round(now, 1)}
        part = self._path.with_name(self._path.name + ".part")
        part.write_text(json.dumps(beat) + "\n")
        part.replace(self._path)
