"""Ways to damage a dataset, for the tests of its audit."""

import hashlib
import json
import struct
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from imagestream.mds.files_table import FILES_NAME, SCHEMA
from imagestream.mds.manifest import dataset_fingerprint, index_fingerprint

Record = tuple[int, bytes, int]  # id, image, label
FIRST, SECOND, LAST = "train/shard.00000.mds", "train/shard.00001.mds", "val/shard.00000.mds"


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def entry_of(dataset: Path, path: str) -> dict[str, Any]:
    split, name = path.split("/")
    index = json.loads((dataset / split / "index.json").read_text())
    return next(entry for entry in index["shards"] if entry["raw_data"]["basename"] == name)


def hash_line(dataset: Path, path: str) -> str:
    """What the audit has to say of a shard whose bytes are not those that were written."""
    xxhash = pytest.importorskip("xxhash")
    promised, data = entry_of(dataset, path)["raw_data"]["hashes"], (dataset / path).read_bytes()
    return (
        f"{path}: sha256 is {hashlib.sha256(data).hexdigest()}, index.json says {promised['sha256']}; "
        f"xxh64 is {xxhash.xxh64(data).hexdigest()}, index.json says {promised['xxh64']}"
    )


def records_of(path: Path) -> list[Record]:
    data = path.read_bytes()
    (count,) = struct.unpack_from("<I", data)
    offsets = struct.unpack_from(f"<{count + 1}I", data, 4)
    found = []
    for number in range(count):
        size, sample_id = struct.unpack_from("<Iq", data, offsets[number])
        start = offsets[number] + 12
        found.append((sample_id, data[start : start + size], struct.unpack_from("<q", data, start + size)[0]))
    return found


def files_of(dataset: Path) -> list[dict[str, Any]]:
    """The rows of files.parquet."""
    rows: list[dict[str, Any]] = pq.read_table(dataset / FILES_NAME).to_pylist()
    return rows


def write_files(dataset: Path, rows: list[dict[str, Any]]) -> None:
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), dataset / FILES_NAME)


def _replace_rows(table: Path, split: str, before: list[int], records: list[Record]) -> None:
    """Have a shard's records in place of those with the ids of before, which lie side by side."""
    rows = files_of(table.parent)
    at = [place for place, row in enumerate(rows) if row["split"] == split and row["id"] in before]
    paths = {row["id"]: row["path"] for row in rows[at[0] : at[-1] + 1]}
    rows[at[0] : at[-1] + 1] = [
        {
            "id": number,
            "split": split,
            "path": paths.get(number, "new.jpg"),
            "label": label if abs(label) < 2**31 else -1,
            "bytes": len(image),
            **dict(zip(("width", "height"), _size(image), strict=True)),
            "sha256": hashlib.sha256(image).digest(),
        }
        for number, image, label in records
    ]
    write_files(table.parent, rows)


def _size(image: bytes) -> tuple[int, int]:
    try:
        return Image.open(BytesIO(image)).size
    except OSError:
        return 0, 0


def rewrite(dataset: Path, path: str, change: Callable[[list[Record]], None]) -> None:
    """Change a shard's records, and make sizes, hashes, fingerprints and counts fit, as if it had been made so."""
    xxhash = pytest.importorskip("xxhash")
    records, old = records_of(dataset / path), (dataset / path).read_bytes()
    config = old[4 * (len(records) + 2) : struct.unpack_from("<I", old, 4)[0]]
    before = [number for number, _, _ in records]
    change(records)
    _replace_rows(dataset / FILES_NAME, path.split("/")[0], before, records)
    encoded = [
        struct.pack("<Iq", len(image), number) + image + struct.pack("<q", label) for number, image, label in records
    ]
    offsets = np.cumsum([4 * (len(records) + 2) + len(config), *map(len, encoded)]).astype("<u4")
    data = struct.pack("<I", len(records)) + offsets.tobytes() + config + b"".join(encoded)
    (dataset / path).write_bytes(data)

    split, name = path.split("/")
    index_path = dataset / split / "index.json"
    index = json.loads(index_path.read_text())
    for entry in index["shards"]:
        if entry["raw_data"]["basename"] == name:
            hashes = {"sha256": hashlib.sha256(data).hexdigest(), "xxh64": xxhash.xxh64(data).hexdigest()}
            entry["raw_data"] |= {"bytes": len(data), "hashes": hashes}
            entry["samples"] = len(records)
    index_path.write_text(json.dumps(index))

    def fit(manifest: dict[str, Any]) -> None:
        labels = [label for e in index["shards"] for _, _, label in records_of(index_path.parent / name_of(e))]
        classes = range(len(manifest["classes"]))
        manifest["splits"][split] |= {
            "samples": sum(label in classes for label in labels),
            "bytes": sum(e["raw_data"]["bytes"] for e in index["shards"]),
            "histogram": [labels.count(label) for label in classes],
            "fingerprint": index_fingerprint(index),
        }

    edit_manifest(dataset, fit)


def name_of(entry: dict[str, Any]) -> str:
    return str(entry["raw_data"]["basename"])


def edit_manifest(dataset: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest, and make its fingerprint fit."""
    path = dataset / "manifest.json"
    content = json.loads(path.read_text())
    change(content)
    splits = {name: type("Split", (), split) for name, split in content["splits"].items()}
    classes = tuple(type("Class", (), info) for info in content["classes"])
    content["fingerprint"] = dataset_fingerprint(classes, splits)  # type: ignore[arg-type]  # look-alikes
    path.write_text(json.dumps(content))


def edit_index(dataset: Path, split: str, change: Callable[[dict[str, Any]], None]) -> None:
    path = dataset / split / "index.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def as_png(records: list[Record]) -> None:
    encoded = BytesIO()
    Image.open(BytesIO(records[2][1])).save(encoded, "PNG")
    records[2] = (records[2][0], encoded.getvalue(), records[2][2])
