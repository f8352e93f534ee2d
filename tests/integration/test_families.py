"""One network of each family: killed and resumed it ends with the same weights, and its step has Composer's bits."""

import json
from pathlib import Path

import pytest

from tests import small_network
from tests.integration.problem import command, record_of, what_must_match
from tests.integration.test_step import STEPS, trained
from tests.processes import run, start

pytestmark = pytest.mark.slow

EMA = "{name: ema, half_life: 2ba, update_interval: 2ba}"
OFTEN = [("efficientnet_b0", 1), ("vit_b_16", 2)]
"""Those that every `make test` tries: one that drops at random, and one that has no BatchNorm."""
CASES = [
    pytest.param(name, ranks, marks=[] if (name, ranks) in OFTEN else pytest.mark.exhaustive)
    for name in small_network.OTHERS
    for ranks in (1, 2)
]


def recipe(name: str) -> list[str]:
    """What goes with the network: ViTs and ConvNeXts are trained by AdamW."""
    shared = [f"model.name={name}", "model.init=torchvision", f"algorithms=[{{name: label_smoothing}}, {EMA}]"]
    if name.startswith(("vit", "swin", "convnext")):
        return [*shared, "optimizer.name=adamw", "optimizer.weight_decay=0.05", "optimizer.layer_decay=0.8"]
    return [*shared, "optimizer.decay_batchnorm=false"]


@pytest.mark.parametrize(("name", "ranks"), CASES)
def test_a_killed_run_ends_with_the_same_weights(name: str, ranks: int, shards: Path, tmp_path: Path) -> None:
    argvs = [command(shards, tmp_path / folder, *recipe(name)) for folder in ("undisturbed", "killed")]
    code, output = run(argvs[0], tmp_path / "undisturbed.log", ranks=ranks)
    assert code == 0, output
    started = start(argvs[1], tmp_path / "killed.log", ranks=ranks)
    started.kill_when(lambda: (tmp_path / "killed/ep0-ba2.pt").exists())
    code, output = run(argvs[1], tmp_path / "killed.log", ranks=ranks)
    assert code == 0 and "resume: from" in output, output
    one, other = (record_of(tmp_path / folder) for folder in ("undisturbed", "killed"))
    assert one["weights_sha256"] == other["weights_sha256"]
    assert what_must_match(one) == what_must_match(other)
    (newest,) = (tmp_path / "killed").glob(f"ep*-ba{other['batch']['total_steps']}.pt")
    argv = [str(newest), "--data", str(shards), "--workers", "0", "--json", str(tmp_path / "figures.json")]
    code, output = run(argv, tmp_path / "evaluated", program="train.evaluate")
    assert code == 0, output
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures.pop("checkpoint") == newest.name
    assert {name: one[name] for name in figures} == figures


@pytest.mark.parametrize("precision", ["fp32", "amp_bf16"])
@pytest.mark.parametrize(
    ("name", "ranks"), [pytest.param(*case.values, marks=pytest.mark.exhaustive) for case in CASES]
)
def test_a_step_has_composers_bits(name: str, ranks: int, precision: str, tmp_path: Path) -> None:
    sizes = ["data.crop_size=32", "data.eval_crop_size=32", "data.eval_resize_size=36"]
    overrides = [*recipe(name), *sizes, f"precision={precision}", "optimizer.lr=0.01"]
    theirs = trained("composer", STEPS, overrides, tmp_path / "composer", ranks=ranks)
    ours = trained("ours", STEPS, overrides, tmp_path / "ours", ranks=ranks)
    assert len({*ours["losses"]}) > STEPS / 2
    assert ours == theirs
