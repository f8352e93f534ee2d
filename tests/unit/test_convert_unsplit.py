"""Class folders without splits: a hash says what is for validation, and more images move none of the others."""

import hashlib
import logging
from pathlib import Path

import pytest

from convert.imagenet_to_mds import main
from convert.sources import SourceError, open_source
from convert.sources.share import Share
from tests.layouts import put
from tests.unit.test_convert_layouts import contents


def write_classes(root: Path, counts: dict[str, int], *, first: int = 0) -> Path:
    for name, count in counts.items():
        for number in range(first, first + count):
            put(root / name / f"{number}.jpg", f"{name} {number}".encode())
    return root


def keys(root: Path, fraction: float = 0.2, seed: int = 0) -> dict[str, set[str]]:
    source = open_source(str(root), share=Share(fraction, seed))
    assert source.layout == "classes"
    return {split: {key for key, _, _ in contents(source, split)} for split in source.splits(None)}


def test_the_rule_is_what_the_documents_say() -> None:
    draws = [
        int.from_bytes(hashlib.sha256(f"split\0{7}\0cat\0{n}.jpg".encode()).digest()[:8], "big") / 2**64
        for n in range(200)
    ]
    for fraction in (0.01, 0.2, 0.5, 0.99):
        expected = ["val" if draw < fraction else "train" for draw in draws]
        assert [Share(fraction, 7).split_of("cat", f"{n}.jpg") for n in range(200)] == expected


def test_each_image_is_in_one_split_and_the_fraction_is_about_what_was_asked_for(tmp_path: Path) -> None:
    found = keys(write_classes(tmp_path, {"cat": 500, "dog": 500}))
    assert {key.partition("/")[2] for split in found.values() for key in split} == {
        f"{name}/{n}.jpg" for name in ("cat", "dog") for n in range(500)
    }
    assert 150 < len(found["val"]) < 250 and len(found["train"]) + len(found["val"]) == 1000


def test_more_images_and_more_classes_move_none_of_the_others(tmp_path: Path) -> None:
    before = keys(write_classes(tmp_path, {"cat": 60, "dog": 60}))
    write_classes(tmp_path, {"cat": 60, "ant": 60}, first=60)
    after = keys(tmp_path)
    for split in ("train", "val"):
        assert before[split] < after[split]
    assert keys(tmp_path, seed=1) != after
    assert after["val"] < keys(tmp_path, fraction=0.4)["val"]  # a larger part has the smaller one


def test_class_names_are_kept_as_they_are(tmp_path: Path) -> None:
    names = ["n01440764", "Ärger", "a b", "7"]
    source = open_source(str(write_classes(tmp_path, dict.fromkeys(names, 30))), share=Share(0.3, 0))
    assert source.class_names(["train", "val"]) == sorted(names)


def test_classes_with_one_image_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_classes(tmp_path, {"cat": 40, "dog": 1, "ant": 1})
    with caplog.at_level(logging.WARNING):
        keys(tmp_path)
    where = {name: Share(0.2, 0).split_of(name, "0.jpg") for name in ("ant", "dog")}
    said = f"2 classes have one image, and the other split has none: ant ({where['ant']}), dog ({where['dog']})"
    assert caplog.text.count(said) == 1


@pytest.mark.parametrize(
    ("made", "given", "words"),
    [
        ({"cat": 3}, {}, r"classes +<class>/<file>, with --val-fraction 0\.2\n"),
        ({"cat/more": 3}, {}, r"of class folders without splits, say how much is for validation: --val-fraction 0\.2"),
        ({"train/cat": 3, "val/cat": 1}, {"share": Share(0.2, 0)}, r"holds train, val; leave it out, or give --source"),
        ({"cat": 3}, {"layout": "classes"}, r"say how much is for validation, as --val-fraction 0\.2"),
        ({"cat": 3}, {"layout": "folder", "share": Share(0.2, 0)}, r"--layout folder has splits of its own"),
        ({"cat": 3}, {"share": Share(1e-9, 0)}, r"--val-fraction 1e-09 leaves no image for val of the 3 in"),
        ({}, {"share": Share(0.2, 0)}, r"has no class folders"),
    ],
)
def test_what_cannot_be_split_is_refused(
    tmp_path: Path, made: dict[str, int], given: dict[str, Share], words: str
) -> None:
    write_classes(tmp_path, made)
    with pytest.raises(SourceError, match=words):
        source = open_source(str(tmp_path), **given)  # type: ignore[arg-type]
        for split in source.splits(None):
            source.listing(split, source.class_names([split]))


def test_a_class_may_be_called_train_where_the_layout_is_given(tmp_path: Path) -> None:
    write_classes(tmp_path, {"train": 20, "bus": 20})
    with pytest.raises(SourceError, match="if these are classes, give --layout classes"):
        open_source(str(tmp_path), share=Share(0.2, 0))
    source = open_source(str(tmp_path), layout="classes", share=Share(0.2, 0))
    assert source.class_names(source.splits(None)) == ["bus", "train"]


@pytest.mark.parametrize("place", ["cat", "cat/more", "."])
def test_a_link_to_itself_is_named(tmp_path: Path, place: str) -> None:
    write_classes(tmp_path, {"cat": 9, "dog": 9, "cat/more": 1})
    (tmp_path / place / "self.jpg").symlink_to("self.jpg")
    with pytest.raises(SourceError, match=r"cannot be read: .*self\.jpg: Too many levels of symbolic links"):
        source = open_source(str(tmp_path), layout="classes", share=Share(0.2, 0))
        for split in source.splits(None):
            source.listing(split, source.class_names([split]))


@pytest.mark.parametrize("fraction", ["0", "1", "-0.1", "x", "nan", "20%"])
def test_a_fraction_is_above_0_and_below_1(capsys: pytest.CaptureFixture[str], fraction: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--source", "x", "--out", "y", f"--val-fraction={fraction}"])
    assert caught.value.code == 2
    assert f"'{fraction}' is not a number above 0 and below 1, such as 0.2" in capsys.readouterr().err
