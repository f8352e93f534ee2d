"""Our training step has Composer's bits: weights, momentum, averages and losses, with every recipe's algorithms."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.processes import start

STEPS, MANY_STEPS = 8, 200
EMA = "{name: ema, half_life: 4ba, update_interval: 3ba}"
RECIPES = {
    "full": [
        f"algorithms=[{{name: blurpool}}, {{name: channels_last}}, {{name: label_smoothing}}, {EMA}]",
        "model.loss=binary_cross_entropy",
        "model.name=resnet50",
    ],
    "sgd": ["optimizer.name=sgd", "optimizer.decay_batchnorm=false", "algorithms=[]"],
    "adamw": [
        "optimizer.name=adamw",
        "optimizer.weight_decay=0.05",
        "optimizer.decay_batchnorm=false",
        f"algorithms=[{{name: label_smoothing}}, {EMA}]",
    ],
    "nesterov": [
        "optimizer.nesterov=true",
        "algorithms=[{name: gradient_clipping, clipping_type: norm, clipping_threshold: 0.5}]",
    ],
    "mixup": [f"algorithms=[{{name: label_smoothing}}, {{name: mixup}}, {EMA}]"],
    "cutmix": ["algorithms=[{name: cutmix}]", "model.loss=binary_cross_entropy"],
    "swa": ["algorithms=[{name: swa, swa_start: 0.2dur, swa_end: 0.8dur, update_interval: 1ba}]"],
    "sam": ["algorithms=[{name: sam, interval: 2}]"],
    "stochastic_depth": ["algorithms=[{name: stochastic_depth, drop_rate: 0.5}]", "model.name=resnet50"],
    "squeeze_excite": ["algorithms=[{name: squeeze_excite}]"],
    "microbatches": ["device_train_microbatch_size=3", "algorithms=[{name: label_smoothing}]"],
}
OFTEN = [("full", "amp_bf16", 2), ("microbatches", "fp32", 1)]
"""Those that every `make test` tries."""

CASES = [
    pytest.param(recipe, precision, ranks, marks=[] if (recipe, precision, ranks) in OFTEN else pytest.mark.exhaustive)
    for recipe in RECIPES
    for precision in ("fp32", "amp_bf16")
    for ranks in (1, 2)
]


def trained(kind: str, steps: int, overrides: list[str], log: Path, *, ranks: int) -> dict[str, Any]:
    started = start([kind, str(steps), *overrides], log, ranks=ranks, program="tests.step_program")
    assert started.wait() == 0, started.output()
    found: dict[str, Any] = json.loads(started.output().partition("found ")[2].splitlines()[0])
    return found


def compare(recipe: str, precision: str, ranks: int, steps: int, logs: Path) -> None:
    overrides = [*RECIPES[recipe], f"precision={precision}", "optimizer.lr=0.01"]
    theirs = trained("composer", steps, overrides, logs / "composer", ranks=ranks)
    ours = trained("ours", steps, overrides, logs / "ours", ranks=ranks)
    assert len(ours["losses"]) == steps and len({*ours["losses"]}) > steps / 2
    assert ours == theirs


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "precision", "ranks"), CASES)
def test_a_step_has_composers_bits(recipe: str, precision: str, ranks: int, tmp_path: Path) -> None:
    compare(recipe, precision, ranks, STEPS, tmp_path)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("recipe", RECIPES)
def test_two_hundred_steps_have_composers_bits(recipe: str, ranks: int, tmp_path: Path) -> None:
    compare(recipe, "fp32", ranks, MANY_STEPS, tmp_path)
