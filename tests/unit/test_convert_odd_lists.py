"""Lists and names as editors and other projects write them: they work, or say what is the matter."""

import codecs
from pathlib import Path

import pytest

from convert.sources import SourceError, open_source
from tests.layouts import WNIDS, put, write_annotated, write_folder, write_kaggle, write_parquet


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "images")


def labels(source: Path, split: str = "val", spool: Path | None = None) -> list[tuple[str, int]]:
    opened = open_source(str(source), spool=spool)
    listing = opened.listing(split, opened.class_names(["train", "val"]))
    return [(sample.key.rpartition("/")[2], sample.label) for sample in listing.samples]


@pytest.mark.parametrize("mark", [codecs.BOM_UTF8, codecs.BOM_UTF16_LE])
@pytest.mark.parametrize("layout", ["kaggle", "annotated"])
def test_lists_with_a_byte_order_mark_are_read(folder: Path, tmp_path: Path, layout: str, mark: bytes) -> None:
    write = write_kaggle if layout == "kaggle" else write_annotated
    root = write(folder, tmp_path / layout)
    expected = labels(root)
    for path in root.rglob("*"):
        if path.suffix in (".txt", ".csv"):
            text = path.read_text().replace("\n", "\r\n")
            path.write_bytes(mark + text.encode("utf-8" if mark == codecs.BOM_UTF8 else "utf-16-le"))
    assert labels(root) == expected == labels(folder)


def test_a_list_in_another_encoding_says_where_and_what_to_do(folder: Path, tmp_path: Path) -> None:
    root = write_annotated(folder, tmp_path / "annotated")
    path = root / "val/val_annotations.txt"
    path.write_bytes(path.read_bytes() + "caf\u00e9.JPEG\tn01440764\n".encode("latin-1"))
    lines = len(path.read_bytes().splitlines())
    with pytest.raises(SourceError, match=rf"val_annotations\.txt:{lines} is not text in UTF-8 \(byte 0xe9\).*iconv"):
        labels(root)


def flat_val(folder: Path, first: int) -> Path:
    """val flat, with a val.txt of numbers from `first` on, as Caffe's."""
    lines = []
    for path in sorted((folder / "val").glob("*/*")):
        lines.append(f"{path.name} {WNIDS.index(path.parent.name) + first}\n")
        path.rename(folder / "val" / path.name)
    for path in (folder / "val").glob("*/"):
        path.rmdir()
    put(folder / "val.txt", "".join(lines).encode())
    return folder


def test_a_list_of_numbers_from_0_means_the_sorted_classes(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = labels(folder)
    assert labels(flat_val(folder, 0)) == expected
    assert "val.txt gives numbers; 0 is taken for n01440764, the first of the sorted classes" in caplog.text


def test_a_list_of_numbers_from_1_is_refused_as_its_order_is_not_known(folder: Path) -> None:
    with pytest.raises(
        SourceError, match=r"numbers from 1 to 4 for classes, and there are 4 classes, such as n01440764"
    ):
        labels(flat_val(folder, 1))


@pytest.mark.parametrize("place", ["plain_text/{split}-00000-of-00001.parquet", "default/{split}/0000.parquet"])
def test_hugging_faces_other_places_of_parquet_files_are_found(folder: Path, tmp_path: Path, place: str) -> None:
    root = write_parquet(folder, tmp_path / "written", files=1)
    expected = labels(root, spool=tmp_path / "spool1")
    for split in ("train", "validation"):
        path = tmp_path / "moved" / place.format(split=split)
        path.parent.mkdir(parents=True, exist_ok=True)
        (root / f"data/{split}-00000-of-00001.parquet").rename(path)
    source = open_source(str(tmp_path / "moved"), spool=tmp_path / "spool2")
    assert source.layout == "parquet" and source.splits(None) == ["train", "val"]
    assert source.left_out(["train", "val"]) == []
    assert labels(tmp_path / "moved", spool=tmp_path / "spool2") == expected


def test_a_gap_in_numbered_parquet_files_is_named(folder: Path, tmp_path: Path) -> None:
    root = write_parquet(folder, tmp_path / "written", files=2)
    for number, name in ((0, "0000"), (1, "0002")):
        path = tmp_path / f"moved/default/train/{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        (root / f"data/train-{number:05}-of-00002.parquet").rename(path)
    with pytest.raises(SourceError, match="parquet files of train are numbered 0, 2; some are missing"):
        labels(tmp_path / "moved", "train", tmp_path / "spool")


def test_several_configurations_are_named(folder: Path, tmp_path: Path) -> None:
    root = write_parquet(folder, tmp_path / "written", files=1)
    for name in ("full", "small"):
        put(
            tmp_path / f"moved/{name}/train-00000-of-00001.parquet",
            (root / "data/train-00000-of-00001.parquet").read_bytes(),
        )
    with pytest.raises(
        SourceError, match=r"several configurations of a dataset: full/, small/\. Give the folder of one"
    ):
        labels(tmp_path / "moved", "train", tmp_path / "spool")
