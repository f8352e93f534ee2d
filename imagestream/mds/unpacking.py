"""Compressed shards, unpacked to the size that index.json gives and to no byte more.

Streaming's own functions unpack whatever comes: 430 KB of zstd can be 3 GB of zeros.
"""

import pyarrow as pa

METHODS = {"br": "brotli", "bz2": "bz2", "gz": "gzip", "snappy": "snappy", "zstd": "zstd"}
"""Streaming's names (streaming/base/compression.py) and pyarrow's; a level may follow, as in `zstd:3`."""


class UnpackError(ValueError):
    """The bytes are not what was compressed; the message says what was seen."""


def can_unpack(compression: object) -> bool:
    """Return whether `compression`, as index.json has it, is a method that streaming writes."""
    return isinstance(compression, str) and compression.partition(":")[0] in METHODS


def unpacked(data: bytes, compression: str, *, size_bytes: int) -> bytes:
    """Return the raw bytes of a compressed file.

    Args:
        size_bytes: of the raw file, by index.json; no more memory than this is taken.

    Raises:
        UnpackError: the data is damaged, or unpacks to another size.
    """
    method = compression.partition(":")[0]
    try:
        if method == "snappy":
            if _snappy_size(data) != size_bytes:
                raise UnpackError(f"it unpacks to {_snappy_size(data):,} bytes, index.json says {size_bytes:,}")
            return bytes(pa.decompress(data, decompressed_size=size_bytes, codec="snappy", asbytes=True))
        with pa.CompressedInputStream(pa.BufferReader(data), METHODS[method]) as stream:
            raw = bytes(stream.read(size_bytes))
            more = stream.read(1)
    except (OSError, pa.ArrowException) as error:
        raise UnpackError(f"its {method} data is damaged: {' '.join(str(error).split())}") from error
    if more or len(raw) != size_bytes:
        seen = f"more than {size_bytes:,}" if more else f"{len(raw):,}"
        raise UnpackError(f"it unpacks to {seen} bytes, index.json says {size_bytes:,}")
    return raw


def _snappy_size(data: bytes) -> int:
    """Return the size that the data's head gives: a number in base 128, its lowest digit first."""
    size = 0
    for place, byte in enumerate(data[:5]):
        size |= (byte & 127) << (7 * place)
        if byte < 128:
            return size
    raise UnpackError("its snappy data is damaged: its head is no size")
