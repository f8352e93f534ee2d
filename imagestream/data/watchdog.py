"""A wait that lasts too long ends the run, and says where every process of it was."""

import contextlib
import faulthandler
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

log = logging.getLogger(__name__)

STDERR = 2
DUMP_SIGNAL = signal.SIGUSR2
SECONDS_TO_DUMP = 1.0
SECONDS_TO_END = 30.0


class StalledLoaderError(RuntimeError):
    """No batch came within stall_limit_s."""


class StallWatch:
    """Raises in the main thread when a `with` block lasts longer than a limit; else costs two system calls.

    It is an alarm of the operating system, so neither a thread that hangs nor a worker that is stopped can keep it
    from going off. Only the main thread can have one; elsewhere the block is not watched.

    Args:
        limit_s: how long a block may last.
        workers: number of loader processes, each of which calls `report_on_signal`.
        rank: for the message.
        doing: says what the loader is busy with, for the message.
    """

    def __init__(self, limit_s: float, *, workers: int, rank: int, doing: Callable[[], str]) -> None:
        self.limit_s, self.rank, self.doing = limit_s, rank, doing
        self._pids = multiprocessing.Array("i", workers, lock=False)  # written by the workers, read here
        self._watched = False

    def report_on_signal(self, worker: int) -> None:
        """Have this loader process write the stack of each of its threads when it is asked to."""
        self._pids[worker] = os.getpid()
        faulthandler.register(DUMP_SIGNAL, file=STDERR, all_threads=True)

    def __enter__(self) -> None:
        self._watched = threading.current_thread() is threading.main_thread()
        if self._watched:
            signal.signal(signal.SIGALRM, self._end)
            signal.setitimer(signal.ITIMER_REAL, self.limit_s)

    def __exit__(self, *_: Any) -> None:
        if self._watched:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _end(self, _signal: int, _frame: FrameType | None) -> None:
        pids = [pid for pid in self._pids if pid]
        workers = ", ".join(map(str, pids)) or "none"
        message = (
            f"rank {self.rank} had no batch for {self.limit_s:g} s (stall_limit_s); {self.doing()}; the stacks of "
            f"its main process ({os.getpid()}) and of its loader workers ({workers}) are in its output"
        )
        log.error(message)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would raise its own error at a worker's end
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, DUMP_SIGNAL)
        faulthandler.dump_traceback(file=STDERR, all_threads=True)
        time.sleep(SECONDS_TO_DUMP)
        for pid in pids:  # one that hangs would not end when asked to
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        faulthandler.dump_traceback_later(SECONDS_TO_END, exit=True, file=STDERR)  # nor would a hung thread
        raise StalledLoaderError(message)
