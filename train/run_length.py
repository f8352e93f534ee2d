"""Does everything in a recipe take effect before the run ends?

Composer 0.32.1 starts an average after the last batch, or drops the learning rate there, without a word: the run ends
well and is not the one that was asked for. When such a thing happens depends on the steps of an epoch, so it is known
only once the dataset is.
"""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from math import lcm, log

from train.config.algorithms import EMA, SAM, SWA, ProgressiveResizing, ResolutionRamp
from train.config.run_config import Config
from train.config.sections import StepSchedule
from train.resolution import Resolution


@dataclass(frozen=True)
class RunLength:
    """The length of a run, and when Composer looks at the clock.

    Args:
        max_duration: as configured: `90ep` or `500ba`.
    """

    max_duration: str
    steps_per_epoch: int

    @property
    def steps(self) -> int:
        length = int(self.max_duration[:-2])
        return length * self.steps_per_epoch if self.max_duration.endswith("ep") else length

    def in_steps(self, time: str) -> float:
        """Return the step at which `8ep`, `500ba` or `0.1dur` is over."""
        if time.endswith("dur"):
            return float(time[:-3]) * self.steps
        return int(time[:-2]) * (self.steps_per_epoch if time.endswith("ep") else 1)

    def ends(self, unit: str) -> range:
        """Return the steps after which an epoch (`ep`) or a batch (`ba`) has ended."""
        each = self.steps_per_epoch if unit == "ep" else 1
        return range(each, self.steps + 1, each)

    def has_come(self, time: str, step: int, unit: str) -> bool:
        """Return whether Composer takes `time` to have come when a batch or an epoch ends with `step`.

        At the end of a batch it has not counted the epoch that ends with it, and where the run's length is in epochs,
        `dur` is counted in whole ones (`State.get_elapsed_duration`).
        """
        epochs = step // self.steps_per_epoch if unit == "ep" else (step - 1) // self.steps_per_epoch
        if time.endswith("ba"):
            return step >= int(time[:-2])
        if time.endswith("ep"):
            return epochs >= int(time[:-2])
        whole_epochs = self.max_duration.endswith("ep")
        elapsed = epochs / int(self.max_duration[:-2]) if whole_epochs else step / self.steps
        return elapsed >= float(time[:-3])

    def first_end(self, time: str, unit: str) -> int:
        """Return the place in `ends` from which `time` has come; their number if it never does."""
        return bisect_left(self.ends(unit), True, key=lambda step: self.has_come(time, step, unit))

    def __str__(self) -> str:
        return f"{self.max_duration}, {self.steps:,} batches of which {self.steps_per_epoch:,} are an epoch"


def what_comes_too_late(cfg: Config, steps_per_epoch: int) -> list[str]:
    """Return a line for each part of the recipe that the run ends before. A short try of a long recipe has some."""
    length = RunLength(cfg.max_duration, steps_per_epoch)
    faults = [*_faults_of_schedule(cfg, length)]
    for place, algorithm in enumerate(cfg.algorithms):
        fault = ""
        if isinstance(algorithm, EMA):
            fault = _fault_of_ema(algorithm, length)
        elif isinstance(algorithm, SWA):
            fault = _fault_of_swa(algorithm, length)
        elif isinstance(algorithm, SAM) and algorithm.interval > length.steps:
            fault = f"interval: {algorithm.interval:,} is too long: no step would be SAM's"
        elif isinstance(algorithm, ProgressiveResizing):
            fault = _fault_of_growth(algorithm, cfg.data.crop_size, length)
        elif isinstance(algorithm, ResolutionRamp) and algorithm.end_epoch * steps_per_epoch >= length.steps:
            fault = f"end_epoch: {algorithm.end_epoch} comes too late: no batch would have data.crop_size"
        if fault:
            faults.append(f"algorithms.{place}.{fault}")
    if fault := _fault_of_keeping(cfg, length):
        faults.append(fault)
    return [f"{fault} (the run: {length})" for fault in faults]


def _fault_of_keeping(cfg: Config, length: RunLength) -> str:
    """An evaluation is of a checkpoint where both come after the same batch; at the end of the run both do."""
    saves, evaluations = int(length.in_steps(cfg.checkpoint.save_interval)), int(length.in_steps(cfg.eval_interval))
    if cfg.checkpoint.keep_best is None or evaluations >= length.steps or lcm(saves, evaluations) < length.steps:
        return ""
    return (
        f"checkpoint.keep_best: no checkpoint but the last is evaluated: they are saved every {saves:,} batches "
        f"(checkpoint.save_interval) and evaluated every {evaluations:,} (eval_interval); let one divide the other"
    )


def _faults_of_schedule(cfg: Config, length: RunLength) -> Iterator[str]:
    warmup = cfg.scheduler.t_warmup
    if length.in_steps(warmup) > length.steps:
        yield f"scheduler.t_warmup: '{warmup}' is longer than the run: the learning rate would not reach optimizer.lr"
    for time in cfg.scheduler.milestones if isinstance(cfg.scheduler, StepSchedule) else ():
        if length.in_steps(time) >= length.steps:
            yield f"scheduler.milestones: '{time}' comes too late: the learning rate would not drop there"
        elif length.in_steps(time) < length.in_steps(warmup):
            yield f"scheduler.milestones: '{time}' lies in the warm-up, which takes {warmup}; let it come after that"


def _fault_of_growth(resizing: ProgressiveResizing, crop_size: int, length: RunLength) -> str:
    sizes = Resolution(crop_size, length.steps_per_epoch, length.max_duration, resizing)
    last = sizes(length.steps - 1)
    if last > sizes(0):
        return ""
    how = (
        "in a run of epochs they grow from epoch to epoch" if length.max_duration.endswith("ep") else "the run is short"
    )
    return f"delay_fraction: {resizing.delay_fraction:g} is too long: all images would have {last} px; {how}"


def _fault_of_ema(ema: EMA, length: RunLength) -> str:
    interval = ema.update_interval or f"1{str(ema.half_life)[-2:]}"
    ends, first = length.ends(interval[-2:]), length.first_end(ema.ema_start, interval[-2:])
    if len(ends) < 2:
        return f"update_interval: '{interval}' is too long: nothing would be averaged"
    if first >= len(ends) - 1:
        return f"ema_start: '{ema.ema_start}' comes too late: nothing would be averaged"
    start = ends[first]
    interval_steps = int(length.in_steps(interval))
    if length.steps // interval_steps * interval_steps <= start:
        return f"update_interval: '{interval}' is too long: the average would stay at the weights after batch {start:,}"
    key, value = ("half_life", ema.half_life) if ema.half_life else ("smoothing", ema.smoothing)
    if _half_life_steps(ema, length, interval_steps) > length.steps:
        return f"{key}: {value} is too long: most of the average would be the weights after batch {start:,}"
    return ""


def _half_life_steps(ema: EMA, length: RunLength, interval_steps: int) -> float:
    if ema.half_life:
        return length.in_steps(ema.half_life)
    assert ema.smoothing is not None
    return interval_steps * log(0.5) / log(ema.smoothing)


def _fault_of_swa(swa: SWA, length: RunLength) -> str:
    unit = swa.update_interval[-2:]
    ends = length.ends(unit)
    start, end = length.first_end(swa.swa_start, unit), length.first_end(swa.swa_end, unit)
    if not ends:
        return f"update_interval: '{swa.update_interval}' is longer than the run: nothing would be averaged"
    if start == len(ends):
        return f"swa_start: '{swa.swa_start}' comes too late: nothing would be averaged"
    if end == len(ends):
        return f"swa_end: '{swa.swa_end}' comes too late: the mean would never replace the weights"
    if end - start < int(swa.update_interval[:-2]):
        return f"update_interval: '{swa.update_interval}' is too long: the mean would be of one set of weights alone"
    return ""
