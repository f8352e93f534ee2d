"""A folder of images is converted once, and again when it has changed."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from imagestream.mds.manifest import load_manifest
from tests.conftest import make_images
from train.check_data import convert_images, newer_than


def add(images: Path) -> None:
    shutil.copy2(images / "train/class0/000.jpg", images / "train/class0/new.jpg")  # with the old one's time
    os.utime(images / "train/class0/new.jpg", (1, 1))


def remove(images: Path) -> None:
    (images / "val/class1/000.jpg").unlink()


def replace(images: Path) -> None:
    (images / "val/class0/000.jpg").write_bytes((images / "val/class0/001.jpg").read_bytes())


@pytest.mark.slow
def test_photographs_that_were_added_are_converted(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    images, shards = tmp_path / "images", tmp_path / "shards"
    make_images(images, {"train": 3, "val": 2}, classes=2)
    convert_images(images, shards)
    assert load_manifest(shards).splits["train"].samples == 6
    convert_images(images, shards)
    assert f"{images} was converted before, to {shards}, and has not changed since" in capfd.readouterr().out
    add(images)
    convert_images(images, shards)
    assert f"{images}/train/class0 has changed since {images} was converted" in capfd.readouterr().out
    assert load_manifest(shards).splits["train"].samples == 7


@pytest.mark.slow
def test_class_folders_without_splits_give_a_fifth_to_val_and_keep_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    images, shards = tmp_path / "images/train", tmp_path / "shards"
    make_images(images.parent, {"train": 40}, classes=2)
    convert_images(images, shards)
    assert "has no train/ and no val/: 20% of the images are taken for val" in capfd.readouterr().out
    counts = {name: split.samples for name, split in load_manifest(shards).splits.items()}
    assert sum(counts.values()) == 80 and 8 <= counts["val"] <= 24
    convert_images(images, shards)
    assert "has not changed since" in capfd.readouterr().out
    shutil.copy2(images / "class0/000.jpg", images / "class0/new.jpg")
    convert_images(images, shards)
    assert sum(split.samples for split in load_manifest(shards).splits.values()) == 81


@pytest.mark.parametrize("change", [add, remove, replace])
def test_each_kind_of_change_is_seen(tmp_path: Path, change: Callable[[Path], None]) -> None:
    make_images(tmp_path, {"train": 3, "val": 2}, classes=2)
    for folder, _, names in os.walk(tmp_path):
        for name in ("", *names):
            os.utime(Path(folder, name), (1000, 1000))
    assert newer_than(tmp_path, 2000) is None
    change(tmp_path)
    assert newer_than(tmp_path, 2000) is not None


@pytest.mark.slow
def test_within_an_array_job_the_images_are_converted_by_this_machine_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "3"}.items():
        monkeypatch.setenv(name, value)
    make_images(tmp_path / "images", {"train": 3, "val": 2}, classes=2)
    convert_images(tmp_path / "images", tmp_path / "shards")
    assert load_manifest(tmp_path / "shards").splits["train"].samples == 6
