"""`train/check_data.py`, which `make test-data` and `make train-local` call."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, make_images
from tests.processes import run

SMALL = ("data.crop_size=32", "data.eval_crop_size=32", "data.eval_resize_size=36", "data.num_workers=1")


def check(data: Path, log: Path, *more: str) -> tuple[int, str]:
    """The whole check, which needs torch."""
    code, output = run([str(data), *SMALL, *more], log, program="train.check_data")
    assert "Traceback" not in output
    return code, output


def script(folder: Path, *args: object) -> "subprocess.CompletedProcess[str]":
    """The command as a process of its own in `folder`, for what needs no torch."""
    command = [sys.executable, REPOSITORY / "train/check_data.py", *args]
    done = subprocess.run(list(map(str, command)), cwd=folder, capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def test_every_sample_is_read_and_a_number_of_workers_recommended(shards: Path, tmp_path: Path) -> None:
    code, output = check(shards, tmp_path / "log")
    assert code == 0, output
    lines = output.splitlines()
    train = next(i for i, line in enumerate(lines) if line.startswith("train "))
    assert " 100 samples in " in lines[train] and "each read and decoded once" in lines[train]
    assert lines[train + 1].strip() == "per class 25 to 25 (mean 25.0)"
    assert "0 mended, 0 refused" in lines[train + 4]
    val = next(i for i, line in enumerate(lines) if line.startswith("val "))
    assert " 23 samples in " in lines[val] and lines[val + 1].strip() == "per class 5 to 6 (mean 5.8)"
    table = lines[next(i for i, line in enumerate(lines) if "workers  images/s" in line) + 1 :]
    assert [row.split()[0] for row in table[:2]] == ["0", "1"]
    assert "data.num_workers=" in table[-1]


def test_a_flipped_bit_in_a_shard_is_found(shards: Path, tmp_path: Path) -> None:
    copy = tmp_path / "mds"
    shutil.copytree(shards, copy)
    damaged = bytearray((copy / "train/shard.00001.mds").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (copy / "train/shard.00001.mds").write_bytes(damaged)
    code, output = check(copy, tmp_path / "log")
    assert code == 2
    assert f"{copy}/train/shard.00001.mds is damaged" in output


def test_an_image_that_does_not_decode_is_named_by_its_sample(shards: Path, tmp_path: Path) -> None:
    copy = tmp_path / "mds"
    shutil.copytree(shards, copy)
    path = copy / "val/shard.00000.mds"
    path.write_bytes(path.read_bytes().replace(b"\xff\xd8\xff", b"\0\0\0"))
    index = copy / "val/index.json"
    index.write_text(index.read_text().replace('"xxh64"', '"none"').replace('"sha256"', '"never"'))  # no hash is known
    (copy / "manifest.json").unlink()
    code, output = check(copy, tmp_path / "log", "model.num_classes=4")
    assert code == 2
    assert "check_data: " in output and "are not an image" in output.splitlines()[-1]


def test_what_a_training_would_refuse_is_refused(shards: Path, tmp_path: Path) -> None:
    code, output = check(shards, tmp_path / "log", "global_batch_size=500")
    assert code == 2
    assert "fewer than one global batch of 500; lower global_batch_size" in output


def test_images_are_converted_once(tmp_path: Path) -> None:
    photos = tmp_path / "my photos"
    make_images(photos, {"train": 3, "val": 1}, classes=2)
    where = script(tmp_path, "my photos", "--where").stdout
    target = Path(where.strip())
    assert where == f"{target}\n" and target.parent == tmp_path / "runs" and not target.exists()
    first = script(tmp_path, "my photos", "--convert-only")
    assert first.returncode == 0 and "train: 6 samples" in first.stdout, first.stderr
    assert script(tmp_path, target, "--where").stdout == where
    again = script(tmp_path, "my photos", "--convert-only")
    assert again.returncode == 0 and "was converted before" in again.stdout and "has not changed since" in again.stdout
    (target / "train/index.json").unlink()  # as a conversion that was killed would leave it
    assert "train: 6 samples" in script(tmp_path, "my photos", "--convert-only").stdout


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ([], "is not a folder"),
        (["photos"], "has no train/ and no val/"),
        (["photos/train/a"], "has no val/"),
        (["photos/train/a", "photos/val/a"], "the conversion failed with exit status 2"),
        (["photos/training/a", "photos/validation/a"], "the conversion failed with exit status 2"),
    ],
)
def test_a_folder_that_is_no_dataset_is_refused(tmp_path: Path, folders: list[str], message: str) -> None:
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
    done = script(tmp_path, "photos", "--convert-only")
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]
