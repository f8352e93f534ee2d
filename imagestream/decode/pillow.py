"""The reference decoder: Pillow, with torchvision's crop and antialiased resize semantics."""

import io
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError, features
from PIL import __version__ as pillow_version

from imagestream.decode.crops import View
from imagestream.decode.limits import FORMATS
from imagestream.decode.rgb import UPRIGHT, orientation_of, to_rgb, turned


class DecodeError(ValueError):
    """A record's bytes are not a readable image; `index` is its place in the batch."""

    def __init__(self, reason: str, index: int = 0) -> None:
        super().__init__(reason)
        self.index = index


ROUNDING = "" if int(pillow_version.partition(".")[0]) < 13 else ", rounding as 13 does"
"""Pillow 13 rounds its bilinear filter in another way: of one crop 12.6% of the values differ by 1."""


class PillowDecoder:
    """The functions below as an `imagestream.decode.backends.Decoder`."""

    name = "pillow" + ROUNDING
    version = f"pillow ({pillow_version}, libjpeg-turbo {features.version('libjpeg_turbo')})"

    def image_sizes(self, jpegs: Sequence[bytes]) -> list[tuple[int, int]]:
        """Return (width, height) in px of each, from the headers alone.

        Raises:
            DecodeError: with Pillow's reason and the image's place in the batch.
        """
        sizes = []
        for index, jpeg in enumerate(jpegs):
            try:
                sizes.append(image_size(jpeg))
            except DecodeError as error:
                raise DecodeError(str(error), index) from error
        return sizes

    def decode_batch(
        self,
        jpegs: Sequence[bytes],
        views: Sequence[View],
        size: int,
        *,
        bounded: bool,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See the function of this name."""
        return decode_batch(jpegs, views, size, bounded=bounded, out=out)


def image_size(jpeg: bytes) -> tuple[int, int]:
    """Return (width, height) in px from the header alone."""
    return _open(jpeg).size


def upright(data: bytes) -> bytes:
    """Return an image as it is, or, where its EXIF says that it lies on its side, a BMP of it the right way up.

    Raises:
        DecodeError: it cannot be read.
    """
    image = _open(data)
    orientation = orientation_of(image)
    if orientation == UPRIGHT:
        return data
    try:
        image.load()
        encoded = io.BytesIO()
        turned(to_rgb(image)[0], orientation).save(encoded, "BMP")
    except MemoryError:
        raise
    except Exception as error:  # as below
        raise DecodeError(str(error)) from error
    return encoded.getvalue()


def decode_batch(
    jpegs: Sequence[bytes], views: Sequence[View], size: int, *, bounded: bool, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Decode, cut, resize (antialiased) and mirror a batch.

    Args:
        jpegs: B encoded images; JPEG of any colour space, or anything else that Pillow reads.
        views: B boxes within their images.
        size: edge of the result, px.
        bounded: True cuts before it resizes, so no pixel outside the box counts (RandomResizedCrop); False gives what
            resizing the whole image and cutting then gives (Resize, then CenterCrop): bit for bit where the view says
            how large the whole becomes, else within a level.
        out: uint8 (B, size, size, 3), contiguous, to be filled and returned; None: a new one.

    Returns:
        images: uint8 (B, size, size, 3), RGB, 0-255.

    Raises:
        DecodeError: with Pillow's reason and the image's place in the batch.
    """
    out = checked_output(out, len(jpegs), size)
    pixels = out.numpy()
    for index, (jpeg, view) in enumerate(zip(jpegs, views, strict=True)):
        try:
            pixels[index] = np.asarray(_render(jpeg, view, size, bounded))
        except MemoryError:
            raise
        except Exception as error:  # as above
            raise DecodeError(str(error), index) from error
    return out


def checked_output(out: torch.Tensor | None, count: int, size: int) -> torch.Tensor:
    """Return `out`, or a new uint8 (count, size, size, 3); the native code would write past one of another kind."""
    if out is None:
        return torch.empty((count, size, size, 3), dtype=torch.uint8)
    assert out.dtype == torch.uint8 and out.shape == (count, size, size, 3) and out.is_contiguous()
    return out


def _open(jpeg: bytes) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # broken EXIF, which ImageNet has, says nothing about the pixels
            return Image.open(io.BytesIO(jpeg), formats=FORMATS)
    except MemoryError:  # this machine's fault
        raise
    except UnidentifiedImageError as error:
        what = f"{len(jpeg)} bytes starting {jpeg[:8]!r} are not an image in any of {', '.join(FORMATS)}"
        raise DecodeError(what) from error
    except Exception as error:  # Pillow's readers raise OSError, SyntaxError, struct.error, DecompressionBombError, ...
        raise DecodeError(f"{len(jpeg)} bytes starting {jpeg[:8]!r} are not an image: {error}") from error


def _render(jpeg: bytes, view: View, size: int, bounded: bool) -> Image.Image:
    loaded = _open(jpeg)
    loaded.load()
    image, _ = to_rgb(loaded)
    resample = Image.Resampling.BICUBIC if view.cubic else Image.Resampling.BILINEAR
    if bounded:
        left, top, right, bottom = (int(edge) for edge in view.box)
        image = image.crop((left, top, right, bottom)).resize((size, size), resample)
    elif view.whole:
        width, height, left, top = view.whole
        image = image.resize((width, height), resample)
        image = image.crop((left, top, left + size, top + size))
    else:
        image = image.resize((size, size), resample, box=view.box)
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if view.flip else image
