"""rsb-a3 beside timm's own functions: which weights decay, and how much of themselves mixed images keep."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import REPOSITORY, make_images
from tests.unit.test_mixing import algorithm, distance, own_shares
from tests.unit.test_recipe_decay import all_but_one_dimension
from train.config.run_config import load_config
from train.model import build_model

RECIPE = REPOSITORY / "yamls/recipes/rsb-a3.yaml"


@pytest.fixture(scope="module")
def timm() -> Iterator[Any]:
    libraries = str(REPOSITORY / "build/examples")
    if not Path(libraries, "timm").exists():
        pytest.skip("timm is not there: make test-examples")
    sys.path.append(libraries)
    import timm.data
    import timm.optim

    yield timm
    sys.path.remove(libraries)


def test_the_rule_of_its_weight_decay_is_timms(timm: Any) -> None:
    cfg = load_config(RECIPE, ["data.local=x"], check_paths=False)
    network = build_model(cfg.model, 1000).module
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    groups = timm.optim.param_groups_weight_decay(network, weight_decay=0.02)
    theirs = {names[id(one)] for group in groups if group["weight_decay"] for one in group["params"]}
    rule = {
        f"{name}.{parameter}"
        for name, module in network.named_modules()
        for parameter, _ in module.named_parameters(recurse=False)
        if all_but_one_dimension(module, name, parameter)
    }
    assert theirs == rule and len(rule) == 54


@pytest.mark.slow
def test_images_keep_as_much_of_themselves_as_by_timms_mixup(timm: Any) -> None:
    """--mixup 0.1 --cutmix 1.0, by turns (switch_prob 0.5)."""
    mix = timm.data.Mixup(mixup_alpha=0.1, cutmix_alpha=1.0, label_smoothing=0.0, num_classes=8)
    np.random.seed(3)
    theirs: tuple[list[float], list[float]] = ([], [])
    for _ in range(1600):
        images, targets = mix(torch.eye(8)[:, :, None, None].expand(-1, -1, 16, 24).clone(), torch.arange(8))
        theirs[set(images.unique().tolist()) <= {0.0, 1.0}].append(float(targets[0, 0]))
    ours = own_shares(algorithm(mixup_alpha=0.1), 1600)
    assert len(ours[0]) / 1600 == pytest.approx(len(theirs[0]) / 1600, abs=0.05)
    assert distance(ours[0], theirs[0]) < 1.95 and distance(ours[1], theirs[1]) < 1.95


@pytest.mark.slow
def test_its_loop_for_the_benchmark_of_accuracies_trains_and_is_evaluated_on_all_images(
    timm: Any, tmp_path: Path
) -> None:
    make_images(tmp_path / "images", {"train": 12, "val": 3}, classes=3)
    sizes = ["--epochs=1", "--px=32", "--batch=12", "--model=resnet18", "--seed=1", "--workers=0"]
    program = [sys.executable, "benchmarks/accuracy_loops.py", "timm", f"--images={tmp_path}/images", *sizes]
    done = subprocess.run([*program, f"--out={tmp_path}/out.json"], cwd=REPOSITORY, timeout=300, check=False)
    assert done.returncode == 0
    figures = json.loads((tmp_path / "out.json").read_text())
    assert figures["samples_evaluated"] == 9 and 0 <= figures["top1"] <= 1
