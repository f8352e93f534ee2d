"""Check the bytes of one image: keep a sound JPEG verbatim, mend what can be mended, refuse the rest.

Opening an image proves nothing: a JPEG cut to a third passes `Image.open` and `verify`. So each one is
decoded to its last byte here, once, rather than failing in some epoch of some run.
"""

import importlib
import importlib.util
import re
import warnings
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any

from PIL import Image, PngImagePlugin, UnidentifiedImageError, features
from PIL.JpegImagePlugin import JpegImageFile

from convert.jpeg_header import Frame, is_safe_to_scale, read_frame
from convert.mending import describe
from imagestream.decode import limits
from imagestream.decode.limits import MAX_PIXELS
from imagestream.decode.native import library
from imagestream.decode.rgb import UPRIGHT, BadImage, orientation_of, orientation_of_tiff, to_rgb, turned

MAX_JPEG_SIDE_PX = 65_500  # libjpeg's JPEG_MAX_DIMENSION

# Of text and colour profiles in PNGs, unpacked; Pillow's own limit of 1 MiB refuses sound pictures with large profiles.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 64 * 1024**2

# A mended image is encoded once more, so lose as little as possible: quality 95 is the highest that Pillow's
# documentation recommends, and 4:4:4 keeps the chroma of palette images and line art.
MENDED_QUALITY = 95
MENDED_SUBSAMPLING = 0  # Pillow's code for 4:4:4

# A restart marker after so many blocks (of 16 x 16 px at 4:2:0) lets our decoder pass over what lies outside a crop;
# every other decoder reads such a JPEG as well. They make a file 1 to 2% larger.
BLOCKS_BETWEEN_RESTARTS = 2

BYTES_PER_PX = 0.35  # of a JPEG of quality 90, 4:2:0, about; only the filling of shards depends on it

# What may hide behind the name .JPEG. A closed list, because some of Pillow's other readers start programs
# (EPS starts Ghostscript). JPEG includes MPO, a JPEG with more pictures after the first.
# AVIF is in Pillow from 11.3 on, and HEIF by another package, pillow-heif; both decode by a library in C.
_HAS_AVIF, _HAS_HEIF = features.check("avif") is True, importlib.util.find_spec("pillow_heif") is not None
FORMATS = (*(kind for kind in limits.FORMATS if kind != "AVIF" or _HAS_AVIF), *(["HEIF"] * _HAS_HEIF))
READERS: dict[str, str] = {}
if _HAS_AVIF:
    READERS["libavif"] = str(features.version("avif"))
if _HAS_HEIF:
    pillow_heif = importlib.import_module("pillow_heif")
    pillow_heif.register_heif_opener()
    READERS["libheif"] = pillow_heif.libheif_version()
"""Versions of the libraries that read AVIF and HEIC: what such an image is encoded anew from."""
_AVIF_BRANDS = (b"avif", b"avis")  # of the file, in its first box (ISO/IEC 14496-12)
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")

_HAS_NATIVE_CHECK = library.is_built()

SUBSAMPLINGS = {"4:4:4": 0, "4:2:2": 1, "4:2:0": 2}  # Pillow's codes


@dataclass(frozen=True, slots=True)
class Resize:
    """How images are made smaller: never larger, and one that is small enough stays as it is, byte for byte.

    But a progressive JPEG, which takes several times as long to decode, becomes a baseline one with the same tables.

    Attributes:
        side: the side that `limit_px` is for, `short` or `max` (the longer one).
        quality: of the JPEG, 1 to 95 in libjpeg's scale.
        subsampling: of the chroma, a key of SUBSAMPLINGS.
    """

    side: str
    limit_px: int
    quality: int
    subsampling: str

    def size(self, width_px: int, height_px: int) -> tuple[int, int]:
        """The width and height in pixels of an image after resizing; the other side is rounded to the nearest."""
        side_px = min(width_px, height_px) if self.side == "short" else max(width_px, height_px)
        if side_px <= self.limit_px:
            return width_px, height_px
        scale = self.limit_px / side_px
        return max(1, round(width_px * scale)), max(1, round(height_px * scale))

    def expected_bytes(self, image_bytes: int) -> int:
        """About how large an image will be, given its file's size; shards are planned by it."""
        longer = self.limit_px * (4 / 3 if self.side == "short" else 1)
        return min(image_bytes, int(longer * longer * 3 / 4 * BYTES_PER_PX))


@dataclass(frozen=True, slots=True)
class Checked:
    """A JPEG that decodes.

    Attributes:
        mended: how an original that no trainer could use was changed; None: there was nothing to mend.
        resized: it was made smaller, or a baseline JPEG.
        ignored_turn: its EXIF says that it is to be turned, and it was not.
    """

    data: bytes
    width_px: int
    height_px: int
    mended: str | None = None
    resized: bool = False
    ignored_turn: bool = False


def parse_resize(text: str, *, quality: int, subsampling: str) -> Resize:
    """The meaning of a --resize argument, `short=256` or `max=400`.

    Raises:
        ValueError: it is neither.
    """
    match = re.fullmatch(r"(short|max)=(\d{2,5})", text)
    if not match:
        raise ValueError(f"{text!r} is not short=PIXELS or max=PIXELS, with PIXELS from 10 to 99999")
    return Resize(match[1], int(match[2]), quality, subsampling)


def check_image(data: bytes, resize: Resize | None = None, *, turn: bool = False) -> Checked:
    """Decode an image in full and return it as a JPEG, RGB or greyscale.

    Args:
        turn: as its EXIF orientation says. By default that is ignored: ImageNet's labels, its published accuracies and
            every reader of it use the pixels as they are stored.

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
        frame = read_frame(data) if image.format in ("JPEG", "MPO") else None
        try:
            orientation = orientation_of(image)
            if turn and orientation != UPRIGHT:
                return _mend(image, resize, frame, orientation)
            checked = _check(data, image, frame, resize)
            return replace(checked, ignored_turn=True) if orientation != UPRIGHT else checked
        except (MemoryError, BadImage):
            raise
        except Exception as error:  # Pillow's readers raise OSError, SyntaxError, ValueError, struct.error, ...
            if frame and not frame.has_whole_sampling:
                raise BadImage(
                    f"JPEG with the chroma sampling {frame.sampling}, of which libjpeg makes no colours; save it with "
                    "another one, such as 4:2:0"
                ) from error
            raise BadImage(f"damaged {image.format}: {error}") from error


def _check(data: bytes, image: Image.Image, frame: Frame | None, resize: Resize | None) -> Checked:
    if not _is_plain_jpeg(image, frame):
        return _mend(image, resize, frame)
    if resize and resize.size(*image.size) != image.size:
        return _resize(image, resize)
    if resize and frame and image.format == "JPEG" and image.info.get("progressive"):
        return _as_baseline(data, image, frame)
    return _keep(data, image)


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise BadImage(f"more than the {MAX_PIXELS:,} px allowed: {error}") from error
    except UnidentifiedImageError:
        raise BadImage(_why_unidentified(data)) from None
    except MemoryError:
        raise
    except Exception as error:  # a header so broken that the reader stumbles over it
        raise BadImage(f"unreadable header: {error}") from error


def _why_unidentified(data: bytes) -> str:
    """What is the matter with a file that Pillow will not open."""
    frame = read_frame(data)
    if frame and frame.precision_bits != 8:
        return f"JPEG with {frame.precision_bits} bits a channel; decoders read 8: save it with 8"
    if frame and len(frame.components) not in (1, 3, 4):
        return f"JPEG with {len(frame.components)} channels; decoders read 1, 3 and 4: save it as greyscale or RGB"
    if frame and not (frame.width_px and frame.height_px):
        return f"JPEG of {frame.width_px} x {frame.height_px} px by its header: no decoder reads it; save it anew"
    brand = data[8:12] if data[4:8] == b"ftyp" else b""
    if brand in _AVIF_BRANDS and not _HAS_AVIF:
        return "AVIF, which this Pillow does not read; install Pillow 11.3 or later"
    if brand in _HEIF_BRANDS and not _HAS_HEIF:
        return "HEIC, which Pillow reads with the package pillow-heif alone; `pip install pillow-heif`"
    for kind in FORMATS:
        reader, accept = Image.OPEN[kind]
        if accept and accept(data[:16]) and kind != "JPEG":
            try:
                reader(BytesIO(data), "")
            except Exception as error:  # the readers raise all kinds
                return f"{kind} of a kind that Pillow cannot read ({error}); save it anew"
    return f"not an image in any of {', '.join(FORMATS)}; it begins with {data[:12]!r}"


def _is_plain_jpeg(image: Image.Image, frame: Frame | None) -> bool:
    """Whether any decoder reads it; few know lossless ones, and those pixel by pixel."""
    return frame is not None and not frame.is_lossless and image.mode in ("RGB", "L")


def _keep(data: bytes, image: Image.Image) -> Checked:
    """Read every coefficient, and leave out as much of the arithmetic as can be.

    The native library, where it is built, checks a sound JPEG in less time than Pillow. Pillow decides
    doubtful files, at an eighth of the size, so the verdict does not depend on the library. Both set up the colours
    that the trainer asks for: of some samplings libjpeg can make a greyscale image, and no colours.
    """
    width, height = image.size
    if not (_HAS_NATIVE_CHECK and library.is_sound(data)):
        if is_safe_to_scale(data):
            image.draft(image.mode, (max(1, width // 8), max(1, height // 8)))
        image.load()
    return Checked(data, width, height, None)


def _resize(image: Image.Image, resize: Resize) -> Checked:
    smaller = _smaller(image, resize)
    data = _encode(smaller, quality=resize.quality, subsampling=SUBSAMPLINGS[resize.subsampling])
    return Checked(data, smaller.width, smaller.height, resized=True)


def _as_baseline(data: bytes, image: Image.Image, frame: Frame) -> Checked:
    """With the original's quantization tables and chroma sampling, so that little more than rounding is lost.

    Samplings that Pillow has no name for, such as 4:1:1, become 4:2:0.
    """
    width, height = image.size
    image.load()
    try:
        tables = _tables_by_component(image, frame)
        return Checked(_encode(image, subsampling="keep", qtables=tables), width, height, resized=True)
    except (OSError, ValueError, KeyError):  # it decodes, but Pillow's encoder cannot do with its tables
        return Checked(data, width, height)


def _tables_by_component(image: Image.Image, frame: Frame) -> list[list[int]]:
    """The quantization tables in the order of the components, as Pillow's encoder hands them out: the last serves all
    further ones. In the file each component names its own by number."""
    assert isinstance(image, JpegImageFile)
    tables = [image.quantization[component.table] for component in frame.components]
    while len(tables) > 1 and tables[-1] == tables[-2]:
        tables.pop()
    return tables


def _mend(image: Image.Image, resize: Resize | None, frame: Frame | None, orientation: int = UPRIGHT) -> Checked:
    by_pillow, is_deep = orientation_of_tiff(image), _is_deep_png(image)
    image.load()
    width, height = resize.size(*image.size) if resize else image.size
    if max(width, height) > MAX_JPEG_SIDE_PX:
        raise BadImage(
            f"{image.format} of {image.width:,} x {image.height:,} px: a JPEG has at most {MAX_JPEG_SIDE_PX:,} px a "
            "side; make it smaller, as --resize does"
        )
    rgb, remarks = to_rgb(image)
    if is_deep:
        remarks = ["16 bits a channel reduced to 8", *remarks]
    if by_pillow != UPRIGHT:
        remarks = [f"turned as its own orientation ({by_pillow}) says", *remarks]
    if orientation != UPRIGHT:
        rgb = turned(rgb, orientation)
        remarks = [f"turned as its EXIF orientation ({orientation}) says", *remarks]
    if resize and resize.size(*rgb.size) != rgb.size:
        return replace(_resize(rgb, resize), mended=describe(image, frame, resize.quality, remarks))
    data = _encode(rgb, quality=MENDED_QUALITY, subsampling=MENDED_SUBSAMPLING)
    return Checked(data, rgb.width, rgb.height, mended=describe(image, frame, MENDED_QUALITY, remarks))


def _is_deep_png(image: Image.Image) -> bool:
    """Whether a PNG that is not loaded yet has 16 bits in each of its colours, of which Pillow drops eight."""
    return image.format == "PNG" and any(
        str(tile.args) in ("RGB;16B", "RGBA;16B") for tile in getattr(image, "tile", ())
    )


def _smaller(image: Image.Image, resize: Resize) -> Image.Image:
    """The image at its new size, antialiased (Lanczos over the whole original: no shortcut by JPEG's own scaling)."""
    return image.resize(resize.size(*image.size), Image.Resampling.LANCZOS)


def _encode(image: Image.Image, **options: Any) -> bytes:
    image.info = {}  # the old profile, EXIF and comments describe the old pixels
    encoded = BytesIO()
    image.save(encoded, "JPEG", optimize=False, restart_marker_blocks=BLOCKS_BETWEEN_RESTARTS, **options)
    return encoded.getvalue()
