"""The shards of one split of an MDS dataset: what index.json says of them, and where the images are in each."""

import hashlib
import json
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import xxhash

from convert.sources.base import SourceError
from convert.sources.spool import whole_file
from imagestream.mds.names import fault_of_name
from imagestream.mds.shard_reader import (
    Columns,
    ShardError,
    columns_of,
    decode_integer,
    field_spans,
    is_integer,
    raw_bytes,
    record_offsets,
)
from imagestream.storage.protocol import Place

INDEX_NAME = "index.json"
# Those that streaming can write, the fast ones first: one is checked.
_HASHES: dict[str, Callable[[bytes], Any]] = {
    "xxh3_64": xxhash.xxh3_64,
    "xxh3_128": xxhash.xxh3_128,
    "xxh64": xxhash.xxh64,
    "xxh128": xxhash.xxh128,
    "xxh32": xxhash.xxh32,
    "sha1": hashlib.sha1,
    "sha256": hashlib.sha256,
    "md5": hashlib.md5,
    "blake2b": hashlib.blake2b,
    "sha512": hashlib.sha512,
}


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A shard's file, raw or compressed, as index.json has it."""

    name: str
    size_bytes: int
    hashes: dict[str, str]


@dataclass(frozen=True, slots=True)
class Shard:
    """One shard as index.json has it; `packed` is its compressed file, where it has one."""

    raw: StoredFile
    packed: StoredFile | None
    compression: str | None
    samples: int
    columns: Columns


@dataclass(frozen=True, slots=True)
class Rows:
    """Where the images of a shard are: item n of each array is of sample n.

    Attributes:
        file: below the files that the images are read from.
        ids: of column `i`; empty where there is none.
    """

    file: str
    offsets_bytes: "array[int]"
    sizes_bytes: "array[int]"
    labels: "array[int]"
    ids: "array[int]"


def read_index(files: Place, folder: str) -> list[Shard]:
    """The shards of a split. Raises SourceError where index.json is damaged or describes no shards of images."""
    name = folder + INDEX_NAME
    try:
        shards = [_shard(folder, entry) for entry in json.loads(files.read(name))["shards"]]
    except ShardError as error:
        raise SourceError(f"{files}/{name}: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(f"{files}/{name} is not the index of an MDS dataset: {error!r}") from error
    if not shards:
        raise SourceError(f"{files}/{name} lists no shards")
    return shards


def read_rows(files: Place, shard: Shard, spool: Path | None) -> Rows:
    """Find the images of a shard, having checked its hash.

    Args:
        spool: where to put the raw shard; None: it is read in place.

    Raises:
        SourceError: it is missing or damaged.
    """
    where = f"{files}/{shard.raw.name}"
    try:
        if spool is None:
            data, file = _checked(files.read(shard.raw.name), shard.raw), shard.raw.name
        else:
            data, file = _spooled(files, shard, spool)
        return _rows(data, shard, file)
    except FileNotFoundError as error:
        raise SourceError(f"the shard {error.filename or where} is missing; fetch it again") from error
    except ShardError as error:
        raise SourceError(f"the shard {where} is damaged: {error}. Fetch it again.") from error


def _rows(data: bytes, shard: Shard, file: str) -> Rows:
    columns = shard.columns
    rows = Rows(file, array("q"), array("q"), array("q"), array("q"))
    encodings = dict(zip(columns.names, columns.encodings, strict=True))
    head_bytes = 4 * sum(size is None for size in columns.sizes)
    for start, end in pairwise(record_offsets(data, samples=shard.samples, shard_bytes=len(data))):
        spans = field_spans(data[start : min(end, start + head_bytes)], columns, end - start)
        first, last = spans["x"]
        rows.offsets_bytes.append(start + first)
        rows.sizes_bytes.append(last - first)
        for column, values in (("y", rows.labels), ("i", rows.ids)):
            if column in spans and is_integer(encodings[column]):
                first, last = spans[column]
                values.append(decode_integer(data[start + first : start + last], encodings[column]))
    return rows


def _spooled(files: Place, shard: Shard, spool: Path) -> tuple[bytes, str]:
    """The raw shard and its name in the spool, where one of an earlier run is used if it is whole."""
    # The name says which shard it is, of which dataset: one spool may serve several.
    identity = f"{files}|{shard}".encode()
    name = f"{shard.raw.name.replace('/', '-')}.{hashlib.blake2b(identity, digest_size=8).hexdigest()}"
    path = spool / name
    try:
        return _checked(path.read_bytes(), shard.raw), name
    except (FileNotFoundError, ShardError):
        pass  # a damaged one is replaced
    if shard.packed is None or files.stat(shard.packed.name) is None:
        data = files.read(shard.raw.name)
    else:
        packed = _checked(files.read(shard.packed.name), shard.packed)
        data = raw_bytes(packed, shard.compression, size_bytes=shard.raw.size_bytes)
    with whole_file(path) as file:
        file.write(_checked(data, shard.raw))
    return data, name


def _checked(data: bytes, stored: StoredFile) -> bytes:
    """The content of a file, if it is what index.json says; else ShardError."""
    if len(data) != stored.size_bytes:
        raise ShardError(f"{stored.name} has {len(data):,} bytes, index.json says {stored.size_bytes:,}")
    for name, function in _HASHES.items():
        if name in stored.hashes:
            seen = function(data).hexdigest()
            if seen != stored.hashes[name]:
                raise ShardError(f"the {name} of {stored.name} is {seen}, index.json says {stored.hashes[name]}")
            break
    return data


def _shard(folder: str, entry: Mapping[str, Any]) -> Shard:
    packed = entry.get("zip_data")
    return Shard(
        raw=_stored_file(folder, entry["raw_data"]),
        packed=_stored_file(folder, packed) if packed else None,
        compression=entry.get("compression"),
        samples=int(entry["samples"]),
        columns=columns_of(entry),
    )


def _stored_file(folder: str, entry: Mapping[str, Any]) -> StoredFile:
    name = entry["basename"]
    if fault := fault_of_name(name):
        raise ShardError(f"{name!r} is not the name of a shard: it {fault}")
    return StoredFile(folder + name, int(entry["bytes"]), dict(entry.get("hashes") or {}))


def in_place(files: Place, shards: list[Shard]) -> bool:
    """Whether the images of these shards can be read where they are."""
    return files.path is not None and all(
        files.stat(shard.raw.name) is not None or shard.packed is None for shard in shards
    )
