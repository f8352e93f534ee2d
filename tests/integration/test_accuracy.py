"""The benchmark of accuracies trains a recipe and torchvision's loop on the same images, and resumes where it was."""

import csv
from pathlib import Path

import pytest

from benchmarks import accuracy
from tests.conftest import make_images
from tests.integration.converter import SMALL_SHARDS, run

pytestmark = pytest.mark.exhaustive


def test_a_recipe_and_a_loop_are_trained_once_and_evaluated_on_all_images(tmp_path: Path) -> None:
    images, shards, out = tmp_path / "images", tmp_path / "mds", tmp_path / "found.csv"
    make_images(images, {"train": 20, "val": 6}, classes=4, leave_out=1)
    assert run("--source", images, "--out", shards, "--workers", 1, *SMALL_SHARDS).returncode == 0
    argv = [f"--shards={shards}", f"--images={images}", f"--out={out}", f"--work={tmp_path / 'work'}"]
    argv += ["--recipes", "yamls/recipes/mosaic-mild.yaml", "--references", "torchvision", "--switches", "ema"]
    argv += ["--epochs=1", "--px=32", "--batch=16", "--model=resnet18", "--seeds", "1", "2", "--workers=0"]
    assert accuracy.main(argv) == 0
    with open(out, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["mosaic-baseline + ema", "mosaic-mild", "torchvision"]
    for row in rows:
        assert (row["seeds"], row["images"], len(row["top1_each"].split())) == ("2", "23", 2)
        assert float(row["images_per_sec"]) > 0 and float(row["seconds"]) > 0
    figures = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").glob("*/*.json")}
    assert accuracy.main(argv) == 0
    assert {path: path.stat().st_mtime_ns for path in figures} == figures
