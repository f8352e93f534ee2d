"""How far a run is: one bar for all of it on a terminal, and a line now and then elsewhere."""

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TextIO

from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist
from tqdm import tqdm

from train.record.metrics import Figures, Metrics
from train.record.price import price_of_an_hour
from train.record.run_record import RunRecord

log = logging.getLogger(__name__)

SECONDS_BETWEEN_DRAWINGS = 0.1
WIDTH_ELSEWHERE = 120  # characters, where there is no terminal that says how many it has
LEAST_BAR = 10


class Part(NamedTuple):
    """A part of the bar's text; of those that do not fit, the ones with the highest rank are left out first."""

    text: str
    rank: int


class Now(NamedTuple):
    """What the bar shows: steps that are done, and what stands before it and after it."""

    step: int
    head: Sequence[Part]
    tail: Sequence[Part]


class Progress(Callback):
    """Shows epoch, step, loss, learning rate, images/s, memory and the time that is left, on rank 0.

    The figures are Metrics', of the last step whose loss is known, so that nobody waits for the device.

    Args:
        record: of the run, which is told of an evaluation before this.
        has_bar: whether there is a bar.
        line_every_steps: without one, steps between lines; None: there are none.
    """

    def __init__(
        self,
        metrics: Metrics,
        record: RunRecord,
        *,
        total_steps: int,
        steps_per_epoch: int,
        has_bar: bool,
        line_every_steps: int | None,
    ) -> None:
        self._record, self._total, self._per_epoch = record, total_steps, steps_per_epoch
        self._is_shown = dist.get_global_rank() == 0
        self._has_bar, self._every = has_bar and self._is_shown, line_every_steps
        self._bar: RunBar | None = None
        self._step, self._figures, self._accuracy = 0, Figures(), ""
        self._evaluated = ""  # how far an evaluation is that is under way
        self._clock = Clock()
        self._has_told = False
        metrics.tell(self._take)

    @contextlib.contextmanager
    def shown(self, batch: int) -> Iterator[None]:
        """Show the run's progress after `batch`, and below that nothing else any more at the end."""
        self._step = batch
        if not self._has_bar:
            yield
            return
        with RunBar(self._total, self._now).drawn() as self._bar:
            try:
                yield
            finally:
                self._bar = None

    def _take(self, step: int, figures: Figures) -> None:
        self._step, self._figures = step, figures
        is_due = self._every is not None and (step % self._every == 0 or step == self._total or not self._has_told)
        if self._bar is None and is_due and self._is_shown:
            log.info("%s", ", ".join(part.text for part in (*self._head(), *self._tail())))
            self._has_told = True

    # What Composer calls -----------------------------------------------------------------------------------------

    def batch_end(self, state: State, logger: Logger) -> None:
        self._clock.step_is_done()
        self._draw()

    def eval_start(self, state: State, logger: Logger) -> None:
        self._evaluated = f"evaluating 0/{int(state.dataloader_len or 0):,}"
        self._clock.evaluation_begins()
        self._draw()

    def eval_batch_end(self, state: State, logger: Logger) -> None:
        self._evaluated = f"evaluating {int(state.eval_timestamp.batch):,}/{int(state.dataloader_len or 0):,}"
        self._draw()

    def eval_end(self, state: State, logger: Logger) -> None:
        self._evaluated = ""
        seconds, found = self._clock.evaluation_ends(), self._record.evaluations[-1]
        self._accuracy = f"top-1 {found['top1']:.2%}"
        if self._is_shown:
            log.info(
                "evaluated after step %s: %s, top-5 %s, loss %.4f on %s samples, in %.1f s",
                *(f"{found['batch']:,}", self._accuracy, f"{found['top5']:.2%}", found["loss"]),
                *(f"{found['samples_evaluated']:,}", seconds),
            )

    def _draw(self) -> None:
        if self._bar is not None:
            self._bar.draw()

    # What is shown -----------------------------------------------------------------------------------------------

    def _now(self) -> Now:
        return Now(self._step, self._head(), self._tail())

    def _head(self) -> list[Part]:
        epochs = -(-self._total // self._per_epoch)
        parts = [Part(f"epoch {min(epochs, max(1, -(-self._step // self._per_epoch)))}/{epochs}", 0)]
        return [*parts, Part(self._evaluated or f"step {self._step:,}/{self._total:,}", 1)]

    def _tail(self) -> list[Part]:
        left = self._clock.left(self._total - self._step)
        return [
            *parts_of(self._figures, ranks=dist.get_world_size()),
            *([Part(self._accuracy, 4)] if self._accuracy else []),
            *([Part(f"{duration(left)} left", 1)] if left is not None else []),
            *(Part(f"{price:,.2f} USD/h", 7) for price in price_of_an_hour().values()),
        ]


def parts_of(figures: Mapping[str, float], *, ranks: int) -> list[Part]:
    """Return a step's figures as a person reads them."""
    parts = []
    if "train/loss" in figures:
        parts.append(Part(f"loss {figures['train/loss']:.4f}", 0))
        parts.append(Part(f"lr {figures['lr']:.3g}", 3))
    if speed := figures.get("images_per_sec"):
        parts.append(Part(f"{speed:,.0f} images/s", 2))
        if ranks > 1:
            parts.append(Part(f"{speed / ranks:,.0f} on each of {ranks} ranks", 6))
    if "memory_gb" in figures:
        parts.append(Part(f"{figures['memory_gb']:.1f} GB", 5))
    return parts


def fitting(head: Sequence[Part], tail: Sequence[Part], width: int) -> tuple[str, str]:
    """Return the texts before the bar and after it, without the parts for which a line of `width` has no room."""
    kept = [*head, *tail]
    while True:
        before, after = (" ".join(part.text for part in side if part in kept) for side in (head, tail))
        if len(before) + len(after) + LEAST_BAR + len(" || ") <= width or len(kept) == 1:
            return before, after
        kept.remove(max(reversed(kept), key=lambda part: part.rank))


def duration(seconds: float) -> str:
    """Return a time as h:mm:ss, or m:ss."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


class Clock:
    """Tells how long the rest of a run will take: as long a step as so far in this process, evaluations included."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._first: float | None = None  # end of this process's first step, which is a slow one
        self._last = 0.0
        self._steps = 0
        self._evaluation_began = 0.0

    def step_is_done(self) -> None:
        self._last = self._now()
        if self._first is None:
            self._first = self._last
        else:
            self._steps += 1

    def evaluation_begins(self) -> None:
        self._evaluation_began = self._now()

    def evaluation_ends(self) -> float:
        """Return how long it took, in seconds."""
        self._last = self._now()
        return self._last - self._evaluation_began

    def left(self, steps: int) -> float | None:
        """Return the seconds that so many steps will take; None before there is anything to go by."""
        if self._first is None or not self._steps:
            return None
        return max(0, steps) * (self._last - self._first) / self._steps


class RunBar:
    """A bar at the bottom of a terminal; what the process prints meanwhile appears above it.

    tqdm draws it. `tqdm.contrib.logging` lifts what `logging` prints alone; here warnings and plain prints are lifted
    too. The bar has a stream of its own, so that it is not in the log file, which has all that goes to sys.stderr.

    Args:
        now: what it is to show.
    """

    def __init__(self, total: int, now: Callable[[], Now]) -> None:
        self._total, self._now = total, now
        self._drawn_at = 0.0
        self._owner = os.getpid()
        self._is_within_line = False  # something was printed that does not end its line
        self._bar: Any = None

    @contextlib.contextmanager
    def drawn(self) -> Iterator["RunBar"]:
        """Draw it, until the end of the block; then its last state stays."""
        stream = os.fdopen(os.dup(2), "w", encoding=sys.stderr.encoding or "utf-8", errors="replace")
        with contextlib.ExitStack() as stack:
            stack.callback(_close, stream)
            self._bar = _Bar(self._now, total=self._total, file=stream, mininterval=0, dynamic_ncols=True)
            stack.callback(self._bar.close)
            for printed in (sys.stdout, sys.stderr):
                stack.enter_context(self._lifted(printed))
            yield self

    def draw(self) -> None:
        """Draw the bar as it is now, unless that was just done."""
        if not self._is_within_line and time.monotonic() - self._drawn_at >= SECONDS_BETWEEN_DRAWINGS:
            self._drawn_at = time.monotonic()
            self._bar.refresh()

    @contextlib.contextmanager
    def _lifted(self, stream: TextIO) -> Iterator[None]:
        """Take the bar away while something is written to `stream`, up to the end of its line."""
        write = stream.write

        def lifted(text: str) -> int:
            if not text or os.getpid() != self._owner:  # in a loader worker, forked with this
                return write(text)
            with self._bar.get_lock():
                if not self._is_within_line:
                    self._bar.clear(nolock=True)
                written = write(text)
                stream.flush()
                self._is_within_line = not text.endswith("\n")
                if not self._is_within_line:
                    self._bar.refresh(nolock=True)
            return written

        stream.write = lifted  # type: ignore[method-assign]
        try:
            yield
        finally:
            stream.write = write  # type: ignore[method-assign]


def _close(stream: TextIO) -> None:
    with contextlib.suppress(OSError):  # the terminal is gone, and with it what it had not taken yet
        stream.close()


class _Bar(tqdm):  # type: ignore[type-arg]
    """tqdm's bar between two texts that are made anew for each drawing, as wide as the terminal then is."""

    monitor_interval = 0  # no thread that draws when nothing has changed

    def __init__(self, now: Callable[[], Now], **kwargs: Any) -> None:
        self._now = now
        super().__init__(bar_format="{before} |{bar}| {after}", **kwargs)

    @property
    def format_dict(self) -> dict[str, Any]:
        """Return what bar_format may name."""
        found, now = super().format_dict, self._now()
        width = found["ncols"] or WIDTH_ELSEWHERE
        before, after = fitting(now.head, now.tail, width)
        return {**found, "n": now.step, "ncols": width, "before": before, "after": after}
