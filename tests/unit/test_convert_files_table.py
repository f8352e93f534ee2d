"""files.parquet says from which file each sample was made, and is the same however the conversion went."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from streaming.base.format import reader_from_json

from convert import conversion, files_table
from convert.imagenet_to_mds import main
from convert.journal import Journal
from imagestream.data.source_paths import SourcePaths
from imagestream.mds.files_table import FILES_NAME, SCHEMA
from imagestream.mds.records import Records
from imagestream.storage.errors import PlaceError
from imagestream.storage.local import LocalPlace
from imagestream.storage.places import open_place
from tests.conftest import make_images


@pytest.fixture
def images(tmp_path: Path) -> Path:
    make_images(tmp_path / "images", {"train": 9, "val": 4}, classes=3)
    Image.new("L", (20, 30)).save(tmp_path / "images/val/class1/mended.png")
    (tmp_path / "images/val/class1/broken.jpg").write_bytes(b"no image")
    return tmp_path / "images"


def convert(images: Path, out: Path | str, *more: str, workers: int = 1) -> None:
    argv = ["--source", str(images), "--out", str(out), "--on-bad", "skip", "--size-limit", "10KB", *more]
    assert main([*argv, "--workers", str(workers)]) == 0


def test_each_row_is_a_sample_of_the_shards_and_of_a_file(images: Path, tmp_path: Path) -> None:
    convert(images, tmp_path / "mds")
    table = pq.read_table(tmp_path / "mds" / FILES_NAME)
    assert table.schema.remove_metadata() == SCHEMA
    rows: list[dict[str, Any]] = table.to_pylist()
    assert [(row["split"], row["id"]) for row in rows] == [
        (split, sample_id) for split in ("train", "val") for sample_id in ids_in_order(tmp_path / "mds" / split)
    ]
    for row, data in zip(rows, stored(tmp_path / "mds"), strict=True):
        assert (row["bytes"], row["sha256"]) == (len(data), hashlib.sha256(data).digest())
        file = images / row["path"]
        assert (data == file.read_bytes()) is (file.suffix == ".jpg")
        with Image.open(file) as image:
            assert (row["width"], row["height"]) == image.size
        assert file.parts[-3:-1] == (row["split"], f"class{row['label']}")
    assert len(rows) == 9 * 3 + 4 * 3 + 1


def ids_in_order(split: Path) -> list[int]:
    return [sample_id for sample_id, _ in read(split)]


def stored(mds: Path) -> list[bytes]:
    return [data for split in ("train", "val") for _, data in read(mds / split)]


def read(split: Path) -> list[tuple[int, bytes]]:
    entries = json.loads((split / "index.json").read_text())["shards"]
    records = Records([reader_from_json(str(split), None, entry) for entry in entries])
    places = [(shard, at) for shard, entry in enumerate(entries) for at in range(entry["samples"])]
    return [(records.sample_id(*place) or 0, records.read(*place)[0]) for place in places]


@pytest.mark.slow
def test_it_is_the_same_for_any_workers_after_an_end_and_split_by_split(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(images, tmp_path / "one")
    convert(images, tmp_path / "three", workers=3)
    convert(images, tmp_path / "parts", "--splits", "val")
    convert(images, tmp_path / "parts", "--splits", "train")
    with monkeypatch.context() as broken:
        broken.setattr(files_table, "BATCH_ROWS", 4)  # in groups, and it fails after some of them
        broken.setattr(Journal, "get", failing_after(9, Journal.get))
        with pytest.raises(OSError, match="the disk is gone"):
            convert(images, tmp_path / "broken")
    assert not (tmp_path / "broken" / FILES_NAME).exists() and not list((tmp_path / "broken").glob(".files-*"))
    convert(images, tmp_path / "broken")
    expected = (tmp_path / "one" / FILES_NAME).read_bytes()
    for name in ("three", "parts", "broken"):
        assert (tmp_path / name / FILES_NAME).read_bytes() == expected, name


@pytest.mark.slow
def test_a_record_that_somebody_removes_at_the_end_is_an_error_in_a_line(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write = files_table.write_files_table

    def write_without_a_record(output: Any, made: Any, *, kept: Any) -> None:
        (tmp_path / "out/.convert/val/00000.json").unlink()
        write(output, made, kept=kept)

    argv = ["--source", str(images), "--out", str(tmp_path / "out"), "--workers", "1", "--on-bad", "skip"]
    with monkeypatch.context() as broken:
        broken.setattr(conversion, "write_files_table", write_without_a_record)
        assert main(argv) == 1
    assert "val/00000 is made, and its record is gone from the journal; give the same command again" in (
        capsys.readouterr().err
    )
    assert main(argv) == 0 and (tmp_path / "out" / FILES_NAME).exists()


@pytest.mark.parametrize("content", [b"PAR1 and no more", b""])
def test_a_damaged_one_is_named_before_any_work(
    content: bytes, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convert(images, tmp_path, "--splits", "train")
    whole = (tmp_path / FILES_NAME).read_bytes()
    (tmp_path / FILES_NAME).write_bytes(content)
    argv = ["--source", str(images), "--out", str(tmp_path), "--workers", "1", "--on-bad", "skip", "--splits", "val"]
    assert main(argv) == 1
    assert f"{FILES_NAME} in --out is damaged: " in capsys.readouterr().err and not (tmp_path / "val").exists()
    (tmp_path / FILES_NAME).write_bytes(whole)
    assert main(argv) == 0


def failing_after(count: int, get: Any) -> Any:
    calls = iter(range(1_000_000))

    def failing(self: Any, index: int) -> Any:
        if next(calls) >= count:
            raise OSError("the disk is gone")
        return get(self, index)

    return failing


def test_it_goes_to_s3(images: Path, s3_folder: str, tmp_path: Path) -> None:
    convert(images, s3_folder, "--splits", "train")
    paths = SourcePaths(open_place(s3_folder), "train")
    assert paths.of([0, 26, 27]) == ["train/class0/000.jpg", "train/class2/008.jpg", None]


def test_paths_are_found_by_sample_id(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).permutation(1000)
    table = pa.table(
        {
            "id": ids,
            "split": pa.array(["val" if number % 2 else "train" for number in ids]).dictionary_encode(),
            "path": [f"{number}.jpg" for number in ids],
        }
    )
    pq.write_table(table, tmp_path / FILES_NAME, row_group_size=100)
    found = SourcePaths(LocalPlace(tmp_path), "val")
    assert found.of([3, 2, 999, 1000, -1, 1]) == ["3.jpg", None, "999.jpg", None, None, "1.jpg"]
    assert not SourcePaths(LocalPlace(tmp_path), "test") and SourcePaths(LocalPlace(tmp_path), "test").of([1]) == [None]
    assert not SourcePaths(LocalPlace(tmp_path / "nowhere"), "val")
    (tmp_path / FILES_NAME).write_bytes(b"PAR1 no table")
    with pytest.raises(PlaceError, match=r"files\.parquet is damaged: .*; copy it again, or remove it"):
        SourcePaths(LocalPlace(tmp_path), "val")
