"""Check the bytes of one image: keep a sound JPEG verbatim, mend what can be mended, refuse the rest.

Opening an image proves nothing: a JPEG cut to a third passes `Image.open` and `verify`. So each one is
decoded to its last byte here, once, rather than failing in some epoch of some run.
"""

import warnings
from dataclasses import dataclass
from io import BytesIO

from PIL import Image, UnidentifiedImageError

# Pillow itself raises above this count (twice Image.MAX_IMAGE_PIXELS) and only warns above half of it.
MAX_PIXELS = 178_956_970

# A mended image is encoded once more, so lose as little as possible: quality 95 is the highest that Pillow's
# documentation recommends, and 4:4:4 keeps the chroma of palette images and line art.
MENDED_QUALITY = 95
MENDED_SUBSAMPLING = 0  # Pillow's code for 4:4:4

# What may hide behind the name .JPEG. A closed list, because some of Pillow's other readers start programs
# (EPS starts Ghostscript). JPEG includes MPO, a JPEG with more pictures after the first.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF")


class BadImage(ValueError):
    """The bytes are no image that can be used; the message is the reason, fit for the manifest."""


@dataclass(frozen=True, slots=True)
class Checked:
    """A JPEG that decodes. `action` says how the original was changed; None: it was kept verbatim."""

    data: bytes
    width_px: int
    height_px: int
    action: str | None


def check_image(data: bytes) -> Checked:
    """Decode an image in full and return it as a JPEG, RGB or greyscale.

    EXIF orientation is ignored: ImageNet's labels, its published accuracies and every reader of it use the
    pixels as they are stored.

    Raises:
        BadImage: the file is empty, truncated, too large or not an image.
    """
    if not data:
        raise BadImage("empty file (0 bytes)")
    with warnings.catch_warnings():
        # Broken EXIF, common in ImageNet, makes Pillow warn; MAX_PIXELS below stands in for the size warning.
        warnings.simplefilter("ignore")
        image = _open(data)
        if image.width * image.height > MAX_PIXELS:
            raise BadImage(f"{image.width} x {image.height} px is more than the {MAX_PIXELS:,} px allowed")
        try:
            return _keep(data, image) if _is_plain_jpeg(image) else _mend(image)
        except MemoryError:
            raise
        except Exception as error:  # Pillow's readers raise OSError, SyntaxError, ValueError, struct.error, ...
            raise BadImage(f"damaged {image.format}: {error}") from error


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise BadImage(f"more than the {MAX_PIXELS:,} px allowed: {error}") from error
    except UnidentifiedImageError:
        raise BadImage(f"not an image in any of {', '.join(FORMATS)}; it begins with {data[:12]!r}") from None
    except MemoryError:
        raise
    except Exception as error:  # a header so broken that the reader stumbles over it
        raise BadImage(f"unreadable header: {error}") from error


def _is_plain_jpeg(image: Image.Image) -> bool:
    return image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L")


def _keep(data: bytes, image: Image.Image) -> Checked:
    """Decode an eighth-size greyscale: every coefficient is still read, most of the arithmetic is left out."""
    width, height = image.size
    image.draft("L", (max(1, width // 8), max(1, height // 8)))
    image.load()
    return Checked(data, width, height, None)


def _mend(image: Image.Image) -> Checked:
    image.load()
    rgb = _to_rgb(image)
    rgb.info = {}  # the old profile and comments describe the old pixels
    encoded = BytesIO()
    rgb.save(encoded, "JPEG", quality=MENDED_QUALITY, subsampling=MENDED_SUBSAMPLING)
    return Checked(encoded.getvalue(), rgb.width, rgb.height, _describe(image))


def _to_rgb(image: Image.Image) -> Image.Image:
    """RGB pixels of any image; what is transparent becomes white."""
    if image.mode.startswith("I;16"):
        # Pillow clips 16-bit greys to 255 instead of scaling them.
        image = image.convert("I").point(lambda value: value / 257).convert("L")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _describe(image: Image.Image) -> str:
    if image.format in ("JPEG", "MPO"):
        return f"{image.mode} JPEG re-encoded as RGB, quality {MENDED_QUALITY}"
    frames = getattr(image, "n_frames", 1)
    which = f", first of {frames} frames" if frames > 1 else ""
    return f"{image.format} re-encoded as RGB JPEG, quality {MENDED_QUALITY}{which}"
