"""What the converter says at its end, and of classes that are numbers."""

import json
from pathlib import Path

from PIL import Image

from tests.integration.converter import convert, read_samples, run, save_noise


def test_classes_and_splits_that_lost_their_images_are_told(tmp_path: Path) -> None:
    for number in range(3):
        save_noise(tmp_path / f"source/train/good/{number}.jpg", number)
        bad = tmp_path / f"source/train/bad/{number}.jpg"
        save_noise(bad, number)
        bad.write_bytes(bad.read_bytes()[: -300 - number])
    (tmp_path / "source/train/good/3.jpg").write_bytes(b"<html>")
    exif = Image.Exif()
    exif[0x0112] = 6
    save_noise(tmp_path / "source/train/good/0.jpg", 0, exif=exif)
    said = convert(tmp_path / "source", tmp_path / "out", "--on-bad", "skip")
    assert "warning: train: left out 4 bad images of 7 (57.1%), such as train/bad/0.jpg: damaged JPEG" in said
    assert "train: MOST OF IT IS MISSING. Look at the source before you train on this: 3 times damaged JPEG" in said
    assert "train: 1 class has NOT ONE IMAGE left, as all were refused: bad" in said
    assert "train: 1 image has an EXIF orientation, which was ignored" in said and "--exif apply" in said
    assert "has no val, which train/main.py looks for" in said


def test_exif_can_be_applied_and_is_part_of_what_was_asked_for(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    save_noise(tmp_path / "source/train/a/0.jpg", 0, exif=exif)
    width, height = Image.open(tmp_path / "source/train/a/0.jpg").size
    said = convert(tmp_path / "source", tmp_path / "out", "--exif", "apply")
    assert "EXIF orientation, which was ignored" not in said
    split = json.loads((tmp_path / "out/manifest.json").read_text())["splits"]["train"]
    assert (split["width_px"]["max"], split["height_px"]["max"], split["options"]["exif"]) == (height, width, "apply")
    assert [file["what"] for file in split["mended"]] == [
        "RGB JPEG re-encoded as RGB, quality 95, turned as its EXIF orientation (6) says"
    ]
    done = run("--source", tmp_path / "source", "--out", tmp_path / "out")
    assert done.returncode == 2 and "--exif: apply there, ignore now" in done.stderr


def test_classes_that_are_numbers_are_warned_about_and_can_be_sorted_as_numbers(tmp_path: Path) -> None:
    for number in range(12):
        save_noise(tmp_path / f"source/train/{number}/x.jpg", number)
    said = convert(tmp_path / "source", tmp_path / "words")
    assert "the classes are numbers, and are sorted as words: class 10 has the label 2" in said
    said = convert(tmp_path / "source", tmp_path / "numbers", "--class-order", "numbers")
    assert "sorted as words" not in said
    classes = json.loads((tmp_path / "numbers/manifest.json").read_text())["classes"]
    assert [info["wnid"] for info in classes] == [str(number) for number in range(12)]
    stored = {label: data for _, data, label in read_samples(tmp_path / "numbers")}
    for number in range(12):
        assert stored[number] == (tmp_path / f"source/train/{number}/x.jpg").read_bytes()
    # Sharded anew, each keeps its label.
    convert(tmp_path / "numbers", tmp_path / "again")
    assert json.loads((tmp_path / "again/manifest.json").read_text())["classes"] == classes
    refused = run("--source", tmp_path / "source", "--out", tmp_path / "numbers")
    assert refused.returncode == 2 and "the source: other names, classes or sizes" in refused.stderr
