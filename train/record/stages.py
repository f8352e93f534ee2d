"""Where the time of training steps goes: on the way from a shard to the device, and on the device."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from imagestream.data.timed_loader import TimedLoader

WAIT_THAT_COUNTS_FRACTION = 0.05  # of step time; below it the loader keeps up
WORKER_STAGES = ("shard_wait", "read", "decode")


@dataclass
class StageClock:
    """Seconds over any number of steps.

    Attributes:
        step: of the rank, from asking for a batch to the end of its step.
        wait: of them, waiting for the loader.
        copy: of them, handing a batch to the device (on a GPU the copy itself runs beside the step).
        workers: of all the rank's loader workers together, by stage; `shard_wait` is waiting until a shard is here
            and has been compared with its hash, which takes time on a local disk too.
    """

    step: float
    wait: float
    copy: float
    workers: Mapping[str, float]

    def fractions(self) -> dict[str, float]:
        """Return the rank's `data_wait`, `copy` and `device`, adding up to 1, and the workers' stages, likewise."""
        busy, step = sum(self.workers.values()), self.step
        ranks = {"data_wait": self.wait / step, "copy": self.copy / step} if step else {"data_wait": 0.0, "copy": 0.0}
        ranks["device"] = max(0.0, 1.0 - ranks["data_wait"] - ranks["copy"])
        return ranks | {stage: self.workers[stage] / busy if busy else 0.0 for stage in WORKER_STAGES}

    def bottleneck(self) -> str:
        """Return the stage that a faster run would have to begin with: one of WORKER_STAGES, `copy` or `device`."""
        found = self.fractions()
        if found["data_wait"] >= WAIT_THAT_COUNTS_FRACTION:
            return max(WORKER_STAGES, key=lambda stage: found[stage])
        return max(("copy", "device"), key=lambda stage: found[stage])

    def __str__(self) -> str:
        found = self.fractions()
        parts = [f"{100 * found[stage]:.0f}% {stage.replace('_', ' ')}" for stage in WORKER_STAGES]
        return (
            f"step time: {100 * found['data_wait']:.0f}% waiting for data, {100 * found['copy']:.0f}% copy, "
            f"{100 * found['device']:.0f}% device; loader workers: {', '.join(parts)}; bottleneck: {self.bottleneck()}"
        )


class Speed:
    """Images and seconds of the present epoch, of this process's whole run, and since the curve's last point."""

    def __init__(self) -> None:
        self._images, self._clocks = [0, 0], [_new_clock(), _new_clock()]
        self._point_images, self._point_s, self._point_wait_s = 0, 0.0, 0.0
        self._before = _new_clock()

    def add(self, images: int, seconds: float, loader: Any) -> None:
        """Add a step; the loader counts its own seconds from its start."""
        self._point_images, self._point_s = self._point_images + images, self._point_s + seconds
        so_far = _clock_of(loader)
        self._point_wait_s += so_far.wait - self._before.wait
        for scope, clock in enumerate(self._clocks):
            self._images[scope] += images
            clock.step += seconds
            clock.wait += so_far.wait - self._before.wait
            clock.copy += so_far.copy - self._before.copy
            clock.workers = {s: clock.workers[s] + so_far.workers[s] - self._before.workers[s] for s in WORKER_STAGES}
        self._before = so_far

    def take_point(self) -> dict[str, float | None]:
        """Return the images/s since the last call, and the share of that time which was spent waiting for data."""
        images, seconds, waited = self._point_images, self._point_s, self._point_wait_s
        self._point_images, self._point_s, self._point_wait_s = 0, 0.0, 0.0
        if not seconds:
            return {"images_per_sec": None, "data_wait_fraction": None}
        return {"images_per_sec": images / seconds, "data_wait_fraction": min(1.0, waited / seconds)}

    def start_epoch(self) -> None:
        self._images[0], self._clocks[0] = 0, _new_clock()

    @property
    def stages(self) -> StageClock:
        """Where the time of the present epoch went."""
        return self._clocks[0]

    @property
    def total_stages(self) -> StageClock:
        """Where the time of this process went."""
        return self._clocks[1]

    @property
    def images_per_sec(self) -> float | None:
        return self._images[0] / self.stages.step if self.stages.step else None

    @property
    def total_images_per_sec(self) -> float | None:
        return self._images[1] / self.total_stages.step if self.total_stages.step else None


def _new_clock() -> StageClock:
    return StageClock(0.0, 0.0, 0.0, dict.fromkeys(WORKER_STAGES, 0.0))


def _clock_of(loader: Any) -> StageClock:
    if not isinstance(loader, TimedLoader):
        return _new_clock()
    workers = dict(zip(WORKER_STAGES, loader.stage_seconds.tolist(), strict=True))
    return StageClock(0.0, loader.waited_seconds, loader.copied_seconds, workers)
