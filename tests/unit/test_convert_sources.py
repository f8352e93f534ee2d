"""Which files of a folder become samples, in which order, with which labels."""

import os
from pathlib import Path

import pytest

from convert.sources import ImageFolder, SourceError


def fill(root: Path, *paths: str) -> ImageFolder:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(path.encode())
    return ImageFolder(root)


def keys(source: ImageFolder, split: str = "train") -> list[tuple[str, int]]:
    listing = source.listing(split, source.class_names([split]))
    return [(sample.key, sample.label) for sample in listing.samples]


def test_samples_are_sorted_by_class_and_name_whatever_the_extension(tmp_path: Path) -> None:
    source = fill(tmp_path, "train/b/2.JPEG", "train/b/10.JPEG", "train/a/z.txt", "train/B/x")
    assert keys(source) == [("train/B/x", 0), ("train/a/z.txt", 1), ("train/b/10.JPEG", 2), ("train/b/2.JPEG", 2)]


def test_order_and_labels_are_those_of_torchvision(tmp_path: Path) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    paths = ["c/z.jpg", "c/sub/a.jpg", "c/sub-x/b.jpg", "c/b.jpg", "a/1.jpg", "a/sub/deep/0.jpg", "B/q.jpg"]
    source = fill(tmp_path, *(f"train/{path}" for path in paths))
    theirs = datasets.ImageFolder(tmp_path / "train").samples
    assert keys(source) == [(str(Path(path).relative_to(tmp_path)), label) for path, label in theirs]


def test_a_sample_says_where_its_bytes_are(tmp_path: Path) -> None:
    source = fill(tmp_path, "train/a/1", "train/a/22")
    samples = source.listing("train", ["a"]).samples
    assert [(sample.file, sample.offset_bytes, sample.size_bytes) for sample in samples] == [
        ("train/a/1", None, 9),
        ("train/a/22", None, 10),
    ]
    assert [source.files.read(sample.file) for sample in samples] == [b"train/a/1", b"train/a/22"]


def test_train_sets_the_labels_even_where_only_val_is_converted(tmp_path: Path) -> None:
    source = fill(tmp_path, "train/a/1", "train/b/1", "val/b/1")
    assert source.class_names(["val"]) == ["a", "b"]
    assert [sample.label for sample in source.listing("val", ["a", "b"]).samples] == [1]


def test_a_source_without_train_takes_its_classes_from_the_split(tmp_path: Path) -> None:
    assert fill(tmp_path, "val/b/1", "val/d/1").class_names(["val"]) == ["b", "d"]


def test_a_class_of_val_that_train_lacks_is_named(tmp_path: Path) -> None:
    source = fill(tmp_path, "train/a/1", "val/a/1", "val/n99/1")
    with pytest.raises(SourceError, match="1 class that train lacks: n99"):
        source.listing("val", source.class_names(["train", "val"]))


def test_empty_classes_keep_their_label(tmp_path: Path) -> None:
    source = fill(tmp_path, "train/a/1", "train/c/1")
    (tmp_path / "train/b").mkdir()
    assert keys(source) == [("train/a/1", 0), ("train/c/1", 2)]


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    source = fill(tmp_path, "train/a/1", "train/a/.DS_Store", "train/.cache/x", "train/README", "elsewhere/x")
    os.symlink(tmp_path / "elsewhere", tmp_path / "train/a/link")
    listing = source.listing("train", ["a"])
    assert [sample.key for sample in listing.samples] == ["train/a/1"]
    assert listing.ignored == {"hidden file or folder": 2, "file outside a class folder": 1, "link to a folder": 1}


def test_a_class_folder_may_be_a_link(tmp_path: Path) -> None:
    source = fill(tmp_path, "all/n01/1", "train/n00/1")
    os.symlink(tmp_path / "all/n01", tmp_path / "train/n01")
    assert keys(source) == [("train/n00/1", 0), ("train/n01/1", 1)]


def test_a_broken_link_is_named_before_any_work(tmp_path: Path) -> None:
    source = fill(tmp_path, "train/a/1")
    os.symlink(tmp_path / "gone", tmp_path / "train/a/2.JPEG")
    with pytest.raises(SourceError, match=r"train/a/2\.JPEG.*broken link"):
        source.listing("train", ["a"])


def test_default_splits_are_those_of_train_and_val_that_exist(tmp_path: Path) -> None:
    assert fill(tmp_path, "val/a/1", "test/a/1").splits(None) == ["val"]
    assert fill(tmp_path, "train/a/1").splits(None) == ["train", "val"]
    assert ImageFolder(tmp_path).splits(["test", "train"]) == ["test", "train"]


@pytest.mark.parametrize(
    ("paths", "requested", "message"),
    [
        (["a/1", "b/1", "notes.txt"], None, r"no train, val; it holds 2 folders \(a/, b/\) and 1 file \(notes.txt\)"),
        (["train/a/1"], ["train", "vla"], "has no vla; it holds 1 folder"),
    ],
)
def test_missing_splits_are_reported_with_what_was_seen(
    tmp_path: Path, paths: list[str], requested: list[str] | None, message: str
) -> None:
    with pytest.raises(SourceError, match=message):
        fill(tmp_path, *paths).splits(requested)


def test_a_flat_split_is_refused_with_what_to_do(tmp_path: Path) -> None:
    source = fill(tmp_path, "val/ILSVRC2012_val_00000001.JPEG")
    with pytest.raises(SourceError, match=r"no class folders; it holds 1 file .*sorted into"):
        source.class_names(["val"])


def test_a_missing_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="gone does not exist"):
        ImageFolder(tmp_path / "gone").splits(None)
