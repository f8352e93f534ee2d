"""What else an evaluation says, for any ranks and batches; and datasets that number or choose the classes otherwise."""

import csv
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.conftest import make_images
from tests.integration.problem import command
from tests.processes import run

pytestmark = pytest.mark.slow

CLASSES = 12  # so that, as words, 10 and 11 come before 2
WNIDS = [f"n{number:08}" for number in range(CLASSES)]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders by wnid; the validation files are named as ImageNet's, their numbers over all classes."""
    folder = tmp_path_factory.mktemp("images") / "images"
    make_images(folder, {"train": 2, "val": 4}, classes=CLASSES)
    for split in ("train", "val"):
        for number in range(CLASSES):
            (folder / split / f"class{number}").rename(folder / split / WNIDS[number])
    paths = sorted((folder / "val").rglob("*.jpg"))
    random.Random(0).shuffle(paths)
    for number, path in enumerate(paths, start=1):
        path.rename(path.with_name(f"ILSVRC2012_val_{number:08}.JPEG"))
    return folder


@pytest.fixture(scope="module")
def dataset(images: Path) -> Path:
    return converted(images, images.parent / "mds")


@pytest.fixture(scope="module")
def checkpoint(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    code, output = run(command(dataset, folder, "max_duration=1ba", "algorithms=[]"), folder / "log")
    assert code == 0, output
    (path,) = folder.glob("ep*-ba1.pt")
    return path


def converted(images: Path, out: Path) -> Path:
    from convert.imagenet_to_mds import main

    assert main(["--source", str(images), "--out", str(out), "--workers", "1"]) == 0
    return out


def evaluate(checkpoint: Path, dataset: Path, out: Path, *more: str, ranks: int = 1) -> tuple[dict[str, Any], str]:
    files = ["--predictions", f"{out}.parquet", "--json", f"{out}.json"]
    argv = [str(checkpoint), "--data", str(dataset), "--workers", "0", *files, *more]
    code, output = run(argv, Path(f"{out}.log"), ranks=ranks, program="train.evaluate")
    assert code == 0, output
    figures: dict[str, Any] = json.loads(Path(f"{out}.json").read_text())
    return figures, output


def test_all_figures_are_the_same_for_any_ranks_and_batches_and_reals_are_right(
    images: Path, dataset: Path, checkpoint: Path, tmp_path: Path
) -> None:
    files = sorted((int(path.stem[-8:]), path.parent.name) for path in (images / "val").rglob("*.JPEG"))
    lines = [f"ILSVRC2012_val_{number:08},{wnid} 1 2 3 4 " for number, wnid in files]
    (tmp_path / "list.csv").write_text("\n".join(["ImageId,PredictionString", *lines]))
    rng = random.Random(1)
    own = [WNIDS.index(wnid) for _, wnid in files]
    real = [[] if rng.random() < 0.2 else sorted({label, rng.randrange(CLASSES)}) for label in own]
    (tmp_path / "real.json").write_text(json.dumps(real))
    more = ["--details", "--real", str(tmp_path / "real.json"), "--val-classes", str(tmp_path / "list.csv")]
    found, csvs = [], []
    for name, ranks, batch in (("one", 1, 48), ("two", 2, 14)):
        argv = [*more, "--batch-size", str(batch), "--per-class", str(tmp_path / f"{name}.csv")]
        figures, output = evaluate(checkpoint, dataset, tmp_path / name, *argv, ranks=ranks)
        assert "expected calibration error" in output and "most often confused" in output
        found.append(figures)
        csvs.append((tmp_path / f"{name}.csv").read_text())
    assert found[0] == found[1] and csvs[0] == csvs[1]
    rows = pq.read_table(tmp_path / "one.parquet").to_pylist()
    # Ids are by class and name; so the images are, sorted alike, these:
    order = [number - 1 for number, _ in sorted(files, key=lambda entry: (entry[1], entry[0]))]
    assert [row["sample_id"] for row in rows] == list(range(48)) and [row["label"] for row in rows] == sorted(own)
    counted = [(row["classes"][0], real[at]) for row, at in zip(rows, order, strict=True) if real[at]]
    assert found[0]["real_samples"] == len(counted) < 48
    assert found[0]["real_top1"] == sum(first in labels for first, labels in counted) / len(counted)
    table = list(csv.DictReader(csvs[0].splitlines()))
    assert [row["name"] for row in table] == WNIDS and {row["samples"] for row in table} == {"4"}
    assert sum(int(row["top1_correct"]) for row in table) / 48 == found[0]["top1"]
    argv = [str(checkpoint), "--data", str(dataset), "--workers", "0", *more[:-2]]
    code, output = run(argv, tmp_path / "refused", ranks=2, program="train.evaluate")
    assert code == 2 and "give --val-classes LOC_val_solution.csv" in output and "Traceback" not in output, output


def test_folders_named_by_numbers_are_the_classes_of_these_numbers(
    images: Path, dataset: Path, checkpoint: Path, tmp_path: Path
) -> None:
    """ImageNet-V2's way."""
    shutil.copytree(images / "val", tmp_path / "v2/val")
    for number, wnid in enumerate(WNIDS):
        (tmp_path / "v2/val" / wnid).rename(tmp_path / "v2/val" / str(number))
    mine, _ = evaluate(checkpoint, dataset, tmp_path / "mine", "--details")
    theirs, _ = evaluate(checkpoint, converted(tmp_path / "v2", tmp_path / "mds"), tmp_path / "theirs", "--details")
    assert mine == theirs


def test_among_the_datasets_classes_no_other_is_predicted(
    images: Path, dataset: Path, checkpoint: Path, tmp_path: Path
) -> None:
    """ImageNet-A's and -R's way: 200 of the classes, and the likeliest of these counts."""
    chosen = [1, 4, 5, 7, 10, 11]
    for number in chosen:
        shutil.copytree(images / "val" / WNIDS[number], tmp_path / "a/val" / WNIDS[number])
    part = converted(tmp_path / "a", tmp_path / "mds")
    whole, _ = evaluate(checkpoint, dataset, tmp_path / "whole")
    plain, output = evaluate(checkpoint, part, tmp_path / "plain")
    assert "has 6 of the model's 12 classes; predictions are among all of these (--among)" in output
    among, output = evaluate(checkpoint, part, tmp_path / "among", "--among", "dataset")
    assert "predictions are among the dataset's alone (--among)" in output
    assert among["among"] == 6 and "among" not in plain and "among" not in whole
    rows = {name: pq.read_table(tmp_path / f"{name}.parquet").to_pylist() for name in ("plain", "among")}
    assert all({*row["classes"]} <= {*chosen} for row in rows["among"])
    for one, other in zip(rows["plain"], rows["among"], strict=True):
        allowed = [number for number in one["classes"] if number in chosen]
        assert other["classes"][: len(allowed)] == allowed and other["label"] == one["label"] in chosen
        assert other["loss"] < one["loss"]
    assert among["top1"] == sum(row["classes"][0] == row["label"] for row in rows["among"]) / 24


def test_a_place_for_the_figures_that_cannot_be_written_is_said_before_anything_is_evaluated(
    dataset: Path, checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    argv = [str(checkpoint), "--data", str(dataset), "--workers", "0"]
    code, output = run([*argv, "--json", f"{tmp_path}/file/x.json"], tmp_path / "log", program="train.evaluate")
    assert code == 2 and f"{tmp_path}/file" in output and "Traceback" not in output, output
    code, output = run([*argv, "--json", f"{tmp_path}/new/x.json"], tmp_path / "log2", program="train.evaluate")
    assert code == 0 and json.loads((tmp_path / "new/x.json").read_text())["samples_evaluated"] > 0, output
