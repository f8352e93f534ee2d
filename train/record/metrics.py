"""The figures of a run's steps, and where they go: metrics.csv, TensorBoard, W&B and MLflow.

Every step has one row, and every row goes to each place once, under the names of `metrics_csv.FIGURES` and the number
of batches that are done, however often the run is killed and takes steps again. metrics.csv has all rows up to each
checkpoint; a place that lacks some, as on another machine, gets them from there.
"""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import torch
from composer.core import Callback, State
from composer.loggers import Logger

from imagestream.data.timed_loader import TimedLoader
from imagestream.storage.errors import PlaceError
from train.config.run_config import ConfigError
from train.ranks import raise_first_of_any_rank
from train.record.metrics_csv import FIGURES, MetricsFile
from train.record.run_record import RunRecord
from train.step.statistics import Step, StepStatistics

STEPS_OF_A_SPEED = 50
SECONDS_BETWEEN_LOOKS_AT_MEMORY = 1.0

Figures = dict[str, float]
Reader = Callable[[int, Figures], None]


class Curves(Protocol):
    """A place for the figures, beside metrics.csv. It gets each step's figures once, complete, in their order."""

    def begin(self, batch: int) -> int:
        """Make ready for a run that resumes after `batch`; return the last step whose figures are there, 0 for none."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add a step's figures."""

    def save(self, batch: int) -> None:
        """Have all that was logged in safety: a checkpoint follows, after `batch`."""

    def flush(self) -> None:
        """Have all that was logged where people look."""

    def close(self, *, is_finished: bool) -> None:
        """Let go; the run is at its end, or continues in another process."""


class Metrics(Callback):
    """Collects each step's figures on rank 0, and hands them on.

    It asks nothing of the device: losses come from StepStatistics, a step late.

    Args:
        record: of the run, which is told of an evaluation before this.
        table: metrics.csv; None on other ranks than the first.
        curves: the other places.
    """

    def __init__(
        self,
        record: RunRecord,
        statistics: StepStatistics,
        *,
        steps_per_epoch: int,
        table: MetricsFile | None,
        curves: Sequence[Curves],
    ) -> None:
        self._record, self._steps_per_epoch = record, steps_per_epoch
        self._table, self._curves = table, list(curves)
        self._there: list[int] = [0] * len(self._curves)
        self._readers: list[Reader] = []
        self._pace, self._memory = Pace(), _Memory()
        self._half: dict[int, Figures] = {}  # what is known of steps of which the other half is not
        self._open: tuple[int, Figures] | None = None  # the last row, which an evaluation may still add to
        self._image_px = 0
        self._is_finished = False
        if table is not None:
            statistics.tell(self._take_loss)

    def tell(self, reader: Reader) -> None:
        """Have each step's figures handed to `reader`, on rank 0, once its loss is known."""
        self._readers.append(reader)

    @contextlib.contextmanager
    def kept(self, batch: int) -> Iterator[None]:
        """Take up the run's figures after `batch`, and put them in safety at the end, whatever ends the run.

        Entering is collective.

        Raises:
            ConfigError, PlaceError: a place cannot be logged to; on all ranks alike.
        """
        error: Exception | None = None
        try:
            self._begin(batch)
        except (ConfigError, PlaceError) as caught:
            error = caught
        raise_first_of_any_rank(error)
        try:
            yield
        finally:
            self._end()

    def _begin(self, batch: int) -> None:
        if self._table is None:
            return
        self._table.begin(batch, has_evaluation=self._record.is_evaluated(batch))
        for at, curve in enumerate(self._curves):
            self._there[at] = curve.begin(batch)
        for step, values in self._table.rows(after=min([batch - 1, *self._there])):
            self._begin_row(step, values)

    def _end(self) -> None:
        if self._is_finished:
            self._close_row()
        if self._table is not None:
            self._table.close()
        for curve in self._curves:
            curve.close(is_finished=self._is_finished)

    def save(self, batch: int) -> None:
        """Put the figures up to `batch` in safety, before a checkpoint is stored; on rank 0."""
        if self._table is not None:
            self._table.save()
        for curve in self._curves:
            curve.save(batch)

    def finish(self) -> None:
        """Say that the run is at its end: no more can come to its last step."""
        self._is_finished = True

    # What Composer calls -----------------------------------------------------------------------------------------

    def before_dataloader(self, state: State, logger: Logger) -> None:
        self._pace.start()

    def after_dataloader(self, state: State, logger: Logger) -> None:
        self._image_px = int(state.batch[0].shape[-1])

    def batch_end(self, state: State, logger: Logger) -> None:
        if self._table is None:
            return
        images = int(state.timestamp.sample - (state.previous_timestamp or state.timestamp).sample)
        self._pace.stop(images, state.dataloader)
        step = int(state.timestamp.batch)
        self._join(
            step,
            {
                "epoch": round(step / self._steps_per_epoch, 4),
                "image_px": self._image_px,
                **self._pace.figures(),
                **self._memory.figures(),
            },
        )

    def eval_end(self, state: State, logger: Logger) -> None:
        if self._table is None:
            return
        found = self._record.evaluations[-1]
        step, values = self._open or (0, {})
        if step != found["batch"]:
            step, values = found["batch"], {}
        values |= {f"val/{name}": found[name] for name in ("loss", "top1", "top5")}
        self._begin_row(step, values)
        self._table.put(step, values)
        for curve in self._curves:
            curve.flush()

    def _take_loss(self, step: Step) -> None:
        self._join(step.batch + 1, {"train/loss": step.loss, "lr": step.learning_rate})

    def _join(self, step: int, values: Figures) -> None:
        """Take one half of a step's figures; its loss is known before its end, or at the end of the next."""
        other = self._half.pop(step, None)
        if other is None:
            self._half[step] = values
            return
        row = other | values
        assert self._table is not None
        self._begin_row(step, row)
        self._table.put(step, row)
        for reader in self._readers:
            reader(step, row)

    def _begin_row(self, step: int, values: Figures) -> None:
        if self._open and self._open[0] != step:
            self._close_row()
        self._open = (step, values)

    def _close_row(self) -> None:
        if self._open is None:
            return
        (step, found), self._open = self._open, None
        values = {name: found[name] for name in FIGURES if name in found}
        for there, curve in zip(self._there, self._curves, strict=True):
            if step > there:
                curve.log(step, values)


class Pace:
    """How fast the last steps were, from asking for a batch to the end of its step: without evaluations and saves."""

    def __init__(self) -> None:
        self._steps: deque[tuple[int, float, float]] = deque(maxlen=STEPS_OF_A_SPEED)  # images, seconds, waited
        self._asked_at = time.perf_counter()
        self._waited = 0.0

    def start(self) -> None:
        self._asked_at = time.perf_counter()

    def stop(self, images: int, loader: object) -> None:
        """Note a step's images, over all ranks, and its time on this one."""
        waited = loader.waited_seconds if isinstance(loader, TimedLoader) else 0.0
        self._steps.append((images, time.perf_counter() - self._asked_at, waited - self._waited))
        self._waited = waited

    def figures(self) -> Figures:
        images, seconds, waited = (sum(part) for part in zip(*self._steps, strict=True))
        if not seconds:
            return {}
        return {"images_per_sec": round(images / seconds, 1), "data_wait_fraction": round(waited / seconds, 3)}


class _Memory:
    """The most memory of its GPU that this process has held, in GB of 10^9 bytes; nothing without a GPU."""

    def __init__(self) -> None:
        self._figures: Figures = {}
        self._seen_at = -SECONDS_BETWEEN_LOOKS_AT_MEMORY

    def figures(self) -> Figures:
        """Return the figure; it is the host's own, so that nobody waits for the device."""
        now = time.monotonic()
        if torch.cuda.is_initialized() and now - self._seen_at >= SECONDS_BETWEEN_LOOKS_AT_MEMORY:
            self._figures = {"memory_gb": round(torch.cuda.max_memory_reserved() / 1e9, 2)}
            self._seen_at = now
        return self._figures
