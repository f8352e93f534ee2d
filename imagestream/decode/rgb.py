"""RGB pixels of any image, the right way up, and what was lost on the way; what has no safe meaning is refused.

The converter, the loader and predictions take them from here, so that a network sees what it was trained on.

Pillow clips what has more than 8 bits, takes numbers with a sign for numbers without one, and makes a negative of
16-bit greys that count from white to black. So greys are scaled here, by what the file says of its type.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

_BITS, _PHOTOMETRIC, _LARGEST, _SAMPLE_FORMAT = 258, 262, 281, 339  # TIFF 6.0, sections 8 and 19
_WHITE_IS_ZERO, _SIGNED = 0, 2
_DARK_FRACTION = 1 / 8  # of white; greys of 12 bits in 16 reach 1/16

UPRIGHT = 1  # of EXIF's orientations; the others and how they are undone:
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Greys = npt.NDArray[Any]


class BadImage(ValueError):
    """The bytes are no image that can be used; the message is the reason, fit for the manifest."""


def to_rgb(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """RGB pixels of a loaded image, and remarks on what was lost; what is transparent becomes white.

    Raises:
        BadImage: it is not known which of its numbers is white, or all of it is transparent.
    """
    if image.format == "TIFF" and _SIGNED in _tag(image, _SAMPLE_FORMAT):
        raise BadImage(
            f"TIFF of {_tag(image, _BITS)[0]}-bit integers with a sign: it cannot be known which of them is white; "
            "save it with 8 or 16 bits without a sign"
        )
    if image.mode == "F":
        return _grey_image(image, _from_floats(image), ["floating-point greys reduced to 8 bits"])
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _grey_image(image, *_from_integers(image))
    if image.has_transparency_data:
        return _without_alpha(image.convert("RGBA"))
    return image.convert("RGB"), ["16 bits a channel reduced to 8"] if 16 in _tag(image, _BITS) else []


def orientation_of(image: Image.Image) -> int:
    """Return 1 (upright) to 8, as EXIF numbers them; broken EXIF, of which ImageNet has some, says nothing.

    A TIFF's orientation is its own, not EXIF's, and Pillow turns it when it is loaded.
    """
    if "exif" not in image.info:
        return UPRIGHT
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, UPRIGHT)
    except Exception:  # Pillow's reader raises all kinds
        return UPRIGHT
    return int(orientation) if orientation in _TURNS else UPRIGHT


def orientation_of_tiff(image: Image.Image) -> int:
    """Return the orientation that a TIFF has of its own, before it is loaded: Pillow then turns it."""
    orientation = (_tag(image, ExifTags.Base.Orientation) or (UPRIGHT,))[0]
    return int(orientation) if orientation in _TURNS else UPRIGHT


def turned(image: Image.Image, orientation: int) -> Image.Image:
    """Return an image the right way up."""
    return image if orientation == UPRIGHT else image.transpose(_TURNS[orientation])


def _tag(image: Image.Image, number: int) -> tuple[Any, ...]:
    """The values of a TIFF tag; () where there is none."""
    value = getattr(image, "tag_v2", {}).get(number, ())
    return tuple(value) if isinstance(value, tuple) else (value,)


def _from_floats(image: Image.Image) -> Greys:
    greys: Greys = np.asarray(image, np.float64)
    if not np.isfinite(greys).all() or greys.min() < 0 or greys.max() > 1:
        raise BadImage(
            f"{image.format} of floating-point greys from {greys.min():g} to {greys.max():g}: only from 0 (black) to "
            "1 (white) is their meaning known; scale them, or save the image with 8 or 16 bits"
        )
    return np.rint(greys * 255)


def _from_integers(image: Image.Image) -> tuple[Greys, list[str]]:
    """Greys of more than 8 bits, scaled so that the type's largest number is white."""
    bits = int((_tag(image, _BITS) or (16,))[0])
    greys: Greys = np.asarray(image.convert("I")).astype(np.int64)
    if bits == 32:
        greys &= 0xFFFFFFFF  # which Pillow takes for numbers with a sign
    largest, white = int(greys.max()), int((_tag(image, _LARGEST) or (0,))[0]) or (1 << bits) - 1
    if largest > white or greys.min() < 0:
        raise BadImage(
            f"{image.format} of greys from {int(greys.min()):,} to {largest:,} where white is {white:,}; "
            "save it with 8 or 16 bits"
        )
    remarks = [f"{bits}-bit greys reduced to 8 bits"]
    if largest < white * _DARK_FRACTION and _WHITE_IS_ZERO not in _tag(image, _PHOTOMETRIC):
        remarks.append(f"very dark: the largest grey is {largest:,} of {white:,}")
    return np.trunc(greys * (1 / (white / 255))), remarks


def _grey_image(image: Image.Image, greys: Greys, remarks: list[str]) -> tuple[Image.Image, list[str]]:
    if _WHITE_IS_ZERO in _tag(image, _PHOTOMETRIC):
        greys = 255 - greys
    return Image.fromarray(greys.astype(np.uint8)).convert("RGB"), remarks


def _without_alpha(rgba: Image.Image) -> tuple[Image.Image, list[str]]:
    least, most = rgba.getchannel("A").getextrema()
    if most == 0:
        raise BadImage(
            "every pixel is transparent, so that only white would be left of it; save it without its alpha channel"
        )
    white = Image.new("RGBA", rgba.size, "white")
    remarks: list[str] = ["transparent parts became white"] if isinstance(least, int) and least < 255 else []
    return Image.alpha_composite(white, rgba).convert("RGB"), remarks
