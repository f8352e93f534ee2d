"""A sign of life for whoever watches the run from outside: launchers end one that stands still."""

import contextlib
import json
import logging
import os
import time
from pathlib import Path

from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

log = logging.getLogger(__name__)

HEARTBEAT_VARIABLE = "HEARTBEAT_FILE"
SECONDS_BETWEEN_BEATS = 1.0
BEAT_BYTES = 160  # always the same number, so that a beat can be written over the one before it


class Heartbeat(Callback):
    """Writes batch, epoch, sample and time into the file that $HEARTBEAT_FILE names; nothing without one.

    `start_batch` is where this process began: 0, or the batch of the checkpoint that it resumed from. A launcher tells
    by it whether a failed run had moved on; `batch` depends on when the last beat before the failure happened to be.
    The first rank of each machine writes, at most once a second, after batches of training and of evaluation. A beat
    that cannot be written, as on a full disk, does not end the run.
    """

    def __init__(self) -> None:
        wanted = os.environ.get(HEARTBEAT_VARIABLE) if dist.get_local_rank() == 0 else None
        self._path = Path(wanted) if wanted else None
        self._beaten_at = 0.0
        self._told = False
        self._start_batch = 0

    def fit_start(self, state: State, logger: Logger) -> None:
        self._start_batch = int(state.timestamp.batch)
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
        done = state.timestamp
        counts = {"batch": int(done.batch), "epoch": int(done.epoch), "sample": int(done.sample)}
        beat = {**counts, "start_batch": self._start_batch, "unix_time_s": round(now, 1)}
        try:
            _write(self._path, (json.dumps(beat).ljust(BEAT_BYTES - 1) + "\n").encode())
        except OSError as error:
            if not self._told:
                log.warning("%s cannot be written: %s; the run continues", self._path, error.strerror)
                self._told = True


def _write(path: Path, beat: bytes) -> None:
    """Replace a file; where there is no room for another one, write over it."""
    part = path.with_name(path.name + ".part")
    try:
        part.write_bytes(beat)
        part.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        if not path.exists():
            raise
        with open(path, "r+b") as file:  # takes no new block
            file.write(beat)
