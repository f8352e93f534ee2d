"""An index that cannot be used is refused in one line, by each command that reads one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from train.config import load_config
from train.sections import DataConfig
from train.splits import DataError, read_index, read_manifest

SHARD = {"samples": 3, "raw_data": {"basename": "shard.00000.mds", "bytes": 99, "hashes": {}}, "zip_data": None}


def data(folder: Path) -> DataConfig:
    return load_config("yamls/tiny.yaml", [f"data.local={folder}"]).data


def text(content: Any) -> Callable[[Path], Any]:
    return lambda path: path.write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: path.symlink_to("/proc/self/mem"), "cannot be read: Input/output error"),
        (lambda path: path.write_bytes(b"\xff\xfe{"), "is damaged: 'utf-8' codec"),
        (text('{"shards": [{"samples"'), "is not an MDS index: Expecting"),
        (text(""), "is not an MDS index: Expecting value"),
        (text([SHARD]), "it has no list of shards"),
        (text("null"), "it has no list of shards"),
        (text({"version": 2}), "it has no list of shards"),
        (text({"shards": {"0": SHARD}}), "it has no list of shards"),
        (text({"shards": []}), "it lists no shards"),
        (text({"shards": [SHARD, 7]}), r"shard 1 has no file \(raw_data\)"),
        (text({"shards": [SHARD | {"raw_data": "shard.00000.mds"}]}), "shard 0 has no file"),
        (text({"shards": [SHARD | {"raw_data": {"basename": 7}}]}), "a file of shard 0 has no name"),
        (text({"shards": [SHARD | {"raw_data": {"basename": "x", "bytes": 9}}]}), "does not say its hashes"),
        (text({"shards": [SHARD | {"samples": "3"}]}), "shard 0 does not say how many samples"),
        (text({"shards": [SHARD | {"samples": -3}]}), "shard 0 does not say how many samples"),
        (text({"shards": [{"raw_data": SHARD["raw_data"]}]}), "shard 0 does not say how many samples"),
        (
            text({"shards": [SHARD | {"zip_data": {"basename": "x", "bytes": "1"}}]}),
            "shard 0 does not say how many samples and bytes",
        ),
    ],
)
def test_an_index_that_cannot_be_used_is_refused_in_one_line(
    tmp_path: Path, make: Callable[[Path], Any], words: str
) -> None:
    (tmp_path / "train").mkdir()
    path = tmp_path / "train/index.json"
    make(path)
    with pytest.raises(DataError, match=words) as raised:
        read_index(data(tmp_path), "train")
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_one_that_can_be_used_is(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train/index.json").write_text(json.dumps({"shards": [SHARD]}))
    assert read_index(data(tmp_path), "train") == {"shards": [SHARD]}


def test_a_manifest_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"manifest.json is damaged: 'utf-8' codec"):
        read_manifest(data(tmp_path))
