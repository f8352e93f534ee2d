"""JPEGs of every kind that the decoders have to agree on."""

import io
import struct
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
