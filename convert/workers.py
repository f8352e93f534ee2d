"""Build shards in worker processes: each one reads, checks, encodes and writes a shard at a time.

A shard depends on its task alone, so the number of workers and the order they finish in change nothing.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, Literal, NamedTuple

from convert.images import BadImage, Checked, check_image
from convert.manifest import MendedFile, RefusedFile
from convert.outputs import Output
from convert.shards import encode_sample, encode_shard, index_entry, shard_name
from convert.sources import Sample, Source, printable_key

OnBad = Literal["fail", "skip"]


class WorkerError(RuntimeError):
    """A worker could not do its task, for a reason that is not the content of an image."""


@dataclass(frozen=True, slots=True)
class ShardTask:
    """All that decides what one shard holds."""

    split: str
    index: int
    samples: tuple[tuple[int, Sample], ...]  # (sample id, sample), in the shard's order


class KeptImage(NamedTuple):
    """What the statistics need of one image in a shard."""

    label: int
    width_px: int
    height_px: int
    image_bytes: int


@dataclass(slots=True)
class ShardResult:
    """What became of a task. `entry` is None where no shard was written."""

    split: str
    index: int
    images: int  # looked at, refused ones included
    entry: dict[str, Any] | None = None
    kept: list[KeptImage] = field(default_factory=list)
    mended: list[MendedFile] = field(default_factory=list)
    refused: list[RefusedFile] = field(default_factory=list)


def build_shards(
    tasks: Iterable[ShardTask],
    *,
    source: Source,
    output: Output,
    on_bad: OnBad,
    size_limit_bytes: int,
    workers: int,
) -> Generator[ShardResult, None, None]:
    """Carry out the tasks in `workers` processes and yield results as they come, in no fixed order.

    With `on_bad='fail'` no task is started after the first bad image, but those under way are finished, so
    that one run names as many bad images as it has found. Closing the iterator kills the workers.

    Raises:
        WorkerError: an image's file cannot be read, or a worker was killed.
        OutputError: a shard cannot be written.
    """
    build = partial(build_shard, source=source, output=output, on_bad=on_bad, size_limit_bytes=size_limit_bytes)
    queue = iter(tasks)
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_end_with_parent)
    try:
        # Two tasks a worker keep everyone busy without pickling the whole plan at once.
        running = _submit(pool, build, islice(queue, 2 * workers))
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                result = future.result()
                if result.refused and on_bad == "fail":
                    queue = iter(())
                yield result
            running |= _submit(pool, build, islice(queue, len(done)))
    except BaseException as error:
        for worker in multiprocessing.active_children():
            worker.terminate()
        if isinstance(error, BrokenProcessPool):
            raise WorkerError(
                "a worker process was killed, perhaps for want of memory; use fewer --workers or a smaller --size-limit"
            ) from error
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def build_shard(
    task: ShardTask, *, source: Source, output: Output, on_bad: OnBad, size_limit_bytes: int
) -> ShardResult:
    """Read, check and encode the images of one shard, and write it. Holds one shard in memory, never more."""
    result = ShardResult(task.split, task.index, images=len(task.samples))
    encoded: list[bytes] = []
    for sample_id, sample in task.samples:
        path = printable_key(sample.key)
        try:
            image = check_image(_read(source, sample.key))
        except BadImage as error:
            result.refused.append(RefusedFile(id=sample_id, path=path, label=sample.label, reason=str(error)))
            continue
        encoded.append(encode_sample(sample_id, image.data, sample.label))
        _record(result, sample_id, sample, image)
    if encoded and not (result.refused and on_bad == "fail"):
        name = shard_name(task.index)
        shard = _encode(encoded, size_limit_bytes)
        output.write(f"{task.split}/{name}", shard)
        result.entry = index_entry(name, shard, samples=len(encoded), size_limit_bytes=size_limit_bytes)
    return result


def _record(result: ShardResult, sample_id: int, sample: Sample, image: Checked) -> None:
    result.kept.append(KeptImage(sample.label, image.width_px, image.height_px, len(image.data)))
    if image.action:
        path = printable_key(sample.key)
        result.mended.append(MendedFile(id=sample_id, path=path, label=sample.label, what=image.action))


def _read(source: Source, key: str) -> bytes:
    try:
        return source.read(key)
    except OSError as error:  # a failing disk must not pass for a bad image, which --on-bad skip would leave out
        raise WorkerError(f"cannot read {printable_key(key)}: {error.strerror}") from error


def _encode(samples: Sequence[bytes], size_limit_bytes: int) -> bytes:
    try:
        return encode_shard(samples, size_limit_bytes)
    except OverflowError as error:
        raise WorkerError(str(error)) from error


def _submit(pool: ProcessPoolExecutor, build: Any, tasks: Iterable[ShardTask]) -> set[Future[ShardResult]]:
    """Submit tasks. Workers are born in here with Ctrl-C blocked, which a terminal sends to every process:
    the parent alone answers it, and ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return {pool.submit(build, task) for task in tasks}
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
