"""Each algorithm, and the recipes' sets of them: killed by SIGKILL and resumed, a run ends with the same weights."""

import os
import random
from pathlib import Path
from typing import Any

import pytest

from tests.integration.problem import command, record_of, what_must_match
from tests.processes import run, start

RESIZING = "{name: progressive_resizing, delay_fraction: 0.2, finetune_fraction: 0.2, size_increment: 8"
EMA = "{name: ema, half_life: 4ba, update_interval: 2ba}"
SAM = "{name: sam, interval: 2}"
DEPTH = "{name: stochastic_depth, drop_rate: 0.5, stochastic_method: "
MILD = "{name: blurpool}, {name: channels_last}, {name: label_smoothing}, " + RESIZING + "}, " + EMA

ALGORITHMS = {
    "blurpool": "{name: blurpool}",
    "channels_last": "{name: channels_last}",
    "label_smoothing": "{name: label_smoothing}",
    "resize": RESIZING + "}",
    "crop": RESIZING + ", mode: crop}",
    "decode": RESIZING + ", mode: decode}",
    "ema": EMA,
    "ema_in_epochs": "{name: ema, half_life: 1ep}",
    "mixup": "{name: mixup}",
    "mixup_of_losses": "{name: mixup, interpolate_loss: true}",
    "cutmix": "{name: cutmix}",
    "mixup_or_cutmix": "{name: mixup_or_cutmix}, {name: label_smoothing}",
    "cutout": "{name: cutout}",
    "colout": "{name: colout}",
    "depth_block": DEPTH + "block}",
    "depth_sample": DEPTH + "sample}",
    "sam": SAM,
    "swa": "{name: swa, swa_start: 0.3dur, swa_end: 0.9dur, update_interval: 2ba}",
    "squeeze_excite": "{name: squeeze_excite, min_channels: 64}",
    "randaugment": "{name: randaugment}",
    "augmix": "{name: augmix}",
    "trivial_augment": "{name: trivial_augment}, {name: random_erasing, probability: 0.5}",
    "torchvision_randaugment": "{name: torchvision_randaugment}",
    "auto_augment": "{name: auto_augment}",
    "timm_randaugment": "{name: timm_randaugment}, {name: random_erasing}",
    "three_augment": "{name: three_augment}, {name: color_jitter}",
    "clipping_by_norm": "{name: gradient_clipping, clipping_type: norm, clipping_threshold: 0.1}",
    "clipping_adaptive": "{name: gradient_clipping, clipping_type: adaptive, clipping_threshold: 0.01}",
    "mild": MILD,
    "medium": MILD + ", {name: mixup}, " + SAM,
    "hot": MILD + ", {name: mixup}, {name: randaugment, depth: 1}, {name: colout}, " + DEPTH + "sample}, " + SAM,
}
SGD = ["optimizer.name=sgd", "optimizer.decay_batchnorm=false"]
SETTINGS = {
    "sgd_in_steps": [
        *SGD,
        "scheduler.name=steps_with_warmup",
        "scheduler.milestones=[9ba, 12ba]",
        "scheduler.alpha_f=0.01",
    ],
    "nesterov_linear": [*SGD, "optimizer.nesterov=true", "scheduler.name=linear_with_warmup"],
    "accumulation": ["device_train_microbatch_size=4"],
}
"""With the mild set: optimizers, schedules, and gradients added up over microbatches."""
ALGORITHMS |= dict.fromkeys(SETTINGS, MILD)
ALGORITHMS["adamw"] = DEPTH + "block}"
SETTINGS["adamw"] = ["optimizer.name=adamw", "optimizer.lr=1e-3", "optimizer.decay_batchnorm=false"]
ALGORITHMS["lamb"] = DEPTH + "block}, {name: mixup}"
SETTINGS["lamb"] = ["optimizer.name=lamb", "optimizer.lr=5e-3", "optimizer.decay_batchnorm=false"]
ALGORITHMS["squeeze_excite_in_groups"] = ALGORITHMS["squeeze_excite"]
SETTINGS["squeeze_excite_in_groups"] = ["optimizer.decay_batchnorm=false"]
ALGORITHMS["ramp"] = "{name: resolution_ramp, start_px: 32, start_epoch: 0, end_epoch: 1, size_increment: 16}"
SETTINGS["ramp"] = ["data.crop_size=48"]
ALGORITHMS["repeats"] = "{name: trivial_augment}, {name: mixup_or_cutmix}"
SETTINGS["repeats"] = ["data.aug_repeats=2", "global_batch_size=24", "max_duration=4ep"]  # 16 steps too
SETTINGS["timm_randaugment"] = ["data.crop_interpolation=bicubic", "data.eval_interpolation=bicubic"]
SETTINGS["swa"] = ["max_duration=16ba"]  # in epochs the last batch would be at 0.5dur, and the mean never put in place

IN_EVERY_RUN = {("decode", 1, 2)}
"""What `make test` takes; `make test-exhaustive` takes all."""

CASES = [
    pytest.param(
        name,
        ranks,
        workers,
        id=f"{name}-{ranks}-{workers}",
        marks=() if (name, ranks, workers) in IN_EVERY_RUN else (pytest.mark.exhaustive,),
    )
    for name in ALGORITHMS
    for ranks in (1, 2, 3, 4)
    for workers in (0, 2)
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "ranks", "workers"), CASES)
def test_killed_at_a_random_batch_it_ends_with_identical_weights(
    shards: Path, tmp_path: Path, name: str, ranks: int, workers: int
) -> None:
    seed = int(os.environ.get("KILL_SEED") or random.randrange(2**32))
    print(f"KILL_SEED={seed}")  # give it again to have the same moment
    killed_after = random.Random(seed).randrange(1, 14)  # of 16: the kill takes a moment to arrive
    model = "resnet50" if "depth" in ALGORITHMS[name] else "resnet18"
    more = [f"algorithms=[{ALGORITHMS[name]}]", f"model.name={model}", f"data.num_workers={workers}"]
    more += ["global_batch_size=12", "data.eval_batch_size=12"]  # they divide over 1 to 4 ranks; 8 steps an epoch
    more += SETTINGS.get(name, [])
    more += ["checkpoint.save_interval=1ba", "checkpoint.keep=2", "eval_interval=5ba"]
    records: list[dict[str, Any]] = []
    for folder in (tmp_path / "undisturbed", tmp_path / "interrupted"):
        argv = command(shards, folder, *more)
        if folder.name == "interrupted":
            started = start(argv, tmp_path / "killed", ranks=ranks)
            started.kill_when(lambda folder=folder: batches_saved(folder) >= killed_after)  # type: ignore[misc]  # of this turn
            assert batches_saved(folder) < 16, "killed too late to tell anything"
        code, output = run(argv, tmp_path / f"{folder.name}.log", ranks=ranks)
        assert code == 0, output
        records.append(what_must_match(record_of(folder)))
    assert "resume: from" in output
    assert records[0] == records[1]
    assert same_checkpoint(tmp_path / "undisturbed", tmp_path / "interrupted") == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ema_in_epochs", pytest.param("swa", marks=pytest.mark.exhaustive)])
def test_when_checkpoints_are_saved_changes_no_weight(shards: Path, tmp_path: Path, name: str) -> None:
    """An epoch's last batch has a checkpoint of its own with one interval, with the other the epoch alone has."""
    for interval in ("1ep", "6ba"):
        more = [f"algorithms=[{ALGORITHMS[name]}]", f"checkpoint.save_interval={interval}", "max_duration=3ep"]
        argv = command(shards, tmp_path / interval, *more, "eval_interval=1ep")
        code, output = run(argv, tmp_path / f"{interval}.log", ranks=2)
        assert code == 0, output
    assert what_must_match(record_of(tmp_path / "1ep")) == what_must_match(record_of(tmp_path / "6ba"))


def batches_saved(folder: Path) -> int:
    return max((int(path.stem.partition("-ba")[2]) for path in folder.glob("ep*-ba*.pt")), default=0)


def same_checkpoint(one: Path, other: Path) -> list[str]:
    """What differs between the last checkpoints of two runs; times of day and the names of the runs may."""
    from train.compare import differences
    from train.resume.checkpoint_file import load

    last = max((path.name for path in one.glob("ep*-ba*.pt")), key=lambda name: int(name[:-3].partition("-ba")[2]))
    return differences(load(one / last), load(other / last))
