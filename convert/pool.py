"""Work in processes of its own, in order, that ends when it is told to and when its parent is gone.

A process can be killed by what it works on: a decoder may crash, and Linux kills what takes too much memory. So each
one notes what it has at hand (`note`), in memory that outlives it, and `in_order` says who died over what.
"""

import ctypes
import multiprocessing
import os
import signal
import struct
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from imagestream.data.worker import end_with_parent

AHEAD = 3  # tasks under way for each worker, so that a slow one does not leave the others idle

NOTE_BYTES = 4096  # of a longer note the rest is cut off
_HEAD = struct.Struct("<qq")  # process id, bytes of its note
_SLOT_BYTES = _HEAD.size + NOTE_BYTES

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Death:
    """How a process ended, such as `SIGSEGV` or `exit status 1`, and its last note; '' where it has left none."""

    how: str
    note: str


class WorkersDied(RuntimeError):
    """A process was killed, and so the pool is gone.

    Attributes:
        deaths: of the processes that were killed; empty where nobody can tell them from those that were ended for it.
        finished: results that have not been yielded yet.
        unfinished: tasks under way, in order.
    """

    def __init__(self, deaths: list[Death], finished: list[Any], unfinished: list[Any]) -> None:
        super().__init__("; ".join(f"{death.how} at {death.note}" for death in deaths) or "a process was killed")
        self.deaths, self.finished, self.unfinished = deaths, finished, unfinished


def note(text: str) -> None:
    """Say what this process has at hand; outside of `in_order` nobody listens."""
    if _slot is not None:
        data = text.encode("utf-8", "surrogateescape")[:NOTE_BYTES]
        _slot[_HEAD.size : _HEAD.size + len(data)] = data
        _HEAD.pack_into(_slot, 0, os.getpid(), len(data))


def in_order(work: Callable[[Task], Result], tasks: Iterable[Task], *, workers: int) -> Generator[Result, None, None]:
    """Carry out `work` in processes and yield what it returns, in the order of the tasks.

    A single worker is a process of its own too, so that this one survives it. Closing the iterator, or an exception
    such as Ctrl-C, ends the processes.

    Raises:
        WorkersDied: a process was killed. Tasks not named in it have not been taken from `tasks`.
    """
    queue = iter(tasks)
    context = multiprocessing.get_context("spawn")
    notes, taken = context.RawArray(ctypes.c_ubyte, workers * _SLOT_BYTES), context.Value(ctypes.c_int, 0)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(notes, taken))
    others = set(multiprocessing.active_children())
    try:
        running = deque(_submit(pool, work, islice(queue, AHEAD * workers)))
        processes = set(multiprocessing.active_children()) - others
        while running:
            try:
                result = running[0][1].result()
            except BrokenProcessPool:
                pool.shutdown()  # waits for the processes, so that each has an exit status
                raise _died(running, processes, bytes(notes)) from None
            running.popleft()
            running += _submit(pool, work, islice(queue, 1))
            yield result
    except BaseException:
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _died(
    running: Iterable[tuple[Task, "Future[Result]"]], processes: Iterable[BaseProcess], notes: bytes
) -> WorkersDied:
    finished, unfinished = [], []
    for task, future in running:
        if future.done() and not future.cancelled() and future.exception() is None:
            finished.append(future.result())
        else:
            unfinished.append(task)
    # The pool ends the survivors by SIGTERM.
    dead = [process for process in processes if process.exitcode not in (None, 0, -signal.SIGTERM)]
    return WorkersDied(
        [Death(how_it_ended(p.exitcode or 0), _note_of(p.pid, notes)) for p in dead], finished, unfinished
    )


def how_it_ended(exit_code: int) -> str:
    """`SIGSEGV` or `exit status 1`, out of a process's exit code."""
    if exit_code >= 0:
        return f"exit status {exit_code}"
    try:
        return signal.Signals(-exit_code).name
    except ValueError:
        return f"signal {-exit_code}"


def _note_of(pid: int | None, notes: bytes) -> str:
    for at in range(0, len(notes), _SLOT_BYTES):
        owner, size_bytes = _HEAD.unpack_from(notes, at)
        if owner == pid:
            return notes[at + _HEAD.size :][:size_bytes].decode("utf-8", "surrogateescape")
    return ""


def _submit(
    pool: ProcessPoolExecutor, work: Callable[[Task], Result], tasks: Iterable[Task]
) -> list[tuple[Task, "Future[Result]"]]:
    """Submit tasks. Workers are born in here with Ctrl-C blocked, which a terminal sends to every process: the parent
    alone answers it, and ends them."""
    with _put_off(signal.SIGINT, signal.SIGTERM):
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return [(task, _future(pool, work, task)) for task in tasks]
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _put_off(*numbers: signal.Signals) -> Iterator[None]:
    """Answer signals at the end: an exception in between would leave a worker without what it starts with.

    To block them is not enough: another thread takes the signal, and the main thread answers it all the same.
    """
    if threading.current_thread() is not threading.main_thread():  # where nothing is answered
        yield
        return
    came = list[int]()
    before = {number: signal.signal(number, lambda number, frame: came.append(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        for came_number in came:
            signal.raise_signal(came_number)


def _future(pool: ProcessPoolExecutor, work: Callable[[Task], Result], task: Task) -> "Future[Result]":
    try:
        return pool.submit(work, task)
    except BrokenProcessPool as error:  # keeps the task, which is gone from the queue
        future: Future[Result] = Future()
        future.set_exception(error)
        return future


_slot: memoryview | None = None  # of this process


def _start(notes: Any, taken: Any) -> None:
    global _slot
    with taken.get_lock():
        number, taken.value = taken.value, taken.value + 1
    _slot = memoryview(notes).cast("B")[number * _SLOT_BYTES : (number + 1) * _SLOT_BYTES]
    end_with_pool()


def end_with_pool() -> None:
    """Have this process end when the one that started it does; else it would wait for tasks for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None and parent.pid is not None
    end_with_parent(parent.pid)
