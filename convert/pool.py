"""Work in processes of its own, in order, that ends when it is told to and when its parent is gone."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import islice
from typing import TypeVar

AHEAD = 3  # tasks under way for each worker, so that a slow one does not leave the others idle

Task = TypeVar("Task")
Result = TypeVar("Result")


def in_order(work: Callable[[Task], Result], tasks: Iterable[Task], *, workers: int) -> Generator[Result, None, None]:
    """Carry out `work` in processes and yield what it returns, in the order of the tasks.

    Closing the iterator, or an exception such as Ctrl-C, ends the processes.

    Raises:
        BrokenProcessPool: a process was killed.
    """
    if workers == 1:
        yield from map(work, tasks)
        return
    queue = iter(tasks)
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_end_with_parent)
    try:
        running = deque(_submit(pool, work, islice(queue, AHEAD * workers)))
        while running:
            result = running.popleft().result()
            running += _submit(pool, work, islice(queue, 1))
            yield result
    except BaseException:
        for worker in multiprocessing.active_children():
            worker.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _submit(pool: ProcessPoolExecutor, work: Callable[[Task], Result], tasks: Iterable[Task]) -> list[Future[Result]]:
    """Submit tasks. Workers are born in here with Ctrl-C blocked, which a terminal sends to every process: the parent
    alone answers it, and ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return [pool.submit(work, task) for task in tasks]
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent() -> None:
    """End this worker when its parent is gone, even by kill -9; else it would wait for tasks for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
