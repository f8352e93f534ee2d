"""Loader processes and their rank: who waited for whom, copies ahead of their use, and memory that is used again."""

import gc
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.utils.data import DataLoader

from imagestream.data.batches import RawBatch
from imagestream.data.buffers import SharedBlocks
from imagestream.data.labels import Labels
from imagestream.data.watchdog import StallWatch
from imagestream.data.worker import become_worker, remember


class TimedLoader(DataLoader[Any]):
    """A DataLoader of `RawBatch`es that knows how long its rank has waited for it, and when that is too long.

    Attributes:
        waited_seconds: of the rank, so far.
        copied_seconds: of the rank, handing batches to the device, so far.
        stage_seconds: [waiting for shards, reading, decoding] of all its workers together, so far.
        device: where batches go, if copies are to go ahead of their use.
        blocks: the memory in which workers hand over images.
        labels: which of them there may be, and what they mean; None: any, as they are.
    """

    waited_seconds = copied_seconds = 0.0
    stage_seconds: torch.Tensor = torch.zeros(3, dtype=torch.float64)
    watch: AbstractContextManager[None] = nullcontext()
    device: torch.device | None = None
    blocks = SharedBlocks(0, 0)
    labels: Labels | None = None

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # torch promises its own iterator class
        return self.raw_batches()

    def raw_batches(self) -> Iterator[RawBatch]:
        """Yield what the workers send, checked and counted; on a GPU, copied there ahead of its use."""
        batches = self._batches()
        return batches if self.device is None else copied_ahead(batches, self.device)

    def _batches(self) -> Iterator[RawBatch]:
        with self.watch:
            batches = super().__iter__()
        remember(getattr(batches, "_workers", ()))
        while True:
            self.blocks.give_back()
            start = time.perf_counter()
            try:
                with self.watch:
                    batch = next(batches)
            except StopIteration:
                return
            self.waited_seconds += time.perf_counter() - start
            self.stage_seconds = self.stage_seconds + batch.stage_s
            if self.labels is not None:  # here, before a copy to the GPU: to look at them there makes it wait
                batch = batch._replace(labels=self.labels(batch.labels))
            yield batch
            del batch  # or its memory would be in use until the next one is here


def copied_ahead(batches: Iterable[RawBatch], device: torch.device) -> Iterator[RawBatch]:
    """Yield batches that are on a CUDA device, the copy of each begun before the step of the one before it.

    The copies run in a stream of their own, beside the step's kernels. Each batch is asked for a step early, which is
    why workers keep one more ready.
    """
    stream = torch.cuda.Stream(device)
    ahead: RawBatch | None = None
    for batch in batches:
        with torch.cuda.stream(stream):
            images, labels = (part.to(device, non_blocking=True) for part in (batch.images, batch.labels))
        if ahead is not None:
            yield _handed_over(ahead, stream, device)
        ahead = batch._replace(images=images, labels=labels)
    if ahead is not None:
        yield _handed_over(ahead, stream, device)


def _handed_over(batch: RawBatch, stream: "torch.cuda.Stream", device: torch.device) -> RawBatch:
    """Have the step's stream wait for the copy, and the allocator for the step before the memory is used again."""
    now = torch.cuda.current_stream(device)
    now.wait_stream(stream)
    for part in (batch.images, batch.labels):
        part.record_stream(now)
    return batch


def start_worker(watch: StallWatch, worker: int) -> None:
    """Set up a loader process; called in it, by DataLoader."""
    become_worker()
    gc.freeze()  # what the rank has made stays: to look through it copies the memory of a forked process, for 0.3 s
    torch.set_num_threads(1)  # workers are the parallelism; threads in each would fight over the cores
    watch.report_on_signal(worker)
