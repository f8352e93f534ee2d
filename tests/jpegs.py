"""JPEGs of every kind that the decoders have to agree on."""

import io
import random
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

# Factors of the first component: as Pillow can write them, and as its data can be relabelled (same blocks in an MCU).
_WRITTEN_AS = {"4:4:4": (0x11, 0), "4:2:2": (0x21, 1), "4:2:0": (0x22, 2)}
_RELABELLED_FROM = {"4:4:0": (0x12, "4:2:2"), "4:1:1": (0x41, "4:2:0"), "1:4 rows": (0x14, "4:2:0")}
SAMPLINGS = (*_WRITTEN_AS, *_RELABELLED_FROM)


def photo(width: int, height: int, seed: int = 0, contrast: float = 1) -> npt.NDArray[np.uint8]:
    """Smooth colours, edges and some noise, about the middle grey: uint8 (height, width, 3)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = [127 + 100 * np.sin(x / (5 + seed % 7) + k) * np.cos(y / (4 + k)) for k in range(3)]
    pixels = np.stack(waves, axis=-1) + rng.normal(0, 12, (height, width, 3))
    pixels[(x // 11 + y // 13) % 5 == 0] = (250, 20, 40)
    return ((pixels.clip(0, 255) - 128) * contrast + 128).astype(np.uint8)


def jpeg(
    width: int, height: int, sampling: str = "4:2:0", seed: int = 0, *, contrast: float = 1, **options: Any
) -> bytes:
    """Return an image of this size and chroma sampling; `options` are those of Pillow's writer.

    Pillow writes three samplings. For another one, the frame header of an image with as many blocks in an MCU is
    relabelled: the picture is a jumble, the file is sound.
    """
    factors, written = _RELABELLED_FROM.get(sampling, (0, sampling))
    if not factors:
        return _encode(photo(width, height, seed, contrast), written, options)
    across, down = -(-width // (8 * (factors >> 4))), -(-height // (8 * (factors & 15)))
    original = _WRITTEN_AS[written][0]
    source = photo(across * 8 * (original >> 4), down * 8 * (original & 15), seed, contrast)
    data = bytearray(_encode(source, written, options))
    frame = next(data.find(bytes((0xFF, kind))) for kind in (0xC2, 0xC0) if bytes((0xFF, kind)) in data)
    struct.pack_into(">HH", data, frame + 5, height, width)
    data[frame + 11] = factors
    return bytes(data)


def _encode(pixels: npt.NDArray[np.uint8], sampling: str, options: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", subsampling=_WRITTEN_AS[sampling][1], **options)
    return out.getvalue()


# One Huffman table for all: codes of 4 bits for DC differences of 0 to 11 bits; "0" ends a block.
_DC_TABLE = bytes([0, 0, 0, 12] + [0] * 12) + bytes(range(12))
_AC_TABLE = bytes([1] + [0] * 15) + b"\x00"


def written_by_hand(
    width: int,
    height: int,
    factors: Sequence[tuple[int, int]] = ((2, 2), (1, 1), (1, 1)),
    *,
    marker: int = 0xC0,
    quantization: Sequence[int] = (0, 1, 1),
    huffman: Sequence[int] = (0, 1, 1),
    precision_bits: int = 8,
) -> bytes:
    """Return a JPEG of flat blocks with any sampling factors (across, down), process (SOF marker) and table numbers.

    Of lossless and arithmetic processes the header is right and the data is not. Progressive: one scan for DC, one for
    each component's AC.
    """
    rng = random.Random(f"{width} {height} {factors}")
    count = len(factors)
    tables = b"".join(_segment(0xDB, bytes([n]) + bytes([9]) * 64) for n in sorted(set(quantization)))
    parts = (bytes([n + 1, h << 4 | v, q]) for n, ((h, v), q) in enumerate(zip(factors, quantization, strict=True)))
    frame = struct.pack(">BHHB", precision_bits, height, width, count) + b"".join(parts)
    codes = b"".join(bytes([n]) + _DC_TABLE + bytes([0x10 | n]) + _AC_TABLE for n in sorted(set(huffman)))
    head = b"\xff\xd8" + tables + _segment(marker, frame) + _segment(0xC4, codes)

    most_across, most_down = max(h for h, _ in factors), max(v for _, v in factors)
    mcus = -(-width // (8 * most_across)) * -(-height // (8 * most_down))
    blocks_in_mcu = [h * v for h, v in factors]
    if count == 1:
        mcus, blocks_in_mcu = -(-width // 8) * -(-height // 8), [1]
    progressive = marker == 0xC2
    bits = ""
    for _ in range(mcus):
        for blocks in blocks_in_mcu:
            bits += "".join(_difference(rng) + "0" * (not progressive) for _ in range(blocks))
    selectors = b"".join(bytes([n + 1, number << 4 | number]) for n, number in enumerate(huffman))
    body = _scan(bytes([count]) + selectors + (b"\0\0\0" if progressive else b"\0\x3f\0"), bits)
    if progressive:
        for n, (h, v) in enumerate(factors):
            across, down = -(-width * h // most_across), -(-height * v // most_down)
            ends = "0" * (-(-across // 8) * -(-down // 8))
            body += _scan(bytes([1, n + 1, huffman[n], 1, 63, 0]), ends)
    return head + body + b"\xff\xd9"


def lossless_jpeg(width: int, height: int) -> bytes:
    """Return a grey SOF3 JPEG: every sample is predicted right, so each takes one bit."""
    frame = struct.pack(">BHHB", 8, height, width, 1) + bytes([1, 0x11, 0])
    codes = bytes([0, 1, 1] + [0] * 14 + [0, 1])
    head = b"\xff\xd8" + _segment(0xC3, frame) + _segment(0xC4, codes)
    return head + _scan(bytes([1, 1, 0, 1, 0, 0]), "0" * (width * height)) + b"\xff\xd9"


def _difference(rng: random.Random) -> str:
    size = rng.choice((0, 0, 1, 2, 3, 4))
    return f"{size:04b}" + "".join(rng.choice("01") for _ in range(size))


def _segment(marker: int, body: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body


def _scan(header: bytes, bits: str) -> bytes:
    bits += "1" * (-len(bits) % 8)
    data = int("0" + bits, 2).to_bytes(len(bits) // 8, "big")
    return _segment(0xDA, header) + data.replace(b"\xff", b"\xff\0")
