"""Who takes part in benchmarks/step.py at a size, and what is measured of each in turn."""

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from composer.core import DataSpec
from composer.devices import Device
from composer.utils import dist
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.step_counts import BEFORE_THE_STEP, Counts, Probe, StepParts
from benchmarks.step_loops import LOOPS, Contestant
from benchmarks.step_probes import LEAD, GpuTimes, HostTimes, Rate
from benchmarks.step_trainers import CLASSES, Batches, composers_own, trainer_of
from train.config.run_config import Config
from train.resume.gradient_buckets import fix_gradient_buckets

OURS, COMPOSER = "ours", "composer"
STEPS_ALONE = 8  # of a round, for the host's and for the GPU's time


class OfTrainer(Contestant):
    """Our trainer, or plain Composer's.

    Args:
        kind: of benchmarks.step_trainers.KINDS.
    """

    def __init__(self, name: str, kind: str, cfg: Config, batch: tuple[Tensor, Tensor], device: Device) -> None:
        self.name, self._kind, self._device = name, kind, device
        self._batches = Batches(batch, 1)
        self._parts = StepParts(Probe())
        spec = DataSpec(self._batches, get_num_samples_in_batch=lambda batch: len(batch[1]))
        with self._functions():
            self._trainer = trainer_of(kind, cfg, spec, device, callbacks=[self._parts], is_fused=True)
        if kind == OURS:
            fix_gradient_buckets(self._trainer.state.model)

    def _functions(self) -> Any:
        return composers_own(self._device, is_on=self._kind == COMPOSER)

    def run(self, steps: int, probe: Probe) -> None:
        self._batches.count = self._trainer.state.dataloader_len = steps
        self._parts.probe = probe
        with self._functions():
            self._trainer.fit(duration="1ep")

    def close(self) -> None:
        self._trainer.close()


@dataclass
class Measured:
    """What was found of a contestant at a size.

    Attributes:
        rates: images/s over all ranks, of each round.
        host: seconds of the host a step by part, of each round: its median step.
        gpu_s: of the GPU a step, of each round: its median step.
        counts: of a step, mean of those that were counted.
        peak_bytes: of its own on the GPU: what it holds, and what a step adds; without a graph's own pool.
    """

    contestant: Contestant
    name: str
    px: int
    held_bytes: int
    rates: list[float] = field(default_factory=list)
    host: list[dict[str, float]] = field(default_factory=list)
    gpu_s: list[float] = field(default_factory=list)
    counts: dict[str, float] = field(default_factory=dict)
    peak_bytes: int = 0


def contest(
    makers: Sequence[tuple[str, Callable[[], Contestant]]],
    px: int,
    *,
    images: int,
    steps: int,
    warm_up: int,
    counted: int,
    rounds: int,
) -> list[Measured]:
    """Measure all contestants at one size: every one in every round, in turning order.

    Args:
        images: of a step on one rank.
    """
    entered = [
        found for name, make in makers if (found := enter(name, make, px, warm_up=warm_up, counted=counted)) is not None
    ]
    for number in tqdm(range(rounds), unit=" rounds", desc=f"{px} px", disable=None):
        for measured in entered if number % 2 else entered[::-1]:
            measure(measured, images=images, steps=steps)
    for measured in entered:
        measured.contestant.close()
        del measured.contestant
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return entered


def enter(name: str, make: Callable[[], Contestant], px: int, *, warm_up: int, counted: int) -> Measured | None:
    """Build a contestant, warm it up and count its steps; None: it failed, and the others continue without it."""
    before, started = held_bytes(), time.perf_counter()
    try:
        contestant = make()
        contestant.run(LEAD + warm_up, Probe())
        measured = Measured(contestant, name, px, held_bytes() - before)
        measured.counts = counts_of(contestant, counted)
    except RuntimeError as error:  # most often torch.OutOfMemoryError
        tqdm.write(f"{name} at {px} px: left out, {type(error).__name__}: {str(error).splitlines()[0]}")
        gc.collect()
        torch.cuda.empty_cache()
        return None
    if dist.get_global_rank() == 0:
        tqdm.write(f"{name} at {px} px: ready after {time.perf_counter() - started:.0f} s")
    return measured


def counts_of(contestant: Contestant, steps: int) -> dict[str, float]:
    """Return what a step launches and waits for: mean over `steps` of them, between a first one and a last one."""
    probe = Counts()
    contestant.run(steps + 2, probe)
    work = contestant.work
    each = [totals(found) | ({key: work[key] for key in WORK} if work else {}) for found in probe.steps[1:-1]]
    keys = dict.fromkeys(key for found in each for key in found)  # averages are updated in some steps alone
    return {key: statistics.mean(found.get(key, 0) for found in each) for key in keys}


WORK = ("flops", "moved_bytes")


def totals(found: dict[str, Any]) -> dict[str, float]:
    """Sum a step's counts over its parts."""
    return {
        "launches": sum(found["launches"].values()),
        "collectives": sum(found["collectives"].values()),
        "waits": sum(found["waits"].values()),
        "waits_before_step": sum(found["waits"].get(part, 0) for part in BEFORE_THE_STEP),
        **{f"launches_{part}": count for part, count in found["launches"].items()},
        **{key: found[key] for key in WORK},
    }


def measure(measured: Measured, *, images: int, steps: int) -> None:
    """One round of one contestant."""
    contestant = measured.contestant
    is_gpu = torch.cuda.is_available()
    if is_gpu:
        torch.cuda.reset_peak_memory_stats()
    before = held_bytes()
    rate = Rate(LEAD + steps)
    contestant.run(LEAD + steps, rate)
    if is_gpu:
        own = torch.cuda.max_memory_allocated() - before + measured.held_bytes
        measured.peak_bytes = max(measured.peak_bytes, own)
    measured.rates.append(images * dist.get_world_size() / rate.seconds_a_step)
    host = HostTimes()
    contestant.run(LEAD + STEPS_ALONE, host)
    measured.host.append(median_step(host.steps))
    if is_gpu:
        gpu = GpuTimes()
        contestant.run(LEAD + STEPS_ALONE, gpu)
        measured.gpu_s.append(statistics.median(gpu.seconds))


def median_step(steps: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the times of the step that took the host the middle one of all."""
    return sorted(steps, key=lambda parts: sum(parts.values()))[len(steps) // 2]


def held_bytes() -> int:
    """Return what is in use of the GPU's memory; 0 without one."""
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0


def loop(name: str, model: str, batch: tuple[Tensor, Tensor], precision: str) -> Contestant:
    """Return a loop of benchmarks.step_loops."""
    kind, network = LOOPS[name]
    torch.manual_seed(0)
    module: nn.Module = network(model, CLASSES)
    return kind(module, batch, precision)
