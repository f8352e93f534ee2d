"""The original tars are read in place; what is incomplete or does not fit is refused."""

import gzip
import io
import tarfile
from pathlib import Path

import pytest

from convert.sources import SourceError, open_source
from tests.layouts import add, classes, images, put, write_devkit, write_folder, write_tars
from tests.unit.test_convert_layouts import contents

TRAIN, VAL, DEVKIT = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "folder")


@pytest.fixture
def tars(folder: Path, tmp_path: Path) -> Path:
    return write_tars(folder, tmp_path / "tars")


def test_train_alone_needs_no_devkit(folder: Path, tars: Path) -> None:
    (tars / VAL).unlink()
    (tars / DEVKIT).unlink()
    source = open_source(str(tars))
    assert source.splits(None) == ["train"]
    assert source.readable_names() == {}
    assert contents(source, "train") == contents(open_source(str(folder)), "train")


def test_val_alone_takes_its_classes_from_the_devkit(folder: Path, tars: Path) -> None:
    (tars / TRAIN).unlink()
    source = open_source(str(tars))
    assert source.splits(None) == ["val"]
    assert source.class_names(["val"]) == classes(folder)
    assert contents(source, "val") == contents(open_source(str(folder)), "val")


def test_val_without_devkit_says_what_to_download(tars: Path) -> None:
    (tars / DEVKIT).unlink()
    source = open_source(str(tars))
    assert len(contents(source, "train")) == 14
    with pytest.raises(SourceError, match=r"in ILSVRC2012_devkit_t12\.tar\.gz, which is not .*Download it.*--splits"):
        source.listing("val", source.class_names(["val"]))


def test_an_unpacked_devkit_will_do(folder: Path, tars: Path) -> None:
    with tarfile.open(tars / DEVKIT) as archive:
        archive.extractall(tars, filter="data")
    (tars / DEVKIT).unlink()
    assert contents(open_source(str(tars)), "val") == contents(open_source(str(folder)), "val")


@pytest.mark.parametrize("name", ["train", "ILSVRC2012_img_train"])
def test_a_folder_of_class_tars_will_do(folder: Path, tars: Path, name: str) -> None:
    with tarfile.open(tars / TRAIN) as outer:
        outer.extractall(tars / name, filter="data")
    (tars / TRAIN).unlink()
    put(tars / name / "README", b"")
    source = open_source(str(tars))
    assert source.layout == "tars"
    assert contents(source, "train") == contents(open_source(str(folder)), "train")
    assert source.listing("train", classes(folder)).ignored == {"file that is no class tar": 1}


def test_a_tar_of_class_folders_will_do(folder: Path, tars: Path) -> None:
    with tarfile.open(tars / TRAIN, "w") as tar:
        tar.add(folder / "train", arcname=".")
    assert contents(open_source(str(tars)), "train") == contents(open_source(str(folder)), "train")


def test_odd_members_are_left_out_and_counted(folder: Path, tars: Path) -> None:
    wnid, first = next(images(folder, "train"))
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w") as tar:
        add(tar, first.name, b"an earlier version")
        for own, path in images(folder, "train"):
            if own == wnid:
                add(tar, f"./{wnid}/{path.name}", path.read_bytes())
        add(tar, f"{wnid}/._{first.name}", b"resource fork")
        link = tarfile.TarInfo("link.JPEG")
        link.type, link.linkname = tarfile.SYMTYPE, first.name
        tar.addfile(link)
    with tarfile.open(tars / TRAIN) as old, tarfile.open(tars / "new", "w") as new:
        for member in old:
            content = old.extractfile(member)
            assert content is not None
            add(new, f"./{member.name}", inner.getvalue() if member.name == f"{wnid}.tar" else content.read())
    (tars / "new").replace(tars / TRAIN)
    source = open_source(str(tars))
    assert contents(source, "train") == contents(open_source(str(folder)), "train")
    assert source.listing("train", classes(folder)).ignored == {
        "hidden file or folder": 1,
        "tar member that a later one replaces": 1,
        "tar member that is no regular file": 1,
    }


@pytest.mark.parametrize("name", [TRAIN, VAL])
def test_a_tar_cut_off_anywhere_is_refused(tars: Path, name: str) -> None:
    whole = (tars / name).read_bytes()
    split = "train" if name == TRAIN else "val"
    with tarfile.open(tars / name) as tar:
        members = tar.getmembers()
    last = members[-1]
    end = last.offset_data + -(-last.size // 512) * 512
    # in the first and last file, in a header, between two members, before and within the end mark
    for cut in (0, 300, 700, last.offset, last.offset + 100, last.offset_data + 5, end, end + 511):
        (tars / name).write_bytes(whole[:cut])
        with pytest.raises(SourceError, match=f"{name} is incomplete: its {cut:,} bytes end"):
            source = open_source(str(tars))
            source.listing(split, source.class_names(["train", "val"]))
    (tars / name).write_bytes(whole[: end + 512])
    assert contents(open_source(str(tars)), split)


def test_a_class_tar_cut_off_within_the_outer_tar_is_refused(folder: Path, tars: Path) -> None:
    with tarfile.open(tars / TRAIN) as old, tarfile.open(tars / "new", "w") as new:
        for member in old:
            content = old.extractfile(member)
            assert content is not None
            data = content.read()
            add(new, member.name, data[:5120] if member.name == "n02105855.tar" else data)
    (tars / "new").replace(tars / TRAIN)
    with pytest.raises(SourceError, match=r"train\.tar: n02105855\.tar in it is incomplete: its 5,120 bytes"):
        contents(open_source(str(tars)), "train")


@pytest.mark.parametrize("place", ["outer", "inner"])
def test_a_damaged_header_does_not_pass_for_the_end(tars: Path, place: str) -> None:
    with tarfile.open(tars / TRAIN) as tar:
        third = tar.getmembers()[2]
    damaged = bytearray((tars / TRAIN).read_bytes())
    damaged[third.offset + 20 if place == "outer" else third.offset_data + 20] ^= 0xFF
    (tars / TRAIN).write_bytes(damaged)
    with pytest.raises(SourceError, match="is damaged: there is no valid header at byte"):
        contents(open_source(str(tars)), "train")


def test_a_compressed_tar_is_refused_with_what_to_do(tars: Path) -> None:
    (tars / VAL).write_bytes(gzip.compress((tars / VAL).read_bytes()))
    with pytest.raises(SourceError, match=r"img_val\.tar is compressed with gzip.*decompress it first \(gunzip\)"):
        contents(open_source(str(tars)), "val")


def test_what_is_no_tar_is_refused(tars: Path) -> None:
    (tars / VAL).write_bytes(b"<html>please log in</html>" * 100)
    with pytest.raises(SourceError, match=r"img_val\.tar is not a tar file, or is damaged"):
        contents(open_source(str(tars)), "val")


def test_stray_files_in_the_outer_tar_are_named(tars: Path) -> None:
    with tarfile.open(tars / TRAIN, "a") as tar:
        add(tar, "stray.JPEG", b"1")
    with pytest.raises(SourceError, match=r"1 file that are neither class tars nor in a class folder: stray\.JPEG"):
        contents(open_source(str(tars)), "train")


def test_a_ground_truth_of_another_count_is_refused(folder: Path, tars: Path) -> None:
    write_devkit(tars, classes(folder), ["n01440764"] * 7)
    with pytest.raises(SourceError, match=r"holds 8 images, the ground truth of .* has 7 lines.*must agree"):
        contents(open_source(str(tars)), "val")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({}, r"holds no data/meta\.mat; is it the kit of another"),
        ({"meta.mat": b"no mat"}, "meta.mat cannot be read"),
    ],
)
def test_a_devkit_that_is_another_thing_is_refused(tars: Path, members: dict[str, bytes], message: str) -> None:
    with tarfile.open(tars / DEVKIT, "w:gz") as tar:
        add(tar, "kit/data/ILSVRC2012_validation_ground_truth.txt", b"1\n")
        for name, data in members.items():
            add(tar, f"kit/data/{name}", data)
    with pytest.raises(SourceError, match=message):
        contents(open_source(str(tars)), "val")


def test_a_truncated_devkit_is_refused(tars: Path) -> None:
    (tars / DEVKIT).write_bytes((tars / DEVKIT).read_bytes()[:-100])
    with pytest.raises(SourceError, match=r"devkit_t12\.tar\.gz is damaged .*download it again"):
        contents(open_source(str(tars)), "val")


def test_a_number_that_is_no_class_is_refused(folder: Path, tars: Path) -> None:
    write_devkit(tars, classes(folder), ["n01440764"] * 8)
    with tarfile.open(tars / DEVKIT) as tar:
        content = tar.extractfile("ILSVRC2012_devkit_t12/data/meta.mat")
        assert content is not None
        meta = content.read()
    with tarfile.open(tars / DEVKIT, "w:gz") as tar:
        add(tar, "kit/data/meta.mat", meta)
        add(tar, "kit/data/ILSVRC2012_validation_ground_truth.txt", b"1\n5\n")
    with pytest.raises(SourceError, match=r"ground_truth\.txt:2: '5' is not the number of one of the 4 classes"):
        contents(open_source(str(tars)), "val")
