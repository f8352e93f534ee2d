"""The fast decoder: one call of a C library a batch, without the GIL; Pillow for what it leaves.

Pixels equal the Pillow backend's unless crops are to shrink in another place than the colours (`resize_in`).
"""

import ctypes
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch

from imagestream.decode import pillow
from imagestream.decode.crops import View
from imagestream.decode.native.library import open_library, pointers_to
from imagestream.decode.pillow import DecodeError

ALGORITHM = 1
SHRINKING_ALGORITHM = 2
"""Count changes of the pixels, of all and of those of `resize_in` other than rgb: a run cannot be resumed exactly with
another one."""

MESSAGE_BYTES = 256  # as in decode.c
DECODED, NOT_FOR_US, DAMAGED, OUT_OF_MEMORY = range(4)  # enum status of decode.c
ResizeIn = Literal["rgb", "ycbcr", "dct"]  # in the order of enum resize_in of decode.c
AUTO, PORTABLE, AVX2, AVX512 = range(4)  # enum path of resample.h


class NativeDecoder:
    """libjpeg-turbo on the part of each image that its box needs.

    What it does not take, Pillow judges and decodes, image by image: CMYK, other formats, and data that libjpeg or the
    Huffman decoder finds damaged. So it refuses nothing that Pillow accepts. It accepts more in one respect: damage
    below the last row that a crop needs is not seen.

    Args:
        resize_in: where crops that are higher than `size` shrink. "rgb": as in Pillow. "ycbcr": before chroma is
            interpolated across and the colours are worked out; faster, and a level or so off. "dct": the same, and
            libjpeg halves, quarters or eighths what is at least 2, 4 or 8 times `size` in both directions; faster
            still, and further off. What is enlarged, and what is not Y, Cb and Cr, has Pillow's pixels in all three;
            in "ycbcr" so have progressive images, and damaged ones that libjpeg takes. Bicubic views are resized as in
            "rgb".
        threads: of each batch; loader workers are processes and want 1.
        path: the instructions to use, for tests; all of them give the same bytes.

    Raises:
        NotBuiltError: with how to build the library.
    """

    def __init__(self, *, resize_in: ResizeIn = "rgb", threads: int = 1, path: int = AUTO) -> None:
        open_library()
        self._resize_in, self._threads, self._path = resize_in, threads, path
        self.left_to_pillow = 0

    @property
    def name(self) -> str:
        """What decides the pixels; Pillow decodes what this decoder cannot."""
        if self._resize_in == "rgb":
            return f"native {ALGORITHM}{pillow.ROUNDING}"
        return f"native {ALGORITHM} resizing in {self._resize_in} {SHRINKING_ALGORITHM}{pillow.ROUNDING}"

    @property
    def version(self) -> str:
        """For the record: with the library that it was built with."""
        return f"{self.name} ({open_library().decoder_library().decode()})"

    def image_sizes(self, jpegs: Sequence[bytes]) -> list[tuple[int, int]]:
        """Return (width, height) in px of each, from the headers alone.

        Raises:
            DecodeError: with the reason and the image's place in the batch.
        """
        sizes = np.empty((len(jpegs), 2), dtype=np.int32)
        open_library().image_sizes(*pointers_to(jpegs), len(jpegs), sizes.ctypes.data)
        found = [(width, height) for width, height in sizes.tolist()]
        for index, (width, _) in enumerate(found):
            if not width:
                found[index] = _size_by_pillow(jpegs[index], index)
        return found

    def decode_batch(
        self,
        jpegs: Sequence[bytes],
        views: Sequence[View],
        size: int,
        *,
        bounded: bool,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Decode, cut, resize and mirror a batch; see `imagestream.decode.pillow.decode_batch`."""
        count = len(jpegs)
        out = pillow.checked_output(out, count, size)
        boxes = np.array([view.box for view in views], dtype=np.float64).reshape(count, 4)
        flips = np.array([view.flip for view in views], dtype=np.uint8)
        wholes = np.array([view.whole or (0, 0, 0, 0) for view in views], dtype=np.int32).reshape(count, 4)
        cubics = np.array([view.cubic for view in views], dtype=np.uint8)
        status = np.empty(count, dtype=np.int32)
        messages = ctypes.create_string_buffer(count * MESSAGE_BYTES)
        failed = open_library().decode_batch(
            *pointers_to(jpegs),
            boxes.ctypes.data,
            flips.ctypes.data,
            wholes.ctypes.data,
            cubics.ctypes.data,
            count,
            size,
            bounded,
            get_args(ResizeIn).index(self._resize_in),
            self._threads,
            self._path,
            out.data_ptr(),
            status.ctypes.data,
            messages,
        )
        if failed < 0:
            raise ValueError(f"size {size} is not from 1 to 4096, or this processor lacks path {self._path}")
        if failed:
            for index in np.flatnonzero(status).tolist():
                self._ask_pillow(out[index], jpegs[index], views[index], bounded, index, messages)
        return out

    def _ask_pillow(self, out: torch.Tensor, jpeg: bytes, view: View, bounded: bool, index: int, messages: Any) -> None:
        reason = ctypes.string_at(ctypes.addressof(messages) + index * MESSAGE_BYTES).decode("latin-1")
        try:
            out.copy_(pillow.decode_batch([jpeg], [view], len(out), bounded=bounded)[0])
        except DecodeError as error:
            raise DecodeError(f"{error} ({reason})" if reason not in str(error) else str(error), index) from error
        self.left_to_pillow += 1


def _size_by_pillow(jpeg: bytes, index: int) -> tuple[int, int]:
    try:
        return pillow.image_size(jpeg)
    except DecodeError as error:
        raise DecodeError(str(error), index) from error
