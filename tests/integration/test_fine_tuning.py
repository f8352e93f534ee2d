"""A network trained on some classes learns others: from its checkpoint, with frozen parts, killed and resumed."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import make_images
from tests.integration.problem import command, record_of, what_must_match
from tests.processes import run, start
from train.resume.checkpoint_file import load

pytestmark = pytest.mark.slow

RECIPE = (
    "algorithms=[{name: blurpool}, {name: ema, half_life: 2ba, update_interval: 2ba}]",
    "model.freeze=[stem, layer1]",
    "optimizer.layer_decay=0.7",
)


@pytest.fixture(scope="module")
def other_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 classes of other names than those of `shards`."""
    from convert.imagenet_to_mds import main

    folder = tmp_path_factory.mktemp("other")
    make_images(folder / "images", {"train": 33, "val": 6}, classes=3)
    for path in sorted((folder / "images").glob("*/class*")):
        path.rename(path.with_name(path.name.replace("class", "kind")))
    assert main(["--source", str(folder / "images"), "--out", str(folder / "mds"), "--workers", "1"]) == 0
    return folder / "mds"


@pytest.fixture(scope="module")
def weights(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a run on 4 classes, with averages."""
    folder = tmp_path_factory.mktemp("trained")
    code, output = run(command(shards, folder, "max_duration=4ba"), folder / "log")
    assert code == 0, output
    return folder / "ep0-ba4.pt"


def tuned(shards: Path, folder: Path, weights: Path | str, *more: str, ranks: int = 1) -> tuple[int, str]:
    argv = command(shards, folder, f"model.weights={weights}", *RECIPE, *more)
    return run(argv, Path(f"{folder}.log"), ranks=ranks)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_killed_run_ends_with_the_same_weights_and_needs_the_file_no_more(
    ranks: int, other_shards: Path, weights: Path, tmp_path: Path
) -> None:
    code, output = tuned(other_shards, tmp_path / "undisturbed", weights, ranks=ranks)
    assert code == 0, output
    assert "initialised as without it: fc.bias, fc.weight (4 classes there and 3 classes here)" in output
    given = Path(shutil.copy(weights, tmp_path / "given.pt"))
    argv = command(other_shards, tmp_path / "killed", f"model.weights={given}", *RECIPE)
    started = start(argv, tmp_path / "killed.log", ranks=ranks)
    started.kill_when(lambda: (tmp_path / "killed/ep0-ba2.pt").exists())
    given.unlink()
    code, output = tuned(other_shards, tmp_path / "killed", given, ranks=ranks)
    assert code == 0 and "resume: from" in output, output
    one, other = (record_of(tmp_path / name) for name in ("undisturbed", "killed"))
    assert one["weights_sha256"] == other["weights_sha256"]
    assert one["began_with"]["sha256"] == other["began_with"]["sha256"] == record_of(weights.parent)["weights_sha256"]
    for record in (one, other):
        record["began_with"].pop("weights")
    assert what_must_match(one) == what_must_match(other)
    frozen_stays(weights, tmp_path / "killed")


def frozen_stays(weights: Path, folder: Path) -> None:
    """What is frozen is the file's, statistics and averages as well; all else has moved."""
    theirs = load(weights)["state"]["model"]
    newest = max(folder.glob("ep*-ba*.pt"), key=lambda path: path.stat().st_mtime)
    mine: dict[str, torch.Tensor] = load(newest)["state"]["model"]
    frozen = ("module.conv1.", "module.bn1.", "module.layer1.")
    constant = ("blur_filter", "filt2d")
    for name, tensor in mine.items():
        if not name.startswith("module.fc."):
            assert torch.equal(tensor, theirs[name]) is (name.startswith(frozen) or name.endswith(constant)), name


def test_another_file_is_refused_and_so_is_one_of_another_network_before_anything_is_saved(
    other_shards: Path, weights: Path, tmp_path: Path
) -> None:
    more = ("max_duration=2ba", "eval_interval=9ep")
    code, output = tuned(other_shards, tmp_path / "run", weights, *more)
    assert code == 0, output
    raw: dict[str, Any] = {"state_dict": load(weights)["state"]["model"]}
    raw["state_dict"] = {name: tensor + 1 for name, tensor in raw["state_dict"].items()}
    torch.save(raw, tmp_path / "other.pth")
    code, output = tuned(other_shards, tmp_path / "run", tmp_path / "other.pth", *more)
    assert code == 2 and "model.weights: " in output and "--allow-changed model.weights" in output, output
    code, output = tuned(other_shards, tmp_path / "new", weights, "model.name=resnet50")
    assert code == 2 and "is of another network than model.name" in output, output
    code, output = tuned(other_shards, tmp_path / "new", weights, "model.name=resnet50", "--dry-run")
    assert code == 2 and "is of another network than model.name" in output, output
    code, output = tuned(other_shards, tmp_path / "new", tmp_path / "none.pth")
    assert code == 2 and "none.pth is not a file that exists" in output, output
    assert [*(tmp_path / "new").glob("*.pt")] == []
    code, output = tuned(other_shards, tmp_path / "new", weights, "--dry-run")
    assert code == 0 and "tensors come from it; initialised as without it: fc.bias, fc.weight" in output, output
    assert "# frozen       stem, layer1; trained: " in output
