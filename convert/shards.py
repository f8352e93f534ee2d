"""Which samples go into which shard, and the exact bytes of an MDS shard and its index. No effects here.

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
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import xxhash

from convert.sources import Sample

INDEX_NAME = "index.json"
HASHES = ("sha256", "xxh64")  # one that nobody can forge, and one that costs the reader next to nothing
MAX_SIZE_LIMIT_BYTES = 2**31 - 1  # offsets are uint32, and mending may make images larger than planned

_COLUMNS = {"i": "int", "x": "jpeg", "y": "int"}
_COLUMN_SIZES = {"int": 8, "jpeg": None}
_SAMPLE_OVERHEAD_BYTES = 4 + 8 + 8 + 4  # length of x, i, y, and the offset in the shard's head
_OUR_NAME = re.compile(r"index\.json|shard\.\d{5,}\.mds")


def shuffled_ids(samples: Sequence[Sample], *, split: str, seed: int) -> list[int]:
    """Sample ids in the order in which the shards hold them.

    Sorted by a keyed hash rather than drawn from an RNG: adding a file moves no other, and the order depends
    on no library's version.
    """

    def rank(sample_id: int) -> bytes:
        text = f"{seed}\0{split}\0{samples[sample_id].key}"
        return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).digest()

    return sorted(range(len(samples)), key=rank)


def plan_shards(sizes_bytes: Sequence[int], size_limit_bytes: int) -> Iterator[range]:
    """Cut a sequence of images, given by size, into runs that fill a shard up to the limit.

    An image larger than the limit has a shard of its own.
    """
    empty_shard = 4 + 4 + len(_config_json(size_limit_bytes))
    start, filled = 0, empty_shard
    for position, size in enumerate(sizes_bytes):
        size += _SAMPLE_OVERHEAD_BYTES
        if position > start and filled + size > size_limit_bytes:
            yield range(start, position)
            start, filled = position, empty_shard
        filled += size
    if start < len(sizes_bytes):
        yield range(start, len(sizes_bytes))


def shard_name(index: int) -> str:
    return f"shard.{index:05}.mds"


def is_our_name(name: str) -> bool:
    """Whether a file of this name in a split's folder is one that a conversion writes."""
    return _OUR_NAME.fullmatch(name) is not None


def encode_sample(sample_id: int, jpeg: bytes, label: int) -> bytes:
    return struct.pack("<Iq", len(jpeg), sample_id) + jpeg + struct.pack("<q", label)


def encode_shard(samples: Sequence[bytes], size_limit_bytes: int) -> bytes:
    """The bytes of a shard file out of encoded samples.

    Raises:
        OverflowError: the samples do not fit into a shard's uint32 offsets.
    """
    config = _config_json(size_limit_bytes)
    count = len(samples)
    head_bytes = 4 + 4 * (count + 1) + len(config)
    offsets = list(accumulate(map(len, samples), initial=head_bytes))
    if offsets[-1] >= 2**32:
        raise OverflowError(f"a shard of {offsets[-1]:,} bytes is over the format's 4 GiB; use a smaller --size-limit")
    return b"".join([struct.pack(f"<I{count + 1}I", count, *offsets), config, *samples])


def index_entry(name: str, data: bytes, *, samples: int, size_limit_bytes: int) -> dict[str, Any]:
    """What index.json says of one shard."""
    hashes = {"sha256": hashlib.sha256(data).hexdigest(), "xxh64": xxhash.xxh64(data).hexdigest()}
    return {
        "samples": samples,
        "raw_data": {"basename": name, "bytes": len(data), "hashes": hashes},
        "zip_data": None,
        **_config(size_limit_bytes),
    }


def encode_index(entries: Sequence[dict[str, Any]]) -> bytes:
    """The bytes of index.json; its presence is what makes a folder of shards a dataset."""
    return json.dumps({"version": 2, "shards": list(entries)}, sort_keys=True).encode()


def _config(size_limit_bytes: int) -> dict[str, Any]:
    return {
        "version": 2,
        "format": "mds",
        "compression": None,
        "hashes": list(HASHES),
        "size_limit": size_limit_bytes,
        "column_names": list(_COLUMNS),
        "column_encodings": list(_COLUMNS.values()),
        "column_sizes": [_COLUMN_SIZES[encoding] for encoding in _COLUMNS.values()],
    }


def _config_json(size_limit_bytes: int) -> bytes:
    return json.dumps(_config(size_limit_bytes), sort_keys=True).encode()
