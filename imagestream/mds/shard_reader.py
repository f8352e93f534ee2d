"""Read MDS shards without torch, trusting nothing: every count and offset is checked before it is used.

`streaming`'s own reader takes a damaged offset at its word and imports torch, which costs seconds in each process.
The format is described in `imagestream/mds/shards.py`.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from imagestream.mds.unpacking import METHODS, UnpackError, can_unpack, unpacked

IMAGE_ENCODINGS = ("jpeg", "png", "bytes")  # an image file as it is; `jpegarray` and `list[jpeg]` hold several
_INTEGERS = {
    "int": "<q",
    "int8": "<b",
    "int16": "<h",
    "int32": "<i",
    "int64": "<q",
    "uint8": "<B",
    "uint16": "<H",
    "uint32": "<I",
    "uint64": "<Q",
}


class ShardError(ValueError):
    """An index or a shard that is not what MDS says it should be; the message says what was seen."""


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of a shard's records, in their order; `sizes` is None where they vary."""

    names: tuple[str, ...]
    encodings: tuple[str, ...]
    sizes: tuple[int | None, ...]


def columns_of(entry: Mapping[str, Any]) -> Columns:
    """The columns of a shard, given its entry in index.json.

    Raises:
        ShardError: it is not an MDS shard, or has no image column `x` and no integer column `y`.
    """
    try:
        if entry["format"] != "mds":
            raise ShardError(f"format {entry['format']!r}; only mds can be read")
        columns = Columns(*(tuple(entry[f"column_{what}"]) for what in ("names", "encodings", "sizes")))
        encodings = dict(zip(columns.names, columns.encodings, strict=True))
        dict(zip(columns.names, columns.sizes, strict=True))
    except (KeyError, TypeError, ValueError) as error:
        raise error if isinstance(error, ShardError) else ShardError(f"not an MDS shard's entry: {error!r}") from error
    if encodings.get("x") not in IMAGE_ENCODINGS or encodings.get("y") not in _INTEGERS:
        raise ShardError(f"columns {encodings}; needed are x (one of {', '.join(IMAGE_ENCODINGS)}) and y (an integer)")
    return columns


def record_offsets(head: bytes, *, samples: int, shard_bytes: int) -> list[int]:
    """Where the records of a shard begin, and where the last one ends: `samples + 1` offsets.

    Args:
        head: the shard's first bytes, at least 4 x (samples + 2) of them.
        samples: the count that index.json gives.
        shard_bytes: the shard's size.

    Raises:
        ShardError: the count differs, or the offsets do not rise from the head to the shard's end.
    """
    needed = 4 * (samples + 2)
    if len(head) < needed:
        raise ShardError(f"it has {len(head):,} bytes, too few for the offsets of {samples:,} samples")
    count, *offsets = struct.unpack_from(f"<{samples + 2}I", head)
    if count != samples:
        raise ShardError(f"it holds {count:,} samples, index.json says {samples:,}")
    previous = needed
    for number, offset in enumerate(offsets):
        if offset < previous:
            raise ShardError(f"the offset of sample {number} is {offset:,}, which lies before {previous:,}")
        previous = offset
    if previous != shard_bytes:
        raise ShardError(f"its last sample ends at byte {previous:,}, the file at {shard_bytes:,}")
    return offsets


def records(shard: bytes, *, samples: int) -> Iterator[memoryview]:
    """The records of a whole shard, in order. Raises ShardError as `record_offsets` does."""
    offsets = record_offsets(shard, samples=samples, shard_bytes=len(shard))
    view = memoryview(shard)
    for number in range(samples):
        yield view[offsets[number] : offsets[number + 1]]


def field_spans(sizes_head: bytes, columns: Columns, record_bytes: int) -> dict[str, tuple[int, int]]:
    """Where each column lies in a record: name -> (first byte, end).

    Args:
        sizes_head: the record's first bytes; 4 for each column of varying size are enough.

    Raises:
        ShardError: the columns do not fill the record exactly.
    """
    varying = sum(size is None for size in columns.sizes)
    if len(sizes_head) < 4 * varying:
        raise ShardError(f"a record of {record_bytes:,} bytes is too short for its columns")
    varying_sizes = iter(struct.unpack_from(f"<{varying}I", sizes_head))
    at, spans = 4 * varying, {}
    for name, size in zip(columns.names, columns.sizes, strict=True):
        end = at + (next(varying_sizes) if size is None else size)
        spans[name] = (at, end)
        at = end
    if at != record_bytes:
        raise ShardError(f"the columns of a record take {at:,} bytes, the record has {record_bytes:,}")
    return spans


def decode_record(record: bytes | memoryview, columns: Columns) -> dict[str, Any]:
    """A record's columns: integers decoded, all else as stored bytes. Raises ShardError as `field_spans` does."""
    values: dict[str, Any] = {}
    spans = field_spans(bytes(record[: 4 * len(columns.names)]), columns, len(record))
    for name, encoding in zip(columns.names, columns.encodings, strict=True):
        data = bytes(record[slice(*spans[name])])
        values[name] = decode_integer(data, encoding) if encoding in _INTEGERS else data
    return values


def is_integer(encoding: str) -> bool:
    """Whether a column of this encoding holds whole numbers."""
    return encoding in _INTEGERS


def decode_integer(data: bytes, encoding: str) -> int:
    """The value of an integer column."""
    try:
        return int(struct.unpack(_INTEGERS[encoding], data)[0])
    except struct.error:
        raise ShardError(f"{len(data)} bytes for a column of encoding {encoding}") from None


def raw_bytes(data: bytes, compression: str | None, *, size_bytes: int) -> bytes:
    """A shard's raw bytes, given those of its stored file and the `compression` of index.json.

    Args:
        size_bytes: of the raw shard, by index.json; no more memory than this is taken to unpack it.

    Raises:
        ShardError: the data is damaged, unpacks to another size, or was compressed by a method that nobody knows.
    """
    if compression is None:
        return data
    if not can_unpack(compression):
        raise ShardError(f"compression {compression!r}; those that can be read are {', '.join(METHODS)}")
    try:
        return unpacked(data, compression, size_bytes=size_bytes)
    except UnpackError as error:
        raise ShardError(str(error)) from error
