"""Every folder, file and split of a source is converted or named; splits go by their usual names."""

import tarfile
from pathlib import Path

import pytest

from convert.sources import SourceError, open_source
from tests.layouts import add, write_folder, write_tar


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "images")


@pytest.mark.parametrize("name", ["validation", "valid", "test"])
def test_a_validation_split_of_another_usual_name_is_val(images: Path, name: str) -> None:
    expected = open_source(str(images))
    names = expected.class_names(["train", "val"])
    keys = [(sample.key, sample.label, sample.size_bytes) for sample in expected.listing("val", names).samples]
    (images / "val").rename(images / name)
    source = open_source(str(images))
    assert source.splits(None) == ["train", "val"]
    listing = source.listing("val", source.class_names(["train", "val"]))
    assert [(sample.key, sample.label, sample.size_bytes) for sample in listing.samples] == keys
    assert source.files.read(listing.samples[0].file).startswith(b"\xff\xd8")
    assert source.left_out(["train", "val"]) == []


def test_a_training_split_of_another_usual_name_is_train(images: Path) -> None:
    (images / "train").rename(images / "training")
    assert open_source(str(images)).splits(None) == ["train", "val"]


def test_a_test_set_without_labels_is_not_taken_for_val_and_named(images: Path) -> None:
    (images / "val").rename(images / "test")
    for path in list((images / "test").glob("*/*")):
        path.rename(images / "test" / path.name)
    for folder in (images / "test").glob("*/"):
        folder.rmdir()
    (images / "README.txt").touch()
    source = open_source(str(images))
    assert source.splits(None) == ["train"]
    assert source.left_out(["train"]) == ["README.txt", "test/"]


def test_a_test_set_beside_val_keeps_its_name_and_is_named(images: Path) -> None:
    write_folder(images / "more")
    (images / "more/val").rename(images / "test")
    source = open_source(str(images))
    assert source.splits(None) == ["train", "val"] and source.left_out(["train", "val"]) == ["more/", "test/"]
    assert source.splits(["test"]) == ["test"]


@pytest.mark.parametrize("name", ["@eaDir", "__MACOSX", "#recycle", "$RECYCLE.BIN", "lost+found"])
def test_what_systems_leave_between_the_images_is_no_class(images: Path, name: str) -> None:
    before = open_source(str(images)).class_names(["train"])
    for folder in (images, images / "train", images / "train" / before[0]):
        (folder / name).mkdir()
        (folder / name / "thumbnail.jpg").touch()
    (images / "train" / before[0] / "Thumbs.db").touch()
    source = open_source(str(images))
    assert source.class_names(["train"]) == before
    assert source.listing("train", before).ignored == {"hidden file or folder": 3}
    assert source.left_out(["train", "val"]) == []


def class_tars(images: Path, out: Path, split: str) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for folder in sorted((images / split).iterdir()):
        with tarfile.open(out / f"{folder.name}.tar", "w") as tar:
            for path in sorted(folder.iterdir()):
                add(tar, path.name, path.read_bytes())


@pytest.mark.parametrize("name", ["val", "validation"])
def test_class_tars_are_read_in_val_too(images: Path, tmp_path: Path, name: str) -> None:
    class_tars(images, tmp_path / "tars/train", "train")
    class_tars(images, tmp_path / "tars" / name, "val")
    (tmp_path / "tars/test.tar").touch()
    folder, tars = open_source(str(images)), open_source(str(tmp_path / "tars"))
    assert tars.layout == "tars" and tars.splits(None) == ["train", "val"]
    names = tars.class_names(["train", "val"])
    for split in ("train", "val"):
        expected, seen = folder.listing(split, names), tars.listing(split, names)
        assert [(s.key, s.label) for s in seen.samples] == [(s.key, s.label) for s in expected.samples]
        for one, other in zip(expected.samples, seen.samples, strict=True):
            assert tars.files.read(other.file, other.offset_bytes or 0, other.size_bytes) == folder.files.read(one.file)
    assert tars.left_out(["train", "val"]) == ["test.tar"]


@pytest.mark.parametrize("name", ["00000.tar", "n00000.tar.gz"])
def test_tars_without_a_split_are_refused_with_how_they_should_be(tmp_path: Path, name: str) -> None:
    write_tar(tmp_path / name, [{"1.jpg": b"1", "1.cls": b"1"}])
    with pytest.raises(SourceError, match=r"holds 1 file .*WebDataset tars if they lie in train/ and val/"):
        open_source(str(tmp_path))


def test_a_class_tar_with_labels_beside_its_images_is_refused(images: Path, tmp_path: Path) -> None:
    class_tars(images, tmp_path / "tars/train", "train")
    write_tar(tmp_path / "tars/train/n99999999.tar", [{"1.jpg": b"1", "1.json": b'{"box": 1}'}])
    source = open_source(str(tmp_path / "tars"))
    assert source.layout == "tars"
    with pytest.raises(
        SourceError, match=r"n99999999\.tar holds 1\.json beside the images\. A class tar holds images alone"
    ):
        source.listing("train", source.class_names(["train"]))
