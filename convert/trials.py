"""Which of some images kills the process that works on it? Each is tried in a process of its own.

Damage to a process's memory often shows only at a later image, so the image at which a worker died is not the one to
blame for certain. A process that dies at one image alone leaves no doubt.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from typing import Any

from convert.pool import end_with_pool, how_it_ended

TRIES = 3  # in the same process: a heap that the first has damaged may fail at the next allocation only
LIMIT_S = 120  # for one image; what takes longer is slow, and not deadly


def which_kill(load: Callable[[], Iterable[tuple[int, bytes]]], work: Callable[[bytes], object]) -> dict[int, str]:
    """How each of the images that kill their process ends it, such as `SIGSEGV`.

    Args:
        load: gives (number, bytes) of the images; called in a new process, so picklable.
        work: done to the bytes of each; exceptions are its own affair. Picklable too.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_try_all, args=(load, work, theirs))
    child.start()
    theirs.close()
    killers: dict[int, str] = {}
    try:
        while True:
            number, how = ours.recv()
            killers[number] = how
    except EOFError:  # it is done
        return killers
    finally:
        ours.close()
        child.terminate()
        child.join()


def _try_all(
    load: Callable[[], Iterable[tuple[int, bytes]]], work: Callable[[bytes], object], to: "Connection"
) -> None:
    end_with_pool()
    for number, data in load():
        how = _try_one(work, data)
        if how:
            to.send((number, how))


def _try_one(work: Callable[[bytes], Any], data: bytes) -> str | None:
    """How the process ended that did the work; None where it did not die of it."""
    pid = os.fork()
    if pid == 0:
        _work_and_exit(work, data)
    _, status = os.waitpid(pid, 0)
    exit_code = os.waitstatus_to_exitcode(status)
    return how_it_ended(exit_code) if exit_code not in (0, -signal.SIGALRM) else None


def _work_and_exit(work: Callable[[bytes], Any], data: bytes) -> None:
    signal.alarm(LIMIT_S)
    try:
        for _ in range(TRIES):
            work(data)
    except BaseException:
        pass
    finally:
        os._exit(0)
