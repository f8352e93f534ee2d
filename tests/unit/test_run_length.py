"""What would come too late for a run is said before it begins; `has_come` counts as Composer does."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from composer.core import State, Time, Timestamp

from train.config.run_config import load_config
from train.run_length import RunLength, what_comes_too_late

TINY = Path(__file__).parents[2] / "yamls" / "tiny.yaml"
SWA = "name: swa, swa_start: 0.3dur, swa_end: 0.9dur"

FAULTS = {
    ("scheduler.t_warmup=1ep",): "scheduler.t_warmup: '1ep' is longer than the run: the learning rate would not reach",
    (
        "scheduler={name: steps_with_warmup, alpha_f: 0.1, t_warmup: 0ba, milestones: [2ep]}",
        "max_duration=2ep",
    ): "scheduler.milestones: '2ep' comes too late: the learning rate would not drop there",
    (
        "scheduler={name: steps_with_warmup, alpha_f: 0.1, t_warmup: 1ep, milestones: [7ba]}",
        "max_duration=2ep",
    ): "scheduler.milestones: '7ba' lies in the warm-up, which takes 1ep",
    ("algorithms=[{name: ema, half_life: 2ba, ema_start: 1dur}]",): "algorithms.0.ema_start: '1dur' comes too late",
    ("algorithms=[{name: ema, half_life: 2ba, ema_start: 1ep}]",): "algorithms.0.ema_start: '1ep' comes too late",
    (
        "algorithms=[{name: ema, half_life: 2ba, update_interval: 5ba}]",
    ): "algorithms.0.update_interval: '5ba' is too long: the average would stay at the weights after batch 1",
    ("algorithms=[{name: ema, half_life: 1ep}]",): "algorithms.0.update_interval: '1ep' is too long",
    (
        "algorithms=[{name: ema, half_life: 5ba}]",
    ): "algorithms.0.half_life: 5ba is too long: most of the average would be the weights after batch 1",
    (
        "algorithms=[{name: ema, smoothing: 0.9, update_interval: 1ba}]",
    ): "algorithms.0.smoothing: 0.9 is too long: most of the average",
    (f"algorithms=[{{{SWA}}}]",): "algorithms.0.update_interval: '1ep' is longer than the run",
    (
        f"algorithms=[{{{SWA}, update_interval: 2ba}}]",
        "max_duration=2ep",
    ): "algorithms.0.swa_end: '0.9dur' comes too late: the mean would never replace the weights",
    (
        "algorithms=[{name: swa, swa_start: 2ep, swa_end: 3ep}]",
        "max_duration=1ep",
    ): "algorithms.0.swa_start: '2ep' comes too late: nothing would be averaged",
    (
        f"algorithms=[{{{SWA}, update_interval: 3ba}}]",
    ): "algorithms.0.update_interval: '3ba' is too long: the mean would be of one set of weights alone",
    (
        *("checkpoint.save_interval=7ba", "eval_interval=1ep", "checkpoint.keep_best=top1", "max_duration=3ep"),
    ): "checkpoint.keep_best: no checkpoint but the last is evaluated: they are saved every 7 batches",
    ("algorithms=[{name: sam, interval: 5}]",): "algorithms.0.interval: 5 is too long: no step would be SAM's",
    (
        "algorithms=[{name: resolution_ramp, start_px: 32, start_epoch: 0, end_epoch: 1}]",
        "data.crop_size=64",
    ): "algorithms.0.end_epoch: 1 comes too late: no batch would have data.crop_size",
    (
        "algorithms=[{name: progressive_resizing, initial_scale: 0.5}]",
        "max_duration=1ep",
    ): "algorithms.0.delay_fraction: 0.5 is too long: all images would have 24 px; in a run of epochs they grow",
}
GOOD = [
    ("checkpoint.save_interval=5ba", "eval_interval=1ep", "checkpoint.keep_best=top1", "max_duration=3ep"),
    ("checkpoint.save_interval=4ba", "eval_interval=1ep", "checkpoint.keep_best=top1", "max_duration=3ep"),  # after 20
    ("checkpoint.save_interval=7ba", "eval_interval=1ep", "checkpoint.keep_best=top1", "max_duration=1ep"),
    ("checkpoint.save_interval=7ba", "eval_interval=1ep", "max_duration=3ep"),
    ("algorithms=[{name: ema, half_life: 2ba}]",),
    ("algorithms=[{name: ema, half_life: 4ba, update_interval: 2ba}]",),
    ("algorithms=[{name: ema, half_life: 1ep}]", "max_duration=2ep"),
    (f"algorithms=[{{{SWA}, update_interval: 1ba}}]",),
    (f"algorithms=[{{{SWA}}}]", "max_duration=4ep"),
    ("algorithms=[{name: swa}]", "max_duration=10ep"),
    ("scheduler={name: steps_with_warmup, alpha_f: 0.1, t_warmup: 1ep, milestones: [1ep]}", "max_duration=2ep"),
    ("max_duration=999999999ep", "algorithms=[{name: ema, half_life: 2ba, ema_start: 0.9dur}]"),
]


def found(*overrides: str) -> list[str]:
    more = ["scheduler.t_warmup=0ba", "algorithms=[]", "max_duration=4ba", *overrides]
    return what_comes_too_late(load_config(TINY, more, check_paths=False), steps_per_epoch=10)


@pytest.mark.parametrize("overrides", FAULTS, ids=str)
def test_what_comes_too_late_is_named_with_the_length_of_the_run(overrides: tuple[str, ...]) -> None:
    (line,) = found(*overrides)
    assert line.startswith(FAULTS[overrides])
    assert line.endswith("batches of which 10 are an epoch)")


@pytest.mark.parametrize("overrides", GOOD, ids=str)
def test_of_what_takes_effect_nothing_is_said(overrides: tuple[str, ...]) -> None:
    assert found(*overrides) == []


@pytest.mark.parametrize("recipe", sorted(TINY.parent.rglob("*.yaml")), ids=lambda path: path.stem)
def test_each_recipe_takes_effect_on_imagenet(recipe: Path) -> None:
    cfg = load_config(recipe, ["data.local=none"], check_paths=False)
    assert what_comes_too_late(cfg, steps_per_epoch=1_281_167 // cfg.global_batch_size) == []


@pytest.mark.parametrize("max_duration", ["25ba", "3ep"])
@pytest.mark.parametrize("time", ["0.3dur", "0.5dur", "1dur", "1ep", "2ep", "7ba"])
def test_the_clock_is_composers(max_duration: str, time: str) -> None:
    """As `Trainer._train_loop` moves it: at the end of a batch the epoch that ends with it is not counted yet."""
    length, stamp = RunLength(max_duration, 10), Timestamp()
    for step in range(1, length.steps + 1):
        stamp = stamp.to_next_batch()
        assert length.has_come(time, step, "ba") == composer_says(time, stamp, max_duration), step
        if step % 10 == 0:
            stamp = stamp.to_next_epoch()
            assert length.has_come(time, step, "ep") == composer_says(time, stamp, max_duration), step


def composer_says(time: str, stamp: Timestamp, max_duration: str) -> bool:
    wanted = Time.from_timestring(time)
    state: Any = SimpleNamespace(timestamp=stamp, max_duration=Time.from_timestring(max_duration))
    now = State.get_elapsed_duration(state) if time.endswith("dur") else stamp.get(wanted.unit)
    assert now is not None
    return bool(now >= wanted)
