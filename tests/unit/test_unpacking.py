"""A compressed shard is unpacked as streaming packs it, and takes no more memory than index.json says."""

import resource
import subprocess
import sys

import pytest
from streaming.base.compression import compress

from imagestream.mds.unpacking import METHODS, UnpackError, can_unpack, unpacked

RAW = b"".join(bytes([n % 251]) * (n % 17) for n in range(20_000))


@pytest.mark.parametrize("compression", ["br", "br:3", "bz2", "bz2:9", "gz", "gz:1", "snappy", "zstd", "zstd:22"])
def test_what_streaming_packs_is_unpacked(compression: str) -> None:
    packed = compress(compression, RAW)
    assert can_unpack(compression)
    assert unpacked(packed, compression, size_bytes=len(RAW)) == RAW
    for size_bytes in (1, len(RAW) - 1, len(RAW) + 1):
        with pytest.raises(UnpackError, match=r"it unpacks to (more than )?[\d,]+ bytes, index.json says [\d,]+"):
            unpacked(packed, compression, size_bytes=size_bytes)


@pytest.mark.parametrize("compression", sorted(METHODS))
@pytest.mark.parametrize("spoil", [lambda data: data[:-20], lambda data: b"junk" * 9, lambda data: b""])
def test_what_is_damaged_is_refused_in_one_line(compression: str, spoil: object) -> None:
    assert callable(spoil)
    with pytest.raises(UnpackError) as raised:
        unpacked(spoil(compress(compression, RAW)), compression, size_bytes=len(RAW))
    assert str(raised.value).isprintable()


def test_a_method_that_nobody_knows_is_told() -> None:
    assert not any(map(can_unpack, ("lzma", "", None, 3)))


@pytest.mark.slow
@pytest.mark.parametrize("compression", ["bz2", "gz", "snappy", "zstd"])
def test_a_bomb_takes_no_more_memory_than_the_index_says(compression: str) -> None:
    program = (
        "import resource, sys\n"
        "from imagestream.mds.unpacking import UnpackError, unpacked\n"
        "data = sys.stdin.buffer.read()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"try: unpacked(data, {compression!r}, size_bytes=1000)\n"
        "except UnpackError: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    bomb = compress(compression, bytes(1 << 28))
    done = subprocess.run([sys.executable, "-c", program], input=bomb, capture_output=True, check=True, timeout=60)
    assert int(done.stdout) * resource.getpagesize() // 4096 < 40_000  # KiB; the bomb has 262,144
