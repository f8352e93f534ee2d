"""Predictions of images in files and shards are those of an evaluation, wherever model and images are."""

import csv
import functools
import json
import os
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import ExifTags, Image

from imagestream.storage.places import open_place
from tests import processes
from tests.conftest import make_images
from tests.integration.problem import command
from tests.s3_server import S3Server

pytestmark = pytest.mark.slow
run = functools.partial(processes.run, real_network=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, their shards, a run with BlurPool and EMA, and its export."""
    from convert.imagenet_to_mds import main

    folder = tmp_path_factory.mktemp("made")
    make_images(folder / "images", {"train": 12, "val": 9}, classes=6)
    argv = ["--source", str(folder / "images"), "--out", str(folder / "mds"), "--workers", "1", "--size-limit", "20KB"]
    assert main(argv) == 0
    code, output = run(command(folder / "mds", folder / "run", "max_duration=1ep"), folder / "train.log")
    assert code == 0, output
    argv = [str(folder / "run"), "--to", str(folder / "exported"), "--formats", "", "--workers", "0"]
    code, output = run(argv, folder / "export.log", program="train.export")
    assert code == 0, output
    return folder


def predict(argv: list[str], log: Path, expected: int = 0, env: dict[str, str] | None = None) -> str:
    code, output = run(argv, log, program="train.predict", env=env)
    assert code == expected, output
    return output


def ranked(path: Path) -> dict[str, list[tuple[str, float]]]:
    """By path, the classes and their probabilities."""
    rows = pq.read_table(path).to_pylist()
    return {row["path"]: [(row[f"class_{n}"], row[f"probability_{n}"]) for n in range(1, 6)] for row in rows}


def test_files_and_shards_get_the_probabilities_of_an_evaluation(made: Path, tmp_path: Path) -> None:
    checkpoint = max((made / "run").glob("*.pt"), key=lambda path: path.stat().st_mtime)
    argv = [str(checkpoint), "--data", str(made / "mds"), "--predictions", str(tmp_path / "e.parquet")]
    code, output = run(argv, tmp_path / "evaluate", program="train.evaluate")
    assert code == 0, output
    evaluated = pq.read_table(tmp_path / "e.parquet").to_pylist()
    files = sorted(str(path) for path in (made / "images/val").rglob("*.jpg"))
    expected = {
        path: [(f"class{number}", share) for number, share in zip(row["classes"], row["probabilities"], strict=True)]
        for path, row in zip(files, evaluated, strict=True)  # ids are in the order of the source
    }
    ways = {
        "exported": [str(made / "exported"), str(made / "images/val"), "--workers", "2"],
        "run": [str(made / "run"), str(made / "images/val"), "--workers", "0", "--batch-size", "7"],
        "checkpoint": [str(checkpoint), *files],
    }
    for name, argv in ways.items():
        predict([*argv, "--out", str(tmp_path / f"{name}.parquet")], tmp_path / name)
        found = ranked(tmp_path / f"{name}.parquet")
        assert list(found) == files and found == expected, name
    predict([str(made / "exported"), str(made / "mds/val"), "--out", str(tmp_path / "shards.parquet")], tmp_path / "s")
    by_path = {str(made / "images" / path): found for path, found in ranked(tmp_path / "shards.parquet").items()}
    assert by_path == expected


def test_a_photograph_on_its_side_is_turned_where_the_training_images_were(made: Path, tmp_path: Path) -> None:
    with Image.open(made / "images/val/class0/000.jpg") as image:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6  # a camera held upright: turn it to the right
        (tmp_path / "photos").mkdir()
        image.save(tmp_path / "photos/a.png")
        image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "photos/b.png", exif=exif)
    turning = shutil.copytree(made / "exported", tmp_path / "turning")
    config = json.loads((turning / "config.json").read_text())
    assert config["pixels"]["exif"] == "ignore"  # as the manifest has it
    (turning / "config.json").write_text(json.dumps(config | {"pixels": config["pixels"] | {"exif": "apply"}}))
    for model, options, is_turned in (
        (made / "run", [], False),
        (made / "exported", ["--exif", "apply"], True),
        (turning, [], True),
        (turning, ["--exif", "ignore"], False),
    ):
        argv = [str(model), str(tmp_path / "photos"), "--out", str(tmp_path / "p.parquet"), *options]
        predict(argv, tmp_path / "log")
        upright, side = ranked(tmp_path / "p.parquet").values()
        assert (upright == side) == is_turned, (model, options)


def test_bad_files_are_listed_and_the_others_predicted(made: Path, tmp_path: Path) -> None:
    make_images(tmp_path, {"x": 2}, classes=1)
    folder = tmp_path / "x/class0"
    (folder / "bad.jpg").write_bytes((folder / "000.jpg").read_bytes()[:200])
    (folder / "<b>.jpg").write_bytes(b"<script>alert(1)</script>")
    for number, name in enumerate((b"caf\xe9.jpg", b"caf\xe8.jpg")):  # not UTF-8
        target = Path(os.fsdecode(bytes(folder) + b"/" + name))
        target.write_bytes((folder / "bad.jpg").read_bytes() if number else (folder / "000.jpg").read_bytes())
    argv = [str(made / "exported"), str(folder), "--out", str(tmp_path / "p.csv"), "--html", str(tmp_path / "p.html")]
    output = predict(argv, tmp_path / "log", expected=1)
    assert "3 of the images could not be used; see above" in output and "bad.jpg: " in output
    with open(tmp_path / "p.csv", newline="") as file:
        rows = {Path(row["path"]).name: row for row in csv.DictReader(file)}
    assert list(rows) == ["000.jpg", "001.jpg", "<b>.jpg", "bad.jpg", r"caf\xe8.jpg", r"caf\xe9.jpg"]
    assert [bool(row["error"]) for row in rows.values()] == [False, False, True, True, True, False]
    assert [bool(row["class_1"]) for row in rows.values()] == [True, True, False, False, False, True]
    page = (tmp_path / "p.html").read_text()
    assert page.count("<img src=") == 3 and r"caf\xe9.jpg" in page and "&lt;b&gt;.jpg" in page and "<b>.jpg" not in page
    argv = [str(made / "exported"), str(folder), "--out", str(tmp_path / "p.parquet"), "--workers", "0"]
    predict(argv, tmp_path / "log", expected=1)
    assert [Path(path).name for path in ranked(tmp_path / "p.parquet")] == list(rows)


def test_model_images_and_table_may_all_be_in_s3(
    made: Path, s3_folder: str, s3_server: S3Server, tmp_path: Path
) -> None:
    bucket = open_place(s3_folder)
    for path in sorted((made / "exported").iterdir()):
        bucket.write(f"model/{path.name}", path.read_bytes())
    for path in sorted((made / "images/val/class0").iterdir()):
        bucket.write(f"photos/deep/{path.name}", path.read_bytes())
    argv = [f"{s3_folder}/model", f"{s3_folder}/photos", "--out", f"{s3_folder}/p.parquet", "--workers", "1"]
    predict(argv, tmp_path / "log", env=s3_server.env)
    (tmp_path / "p.parquet").write_bytes(bucket.read("p.parquet"))
    found = ranked(tmp_path / "p.parquet")
    assert list(found) == [f"{s3_folder}/photos/deep/{number:03}.jpg" for number in range(9)]
    argv = [str(made / "exported"), str(made / "images/val/class0"), "--out", str(tmp_path / "l.parquet")]
    predict(argv, tmp_path / "local")
    assert list(found.values()) == list(ranked(tmp_path / "l.parquet").values())


def other_format(made: Path, tmp_path: Path) -> str:
    shutil.copytree(made / "exported", tmp_path / "other")
    config = tmp_path / "other/config.json"
    config.write_text(config.read_text().replace('"format": 1', '"format": 2'))
    return str(config.parent)


def test_what_cannot_be_predicted_is_named(made: Path, tmp_path: Path) -> None:
    model, empty = str(made / "exported"), tmp_path / "empty"
    empty.mkdir()
    for argv, expected in (
        ([model, str(empty)], f"{empty} is not an image, a folder with images in it, or a folder of shards"),
        ([model, str(made / "mds")], "holds shards in train/, val/; give one of them, as in"),
        ([str(empty), str(made / "images")], f"{empty} holds no checkpoint"),
        ([model, str(made / "images"), "--out", "/proc/no/p.csv"], "/proc/no is not writable"),
        ([other_format(made, tmp_path), str(made / "images")], "config.json is of format 2, and this version reads 1"),
    ):
        output = predict(argv, tmp_path / "log", expected=2)
        assert expected in output and "path,class_1" not in output
