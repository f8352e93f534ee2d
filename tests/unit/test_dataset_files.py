"""A dataset's index and manifest: read once, and refused in one line where they cannot be used."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from imagestream import CenterCrop, Loader, RandomResizedCrop
from imagestream.data.dataset_files import DatasetFiles
from imagestream.mds.index import DataError
from imagestream.storage.local import LocalPlace

SHARD: dict[str, Any] = {
    "version": 2,
    "format": "mds",
    "compression": None,
    "hashes": [],
    "size_limit": 1 << 26,
    "column_names": ["x", "y"],
    "column_encodings": ["jpeg", "int"],
    "column_sizes": [None, 8],
    "samples": 3,
    "raw_data": {"basename": "shard.00000.mds", "bytes": 99, "hashes": {}},
    "zip_data": None,
}
ZIP = {"basename": "shard.00000.mds.zstd", "bytes": 40, "hashes": {}}


def named(name: str) -> dict[str, Any]:
    return SHARD | {"raw_data": SHARD["raw_data"] | {"basename": name}}


def data(folder: Path) -> DatasetFiles:
    return DatasetFiles(None, str(folder))


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
        (text({"shards": [SHARD | {"samples": 0}]}), "shard 0 does not say how many samples"),
        (text({"shards": [SHARD | {"samples": True}]}), "shard 0 does not say how many samples"),
        (text({"shards": [SHARD | {"samples": 4e9}]}), "shard 0 does not say how many samples"),
        (text({"shards": [SHARD | {"samples": 4 * 10**9}]}), "shard 0 has 4,000,000,000 samples in 99 bytes, too few"),
        (
            text({"shards": [SHARD | {"samples": 10**9, "raw_data": SHARD["raw_data"] | {"bytes": 2**32}}]}),
            "shard 0 has 4,294,967,296 bytes; a shard has at most 4,294,967,295",
        ),
        (text("[" * 100_000), "is not an MDS index: maximum recursion"),
        (text({"shards": [named("../../precious/x")]}), r'named "../../precious/x": it must be a path below the split'),
        (text({"shards": [named("/etc/passwd")]}), r'named "/etc/passwd": it must be a path below the split'),
        (text({"shards": [named("a/../../x")]}), "it must be a path below the split"),
        (text({"shards": [named("a//x")]}), "it must be a path below the split"),
        (text({"shards": [named("..\\x")]}), "it must be a path below the split"),
        (text({"shards": [named("")]}), "it must be text"),
        (text({"shards": [named(".")]}), "it must not begin with a dot"),
        (text({"shards": [named("a/.git/x")]}), "it must not begin with a dot"),
        (text({"shards": [named("x" * 256)]}), "it must not have a part of more than 255 bytes"),
        (text({"shards": [named("\x1b]0;owned\x07")]}), r'named "\\u001b\]0;owned\\u0007": it must not have control'),
        (text({"shards": [named("\u202egnp.x")]}), r'named "\\u202egnp.x": it must not have control'),
        (text({"shards": [named("\ud800")]}), r'named "\\ud800": it must not have control'),
        (
            text({"shards": [SHARD | {"compression": "zstd", "zip_data": ZIP | {"basename": "../x"}}]}),
            'a file of shard 0 is named "../x"',
        ),
        (text({"shards": [SHARD, SHARD]}), "it lists two files of the name shard.00000.mds"),
        (
            text({"shards": [SHARD | {"compression": "zstd", "zip_data": ZIP | {"basename": "shard.00000.mds"}}]}),
            "it lists two files of the name shard.00000.mds",
        ),
        (text({"shards": [SHARD | {"zip_data": ZIP}]}), "a compression without a compressed file"),
        (text({"shards": [SHARD | {"compression": "zstd"}]}), "a compression without a compressed file"),
        (text({"shards": [SHARD | {"compression": "{lzma}", "zip_data": ZIP}]}), r'the compression "{lzma}"; br, bz2'),
        (text({"shards": [SHARD | {"format": "json"}]}), r'shard 0 has format and version \["json", 2\]; mds, 2 can'),
        (text({"shards": [SHARD | {"color": 1}]}), 'shard 0 has the unknown key "color"'),
        (text({"shards": [{key: SHARD[key] for key in SHARD if key != "column_sizes"}]}), 'lacks "column_sizes"'),
        (text({"shards": [SHARD | {"column_sizes": [None]}]}), "a name, an encoding and a size of each column"),
        (text({"shards": [SHARD | {"column_sizes": [None, -8]}]}), "a name, an encoding and a size of each column"),
        (text({"shards": [SHARD | {"column_names": ["x", "x"]}]}), "a name, an encoding and a size of each column"),
        (text({"shards": [SHARD | {"column_encodings": ["jpeg", None]}]}), "a name, an encoding and a size of each"),
        (
            text({"shards": [SHARD | {"zip_data": ZIP | {"bytes": "1"}}]}),
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
        data(tmp_path).index("train")
    assert str(path) in str(raised.value) and str(raised.value).isprintable()


def test_one_that_can_be_used_is(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train/index.json").write_text(json.dumps({"shards": [SHARD]}))
    assert data(tmp_path).index("train") == {"shards": [SHARD]}


def test_folders_below_the_splits_are_allowed(tmp_path: Path) -> None:
    """As streaming's merge_index writes them."""
    (tmp_path / "train").mkdir()
    index = {"shards": [named("part0/shard.00000.mds"), named("part1/shard.00000.mds")]}
    (tmp_path / "train/index.json").write_text(json.dumps(index))
    assert data(tmp_path).index("train") == index


def test_a_manifest_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"manifest.json is damaged: 'utf-8' codec"):
        data(tmp_path).manifest()


def test_a_run_reads_each_of_them_once(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To work out its plan, to open both splits, and to check them against the manifest."""
    read, upstream = Counter[str](), LocalPlace.read

    def counting(self: LocalPlace, name: str, *part: int) -> bytes:
        read[name] += 1
        return upstream(self, name, *part)

    monkeypatch.setattr(LocalPlace, "read", counting)
    files = DatasetFiles(None, str(shards))
    for split, crop in (("train", RandomResizedCrop(32)), ("val", CenterCrop(32))):
        assert files.count(split) and files.fingerprint(split) and files.class_names()
        Loader(files, split=split, batch_size=4, crop=crop, num_workers=0)
    assert read == {"train/index.json": 1, "val/index.json": 1, "manifest.json": 1}
