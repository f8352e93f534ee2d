"""The audit names each fault of an index, and reads what MosaicML's own writer makes."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.audits import (
    FIRST,
    LAST,
    edit_index,
    flip,
    hash_line,
    records_of,
    sha256,
)

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda index: index.update(version=1), "version is 1, must be 2"),
        (lambda index: index.update(shards=[]), "lists no shards"),
        (
            lambda index: index["shards"][1]["raw_data"].update(bytes=-5),
            "shards.1.raw_data.bytes: Input should be greater than 0, not -5",
        ),
        (
            lambda index: index["shards"][1].update(format="json"),
            "shards.1.format: Input should be 'mds', not 'json'",
        ),
        (
            lambda index: index["shards"][1]["raw_data"].update(basename="../val/shard.00000.mds"),
            "shards.1.raw_data.basename: Value error, must be a path below the split's folder, "
            "not '../val/shard.00000.mds'",
        ),
        (
            lambda index: index["shards"][1].update(raw_data=index["shards"][0]["raw_data"]),
            "shard.00000.mds is listed 2 times",
        ),
        (
            lambda index: index["shards"][0].update(column_encodings=["int64", "jpeg", "int"]),
            "shards.0: columns are {'i': 'int64', 'x': 'jpeg', 'y': 'int'}, must be "
            "{'i': 'int', 'x': 'jpeg', 'y': 'int'} beside a manifest.json",
        ),
        (
            lambda index: index["shards"][0]["raw_data"].update(hashes={}),
            "shards.0: shard.00000.mds lacks its sha256, xxh64, which hashes promises",
        ),
    ],
)
def test_each_fault_of_an_index_is_named(audit: Any, dataset: Path, change: Any, line: str) -> None:
    edit_index(dataset, "train", change)
    code, lines = audit()
    assert code == 1
    assert f"train/index.json: {line}" in lines


def test_an_index_that_is_no_json_is_named_and_the_other_splits_are_read(audit: Any, dataset: Path) -> None:
    (dataset / "train" / "index.json").write_bytes(b'{"shards": [')
    flip(dataset / LAST, -1)
    code, lines = audit()
    assert code == 1
    assert lines[0].startswith("train/index.json: cannot be read: Expecting value")
    assert hash_line(dataset, LAST) in lines


def test_a_hash_that_is_not_known_is_a_warning(audit: Any, dataset: Path) -> None:
    (dataset / "manifest.json").unlink()
    edit_index(dataset, "val", lambda index: index["shards"][0]["raw_data"]["hashes"].update(crc64="0"))
    assert audit() == (0, ["warning: val/index.json: crc64, a hash of 1 shards, is not known here"])


@pytest.mark.parametrize("compression", [None, "zstd:3", "gz:1"])
@pytest.mark.parametrize("hashes", [[], ["xxh64"], ["sha1", "xxh3_64"]])
def test_shards_of_mosaicmls_own_writer_pass(
    audit: Any, dataset: Path, tmp_path: Path, compression: str | None, hashes: list[str]
) -> None:
    streaming = pytest.importorskip("streaming")
    theirs = tmp_path / "theirs"
    columns = {"i": "int", "x": "jpeg", "y": "int"}
    for split, path in (("train", FIRST), ("val", LAST)):
        with streaming.MDSWriter(
            out=str(theirs / split), columns=columns, hashes=hashes, compression=compression, size_limit=20_000
        ) as writer:
            for number, image, label in records_of(dataset / path):
                writer.write({"i": number, "x": jpeg_file(image, tmp_path), "y": label})
    assert audit(place=theirs) == (0, [])
    assert audit(place=theirs / "train") == (0, [])  # one split, whose index.json lies at the root
    shard = sorted((theirs / "train").glob("shard.*"))[0]
    flip(shard, -50)
    code, lines = audit(place=theirs / "train")
    assert code == int(bool(hashes or compression))
    if hashes:
        assert lines[0].startswith(f"{shard.name}: {hashes[0]} is ")


def jpeg_file(data: bytes, folder: Path) -> Image.Image:
    """The image as MDSWriter wants it: opened from a file, whose bytes it then stores."""
    path = folder / "image.jpeg"
    path.write_bytes(data)
    return Image.open(path)


def test_a_compressed_shard_is_checked_wherever_it_lies_unpacked(audit: Any, dataset: Path, tmp_path: Path) -> None:
    streaming, zstd = pytest.importorskip("streaming"), pytest.importorskip("zstd")
    theirs = tmp_path / "theirs"
    with streaming.MDSWriter(
        out=str(theirs), columns={"i": "int", "x": "jpeg", "y": "int"}, hashes=["sha256"], compression="zstd:3"
    ) as writer:
        for number, image, label in records_of(dataset / FIRST):
            writer.write({"i": number, "x": jpeg_file(image, tmp_path), "y": label})
    packed, raw = theirs / "shard.00000.mds.zstd", theirs / "shard.00000.mds"
    raw.write_bytes(zstd.decompress(packed.read_bytes()))
    assert audit(place=theirs) == (0, [])
    flip(raw, -50)
    code, lines = audit(place=theirs)
    assert code == 1
    assert lines[0].startswith(f"{raw.name}: sha256 is {sha256(raw)}, ")
    packed.unlink()
    assert audit(place=theirs)[1] == lines


def test_a_compressed_shard_is_checked_once_unpacked_too(audit: Any, dataset: Path, tmp_path: Path) -> None:
    streaming = pytest.importorskip("streaming")
    with streaming.MDSWriter(
        out=str(tmp_path / "x/all"), columns={"i": "int", "x": "jpeg", "y": "int"}, hashes=["md5"], compression="zstd:3"
    ) as writer:
        for number, image, label in records_of(dataset / FIRST):
            writer.write({"i": number, "x": jpeg_file(image, tmp_path), "y": label})
    name = "all/shard.00000.mds.zstd"
    raw = json.loads((tmp_path / "x/all/index.json").read_text())["shards"][0]["raw_data"]
    edit_index(tmp_path / "x", "all", lambda index: index["shards"][0]["raw_data"]["hashes"].update(md5="0"))
    line = f"{name}: md5 once unpacked is {raw['hashes']['md5']}, index.json says 0"
    assert audit(place=tmp_path / "x") == (1, [line])
    edit_index(tmp_path / "x", "all", lambda index: index["shards"][0]["raw_data"].update(bytes=7))
    line = f"{name}: it unpacks to more than 7 bytes, index.json says 7"
    assert audit(place=tmp_path / "x") == (1, [line])
