"""Sources without splits, and files of phones: the same bytes for any workers and after a kill; the audit passes."""

import csv
import signal
from pathlib import Path

import pytest
from PIL import Image, features

from convert.sources.share import Share
from tests.integration.converter import (
    SMALL_SHARDS,
    convert,
    read_samples,
    run,
    save_noise,
    start,
    tree,
    wait_for_end_of_group,
    wait_for_first_shard,
)

CLASSES = ("n01", "n02", "n03")
IMAGES = 1200  # enough for a kill in the middle


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of JPEGs and, where Pillow can, of some AVIFs."""
    root = tmp_path_factory.mktemp("photos")
    for at, name in enumerate(CLASSES):
        save_noise(root / name / "0.jpg", at)
        for number in range(1, IMAGES // len(CLASSES)):
            (root / name / f"{number}.jpg").write_bytes((root / name / "0.jpg").read_bytes())
        if features.check("avif"):
            for number in range(3):
                Image.open(root / name / "0.jpg").rotate(number).save(root / name / f"phone{number}.avif")
    return root


def write_list(photos: Path, path: Path, *, splits: bool) -> Path:
    """The same images as a CSV, in another order; the splits are those of `--val-fraction 0.3`."""
    share = Share(0.3, 0)
    with open(path, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "class", *(["set"] if splits else [])])
        for image in sorted(photos.glob("*/*"), key=lambda image: image.name):
            name = image.parent.name
            rows.writerow([f"{name}/{image.name}", name, *([share.split_of(name, image.name)] if splits else [])])
    return path


def shards(out: Path) -> dict[str, bytes]:
    return {name: data for name, data in tree(out).items() if name != "manifest.json"}


@pytest.fixture(scope="module")
def expected(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("expected") / "out"
    convert(photos, out, "--val-fraction", 0.3)
    return out


def test_the_splits_have_all_images_once_and_pass_the_audit(photos: Path, expected: Path) -> None:
    count = len(list(photos.glob("*/*")))
    train, val = (len(read_samples(expected, split)) for split in ("train", "val"))
    assert train + val == count and 0.25 * count < val < 0.35 * count
    from tests.processes import run_program

    done = run_program("convert.audit", [expected])
    assert done.returncode == 0 and "0 findings" in done.stdout, done.stdout + done.stderr


def test_workers_and_a_kill_change_no_byte(photos: Path, expected: Path, tmp_path: Path) -> None:
    convert(photos, tmp_path / "three", "--val-fraction", 0.3, "--workers", 3)
    assert tree(tmp_path / "three") == tree(expected)
    out = tmp_path / "killed"
    command = ("--source", photos, "--out", out, "--workers", 2, *SMALL_SHARDS, "--val-fraction", 0.3)
    process = start(*command, start_new_session=True)
    wait_for_first_shard(out, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    wait_for_end_of_group(process.pid)
    assert not (out / "manifest.json").exists()
    assert "written before" in convert(photos, out, "--val-fraction", 0.3)
    assert tree(out) == tree(expected)


def test_a_list_of_the_same_images_gives_the_same_shards(photos: Path, expected: Path, tmp_path: Path) -> None:
    labels = write_list(photos, tmp_path / "list.csv", splits=True)
    convert(photos, tmp_path / "one", "--labels", labels)
    convert(photos, tmp_path / "three", "--labels", labels, "--workers", 3)
    assert shards(tmp_path / "one") == shards(tmp_path / "three") == shards(expected)
    assert tree(tmp_path / "one") == tree(tmp_path / "three")


def test_another_draw_beside_a_split_that_is_there_is_refused(photos: Path, tmp_path: Path) -> None:
    common = ("--source", photos, "--out", tmp_path / "out", "--workers", 2)
    done = run(*common, "--splits", "val", "--val-fraction", 0.3)
    assert done.returncode == 0, done.stderr
    for given in (("--val-fraction", 0.2), ("--val-fraction", 0.3, "--seed", 1)):
        done = run(*common, "--splits", "train", *given)
        assert done.returncode == 2
        assert "holds val, made with --val-fraction 0.3 and --seed 0; with " in done.stderr, done.stderr
    done = run(*common, "--splits", "train", "--val-fraction", 0.3)
    assert done.returncode == 0, done.stderr
