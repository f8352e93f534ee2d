"""Existing shards are read in place, or unpacked into the spool; ids keep their order."""

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstd
from PIL import Image

from convert.imagenet_classes import WNIDS
from convert.sources import SourceError, open_source
from imagestream.mds.manifest import ClassInfo, Manifest
from tests.layouts import images, write_folder
from tests.unit.test_convert_layouts import contents

CONFIG = {
    "version": 2,
    "format": "mds",
    "compression": None,
    "hashes": ["xxh64"],
    "size_limit": 1000,
    "column_names": ["i", "x", "y"],
    "column_encodings": ["int", "jpeg", "int"],
    "column_sizes": [8, None, 8],
}
Row = tuple[int, bytes, int]  # i, x, y
ROWS: list[list[Row]] = [[(2, b"two", 1), (0, b"zero!", 0)], [(5, b"", 2), (1, b"one", 0)]]
IN_ORDER = [
    ("train/class0000/00000000", 0, b"zero!"),
    ("train/class0000/00000001", 0, b"one"),
    ("train/class0001/00000002", 1, b"two"),
    ("train/class0002/00000005", 2, b""),
]


def encode(rows: list[Row]) -> bytes:
    records = [struct.pack("<Iq", len(x), i) + x + struct.pack("<q", y) for i, x, y in rows]
    offsets = [4 + 4 * (len(rows) + 1)]
    for record in records:
        offsets.append(offsets[-1] + len(record))
    return struct.pack(f"<{len(rows) + 2}I", len(rows), *offsets) + b"".join(records)


def no_hashes(data: bytes) -> dict[str, str]:
    return {}


def write(
    folder: Path,
    shards: list[list[Row]],
    *,
    compress: bool = False,
    hashes: Callable[[bytes], dict[str, str]] = no_hashes,
) -> Path:
    """An MDS split."""
    folder.mkdir(parents=True, exist_ok=True)
    entries: list[dict[str, Any]] = []
    for number, rows in enumerate(shards):
        data, name = encode(rows), f"shard.{number:05}.mds"
        entry = {**CONFIG, "samples": len(rows), "zip_data": None}
        entry["raw_data"] = {"basename": name, "bytes": len(data), "hashes": hashes(data)}
        if compress:
            packed = zstd.compress(data, 3)
            entry["compression"] = "zstd:3"
            entry["zip_data"] = {"basename": f"{name}.zstd", "bytes": len(packed), "hashes": hashes(packed)}
            (folder / f"{name}.zstd").write_bytes(packed)
        else:
            (folder / name).write_bytes(data)
        entries.append(entry)
    (folder / "index.json").write_text(json.dumps({"version": 2, "shards": entries}))
    return folder


def sha256(data: bytes) -> dict[str, str]:
    return {"unheard-of": "1", "sha256": hashlib.sha256(data).hexdigest()}


def test_raw_shards_are_read_in_place_in_the_order_of_their_ids(tmp_path: Path) -> None:
    write(tmp_path / "mds/train", ROWS)
    source = open_source(str(tmp_path / "mds"))
    assert (source.layout, source.splits(None)) == ("mds", ["train"])
    assert contents(source, "train") == IN_ORDER


def test_compressed_shards_are_unpacked_once(tmp_path: Path) -> None:
    write(tmp_path / "mds/train", ROWS, compress=True, hashes=sha256)
    with pytest.raises(SourceError, match="shards that are compressed or in a bucket cannot be read in place"):
        open_source(str(tmp_path / "mds"))
    assert contents(open_source(str(tmp_path / "mds"), spool=tmp_path / "spool"), "train") == IN_ORDER
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "spool").iterdir()}
    assert len(times) == 2
    (tmp_path / "mds/train/shard.00000.mds.zstd").rename(tmp_path / "gone")
    assert contents(open_source(str(tmp_path / "mds"), spool=tmp_path / "spool"), "train") == IN_ORDER
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "spool").iterdir()} == times


def test_a_damaged_shard_in_the_spool_is_unpacked_anew(tmp_path: Path) -> None:
    write(tmp_path / "mds/train", ROWS, compress=True, hashes=sha256)
    contents(open_source(str(tmp_path / "mds"), spool=tmp_path / "spool"), "train")
    for path in (tmp_path / "spool").iterdir():
        path.write_bytes(path.read_bytes()[:-1] + b"!")
    assert contents(open_source(str(tmp_path / "mds"), spool=tmp_path / "spool"), "train") == IN_ORDER


def test_one_spool_serves_several_datasets(tmp_path: Path) -> None:
    other = [[(i, x.upper(), y) for i, x, y in rows] for rows in ROWS]
    for name, rows in (("a", ROWS), ("b", other)):
        write(tmp_path / name / "train", rows, compress=True)
    for name, expected in (("a", b"zero!"), ("b", b"ZERO!"), ("a", b"zero!")):
        assert contents(open_source(str(tmp_path / name), spool=tmp_path / "spool"), "train")[0][2] == expected


def test_one_split_alone_is_train_unless_named(tmp_path: Path) -> None:
    source = open_source(str(write(tmp_path / "mds", ROWS)))
    assert source.splits(None) == ["train"]
    assert source.splits(["val"]) == ["val"]
    assert contents(source, "val")[0][0] == "val/class0000/00000000"
    with pytest.raises(SourceError, match="is one split; name one with --splits"):
        source.splits(["train", "val"])


def test_a_manifest_names_the_classes(tmp_path: Path) -> None:
    write(tmp_path / "mds/train", ROWS)
    wnids = ("n03", "n01", "n02")  # not sorted: labels are put in order
    infos = tuple(ClassInfo(index=i, wnid=wnid, name=f"name of {wnid}") for i, wnid in enumerate(wnids))
    (tmp_path / "mds/manifest.json").write_bytes(Manifest.of(infos, {}).to_json())
    source = open_source(str(tmp_path / "mds"))
    assert source.class_names(["train"]) == ["n01", "n02", "n03"]
    assert source.readable_names()["n01"] == "name of n01"
    assert [(key, label) for key, label, _ in contents(source, "train")] == [
        ("train/n03/00000000", 2),
        ("train/n03/00000001", 2),
        ("train/n01/00000002", 0),
        ("train/n02/00000005", 1),
    ]


def test_a_damaged_manifest_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "mds/train", ROWS)
    (tmp_path / "mds/manifest.json").write_text("{")
    with pytest.raises(SourceError, match=r"manifest\.json is not a valid manifest"):
        open_source(str(tmp_path / "mds")).class_names(["train"])


def test_a_thousand_labels_are_taken_for_imagenets(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = open_source(str(write(tmp_path / "mds", [[(0, b"x", 999)]])))
    assert source.class_names(["train"]) == list(WNIDS)
    assert "names no classes; its 1,000 labels are taken for ImageNet's" in caplog.text
    assert contents(source, "train") == [("train/n15075141/00000000", 999, b"x")]


def test_ids_that_repeat_give_way_to_positions_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = open_source(str(write(tmp_path / "mds", [[(7, b"a", 0)], [(7, b"b", 0)]])))
    assert [(key, data) for key, _, data in contents(source, "train")] == [
        ("train/class0000/00000000", b"a"),
        ("train/class0000/00000001", b"b"),
    ]
    assert "column i of train does not number the samples" in caplog.text


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_out_of_range_names_the_shard(tmp_path: Path, label: int) -> None:
    source = open_source(str(write(tmp_path / "mds", [ROWS[0], [(9, b"x", label)]])))
    with pytest.raises(SourceError, match=rf"00001\.mds: sample 0 has the label {label}; it must be 0 to 2"):
        source.listing("train", ["class0000", "class0001", "class0002"])


def test_a_damaged_label_does_not_make_a_million_classes(tmp_path: Path) -> None:
    source = open_source(str(write(tmp_path / "mds", [[(0, b"x", 2**60)]])))
    with pytest.raises(SourceError, match=r"shard\.00000\.mds: sample 0 has the label 1152921504606846976"):
        source.class_names(["train"])


def damage(path: Path, at: int, value: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] = value
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: damage(path, 5, 9), "is damaged: the offset of sample 1|is damaged: the offset|damaged"),
        (lambda path: damage(path, 0, 7), "it holds 7 samples, index.json says 2"),
        (lambda path: damage(path, 16, 200), "the columns of a record take"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "has .* bytes, index.json says"),
        (lambda path: path.unlink(), "shard.00001.mds is missing; fetch it again"),
    ],
)
def test_a_damaged_shard_is_named(spoil: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    spoil(write(tmp_path / "mds", ROWS) / "shard.00001.mds")
    with pytest.raises(SourceError, match=message) as error:
        contents(open_source(str(tmp_path / "mds")), "train")
    assert "shard.00001.mds" in str(error.value)


@pytest.mark.parametrize("compress", [False, True])
def test_a_shard_is_checked_against_its_hash(tmp_path: Path, compress: bool) -> None:
    folder = write(tmp_path / "mds", ROWS, compress=compress, hashes=sha256)
    path = next(folder.glob("shard.00001*"))
    damage(path, -1, path.read_bytes()[-1] ^ 1)
    with pytest.raises(SourceError, match=r"shard\.00001\.mds is damaged: the sha256 of .*index\.json says"):
        contents(open_source(str(tmp_path / "mds"), spool=tmp_path / "spool"), "train")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: index.pop("shards"), "is not the index of an MDS dataset"),
        (lambda index: index.update(shards=[]), "lists no shards"),
        (lambda index: index["shards"][0].update(format="json"), "format 'json'; only mds"),
        (lambda index: index["shards"][0].update(column_encodings=["int", "str", "int"]), "needed are x"),
        (lambda index: index["shards"][0]["raw_data"].update(basename="../x"), "'../x' is not the name of a shard"),
    ],
)
def test_an_index_that_cannot_be_used_is_named(
    change: Callable[[dict[str, Any]], None], message: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "mds/train", ROWS) / "index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))
    with pytest.raises(SourceError, match=message):
        contents(open_source(str(tmp_path / "mds")), "train")


def test_shards_of_mdswriter_are_read(tmp_path: Path) -> None:
    streaming = pytest.importorskip("streaming")
    paths = [path for _, path in images(write_folder(tmp_path / "folder"), "val")]
    columns = {"x": "jpeg", "y": "int"}  # without i: the order of the shards counts
    for compression in (None, "zstd:7", "gz:1", "snappy"):
        out = tmp_path / f"{compression}"
        with streaming.MDSWriter(
            out=str(out / "val"), columns=columns, compression=compression, hashes=["sha1", "xxh128"], size_limit=6000
        ) as writer:
            for number, path in enumerate(paths):
                writer.write({"x": Image.open(path), "y": number % 3})  # it stores an opened JPEG as it is
        source = open_source(str(out), spool=tmp_path / "spool")
        assert len(json.loads((out / "val/index.json").read_text())["shards"]) > 1
        assert contents(source, "val") == [
            (f"val/class000{number % 3}/{number:08}", number % 3, path.read_bytes())
            for number, path in enumerate(paths)
        ]
