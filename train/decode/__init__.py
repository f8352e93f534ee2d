"""JPEG bytes in, uint8 (B, H, W, 3) out: one call a batch.

A backend is a module with `image_size(jpeg)` and `decode_batch(jpegs, views, size, *, bounded)`. Pillow is the
reference that every other one is held against.
"""

from train.decode import pillow
from train.decode.pillow import DecodeError

__all__ = ["DecodeError", "choose", "pillow"]


def choose(decoder: str) -> str:
    """Return the name of the backend that `data.decoder` stands for on this machine."""
    return "pillow" if decoder == "auto" else decoder
