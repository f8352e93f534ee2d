"""A worker process ends with its parent, whatever ends that one; a loader's leaves signals to its rank."""

import atexit
import ctypes
import multiprocessing
import multiprocessing.util  # its own exit function waits for workers: ours is registered later, and so runs first
import os
import signal
import threading
from collections.abc import Iterable
from multiprocessing.context import ForkProcess
from multiprocessing.process import BaseProcess
from weakref import WeakSet

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
SECONDS_TO_DIE = 5.0
EXIT_ORPHANED = 1
PR_SET_PDEATHSIG = 1  # linux/prctl.h
_libc = ctypes.CDLL(None)
_of_this_rank: WeakSet[BaseProcess] = WeakSet()


def remember(workers: Iterable[BaseProcess]) -> None:
    """Note, in the rank, loader processes that `stop_workers` is to end."""
    _of_this_rank.update(workers)


def become_worker() -> None:
    """In a loader worker: leave signals to the rank, and end when it does, even by SIGKILL."""
    for number in STOP_SIGNALS:  # torch has given SIGTERM to a handler of its own
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    parent = multiprocessing.parent_process()
    is_forked = isinstance(multiprocessing.current_process(), ForkProcess)  # else it is a server's child
    if parent is not None and parent.pid and is_forked:
        end_with_parent(parent.pid)


def end_with_parent(parent: int) -> None:
    """Have this process end when `parent` does, even by SIGKILL.

    Linux kills it, also after an exec. It counts the end of the parent's thread that forked, so fork in its main
    thread. Elsewhere a thread waits for the parent, in processes of multiprocessing.
    """
    if hasattr(_libc, "prctl"):
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before
            os._exit(EXIT_ORPHANED)
    elif (watched := multiprocessing.parent_process()) is not None:
        threading.Thread(target=_end_after, args=(watched,), daemon=True).start()


def _end_after(parent: BaseProcess) -> None:
    parent.join()
    os._exit(EXIT_ORPHANED)


@atexit.register
def stop_workers() -> None:
    """Kill the loader workers that are left: torch and multiprocessing would send SIGTERM, and wait."""
    workers = [worker for worker in _of_this_rank if worker in multiprocessing.active_children()]
    if workers:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would raise its own error at a worker's end
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.join(SECONDS_TO_DIE)
