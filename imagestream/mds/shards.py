"""The exact bytes of an MDS shard and of its index. No effects here.

The format is MosaicML's MDS, version 2, with the columns of `streaming.vision.StreamingImageNet`. A test holds
the bytes against those of `streaming.MDSWriter`. That writer is not used because it imports torch (seconds in
each worker) and, given an image that is not a file, encodes it anew.

A shard is: uint32 count, uint32 offsets[count + 1], config JSON, samples; all little-endian.
A sample is: uint32 length of x, int64 i, bytes x, int64 y.
"""

import hashlib
import json
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import xxhash
import zstd

INDEX_NAME = "index.json"
MAX_SIZE_LIMIT_BYTES = 2**31 - 1  # offsets are uint32, and mending may make images larger than planned

# By the names that `streaming` knows them by.
HASHES: Mapping[str, Callable[[bytes], Any]] = {
    "sha256": hashlib.sha256,
    "sha1": hashlib.sha1,
    "md5": hashlib.md5,
    "xxh64": xxhash.xxh64,
    "xxh128": xxhash.xxh128,
}
DEFAULT_HASHES = ("sha256", "xxh64")  # one that nobody can forge, and one that costs the reader next to nothing
ZSTD_LEVELS = range(1, 23)

SAMPLE_OVERHEAD_BYTES = 4 + 8 + 8 + 4  # length of x, i, y, and the offset in the shard's head
_COLUMNS = {"i": "int", "x": "jpeg", "y": "int"}
_COLUMN_SIZES = {"int": 8, "jpeg": None}
_OUR_NAME = re.compile(r"index\.json|shard\.\d{5,}\.mds(\.zstd)?")


@dataclass(frozen=True, slots=True)
class ShardFormat:
    """How shards are written.

    Attributes:
        size_limit_bytes: of one shard, before compression.
        hashes: names out of HASHES.
        compression: None, or `zstd:<level>` with a level of 1 to 22.
    """

    size_limit_bytes: int
    hashes: tuple[str, ...] = DEFAULT_HASHES
    compression: str | None = None


@dataclass(frozen=True, slots=True)
class EncodedShard:
    """A shard ready to be written: the name and bytes of its file, and what index.json says of it."""

    file: str
    data: bytes
    entry: dict[str, Any]


def shard_file(index: int, form: ShardFormat) -> str:
    """The name of a shard's file."""
    return f"shard.{index:05}.mds" + (".zstd" if form.compression else "")


def is_our_name(name: str) -> bool:
    """Whether a file of this name in a split's folder is one that a conversion writes."""
    return _OUR_NAME.fullmatch(name) is not None


def empty_shard_bytes(form: ShardFormat) -> int:
    """The size of a shard without samples."""
    return 4 + 4 + len(_config_json(form))


def encode_sample(sample_id: int, jpeg: bytes, label: int) -> bytes:
    return struct.pack("<Iq", len(jpeg), sample_id) + jpeg + struct.pack("<q", label)


def encode_shard(index: int, samples: Sequence[bytes], form: ShardFormat) -> EncodedShard:
    """A shard out of encoded samples.

    Raises:
        OverflowError: the samples do not fit into a shard's uint32 offsets.
    """
    raw = _raw_shard(samples, form)
    basename = f"shard.{index:05}.mds"
    raw_data = {"basename": basename, "bytes": len(raw), "hashes": _hashes(raw, form)}
    file, data, zip_data = basename, raw, None
    if form.compression:
        file, data = shard_file(index, form), zstd.compress(raw, int(form.compression.removeprefix("zstd:")))
        zip_data = {"basename": file, "bytes": len(data), "hashes": _hashes(data, form)}
    entry = {"samples": len(samples), "raw_data": raw_data, "zip_data": zip_data, **_config(form)}
    return EncodedShard(file, data, entry)


def encode_index(entries: Sequence[dict[str, Any]]) -> bytes:
    """The bytes of index.json; its presence is what makes a folder of shards a dataset."""
    return json.dumps({"version": 2, "shards": list(entries)}, sort_keys=True).encode()


def _raw_shard(samples: Sequence[bytes], form: ShardFormat) -> bytes:
    config = _config_json(form)
    count = len(samples)
    head_bytes = 4 + 4 * (count + 1) + len(config)
    offsets = list(accumulate(map(len, samples), initial=head_bytes))
    if offsets[-1] >= 2**32:
        raise OverflowError(f"a shard of {offsets[-1]:,} bytes is over the format's 4 GiB; use a smaller --size-limit")
    return b"".join([struct.pack(f"<I{count + 1}I", count, *offsets), config, *samples])


def _hashes(data: bytes, form: ShardFormat) -> dict[str, str]:
    return {name: HASHES[name](data).hexdigest() for name in form.hashes}


def _config(form: ShardFormat) -> dict[str, Any]:
    return {
        "version": 2,
        "format": "mds",
        "compression": form.compression,
        "hashes": list(form.hashes),
        "size_limit": form.size_limit_bytes,
        "column_names": list(_COLUMNS),
        "column_encodings": list(_COLUMNS.values()),
        "column_sizes": [_COLUMN_SIZES[encoding] for encoding in _COLUMNS.values()],
    }


def _config_json(form: ShardFormat) -> bytes:
    return json.dumps(_config(form), sort_keys=True).encode()
