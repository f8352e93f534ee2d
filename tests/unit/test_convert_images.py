"""What becomes of one image's bytes."""

import struct
import zlib
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin
from PIL.JpegImagePlugin import JpegImageFile

from convert.images import BLOCKS_BETWEEN_RESTARTS, Resize, check_image, parse_resize
from imagestream.decode.rgb import BadImage
from tests.jpegs import written_by_hand


def encode(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    out = BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def noise(size: tuple[int, int] = (64, 48), mode: str = "RGB", seed: int = 0) -> Image.Image:
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    return Image.fromarray(pixels if channels > 1 else pixels[:, :, 0])


def with_size_in_header(jpeg: bytes, width: int, height: int) -> bytes:
    at = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:at] + struct.pack(">HH", height, width) + jpeg[at + 4 :]


def jpeg_file(data: bytes) -> JpegImageFile:
    image = Image.open(BytesIO(data))
    assert isinstance(image, JpegImageFile)
    return image


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 30}])
@pytest.mark.parametrize("size", [(64, 48), (1, 1), (7, 900)])
def test_a_sound_jpeg_is_kept_byte_for_byte(mode: str, options: dict[str, Any], size: tuple[int, int]) -> None:
    data = encode(noise(size, mode), **options)
    checked = check_image(data)
    assert (checked.data, checked.width_px, checked.height_px, checked.mended) == (data, *size, None)


def test_a_jpeg_that_stores_rgb_without_ycbcr_is_kept() -> None:
    data = encode(noise(), keep_rgb=True)
    assert check_image(data).data == data


def test_a_jpeg_with_further_pictures_after_the_first_is_kept() -> None:
    data = encode(noise(), "MPO", save_all=True, append_images=[noise(seed=1)])
    assert Image.open(BytesIO(data)).format == "MPO"
    assert check_image(data).data == data


def test_exif_orientation_is_ignored() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by a quarter
    data = encode(noise((64, 48)), exif=exif)
    checked = check_image(data)
    assert (checked.data, checked.width_px, checked.height_px) == (data, 64, 48)
    assert checked.ignored_turn and not check_image(encode(noise((64, 48)))).ignored_turn


@pytest.mark.parametrize("orientation", range(1, 10))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("resize", [None, "max=30"])
def test_exif_orientation_can_be_applied(orientation: int, kind: str, resize: str | None) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = noise((6, 4)).resize((66, 44), Image.Resampling.BICUBIC)
    data = encode(image, kind, exif=exif)
    checked = check_image(data, shrink(resize) if resize else None, turn=True)
    upright = ImageOps.exif_transpose(Image.open(BytesIO(data))).convert("RGB")
    if resize:
        upright = upright.resize((checked.width_px, checked.height_px), Image.Resampling.LANCZOS)
    stored = Image.open(BytesIO(checked.data))
    assert stored.size == upright.size and not checked.ignored_turn
    assert (
        np.sqrt(((np.asarray(stored, float) - np.asarray(upright, float)) ** 2).mean()) < 12
    )  # turned otherwise it is above 40
    is_turned = orientation in range(2, 9)
    assert not is_turned or 0x0112 not in stored.getexif()
    assert (f"turned as its EXIF orientation ({orientation}) says" in (checked.mended or "")) == is_turned
    assert is_turned or kind != "JPEG" or resize or checked.data == data


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("kept_fraction", [0.33, 0.66, 0.97])
def test_a_jpeg_cut_short_is_refused(progressive: bool, kept_fraction: float) -> None:
    data = encode(noise((320, 240)), progressive=progressive)
    with pytest.raises(BadImage, match="truncated"):
        check_image(data[: int(len(data) * kept_fraction)])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"<html>404 Not Found</html>", "not an image .* begins with b'<html>"),
        (b"\xff\xd8\xff", "not an image|unreadable header"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),  # Pillow would start Ghostscript
        (encode(noise(), "PNG")[:200], "damaged PNG"),
        (with_size_in_header(encode(noise()), 65_000, 65_000), "more than the 89,478,485 px"),
        (with_size_in_header(encode(noise()), 9_500, 9_500), "more than the 89,478,485 px"),
    ],
)
def test_what_is_no_usable_image_is_refused_with_its_reason(data: bytes, reason: str) -> None:
    with pytest.raises(BadImage, match=reason):
        check_image(data)


def test_cmyk_jpeg_becomes_rgb_jpeg_with_pillows_colours() -> None:
    data = encode(Image.new("CMYK", (32, 24), (200, 30, 60, 10)), quality=95)
    checked = check_image(data)
    mended = Image.open(BytesIO(checked.data))
    assert (mended.format, mended.mode, mended.size) == ("JPEG", "RGB", (32, 24))
    expected = np.asarray(Image.open(BytesIO(data)).convert("RGB"), dtype=int)
    assert abs(np.asarray(mended, dtype=int) - expected).max() <= 3
    assert checked.mended == "CMYK JPEG re-encoded as RGB, quality 95"


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "WEBP", "TIFF"])
def test_other_formats_become_rgb_jpeg(kind: str) -> None:
    checked = check_image(encode(Image.new("RGB", (20, 30), (10, 200, 90)), kind))
    mended = Image.open(BytesIO(checked.data))
    assert (mended.format, mended.mode, mended.size) == ("JPEG", "RGB", (20, 30))
    assert abs(np.asarray(mended, dtype=int) - (10, 200, 90)).max() <= 4
    assert checked.mended == f"{kind} re-encoded as RGB JPEG, quality 95"


def test_mended_images_keep_full_chroma_resolution() -> None:
    checked = check_image(encode(noise(), "PNG"))
    components = jpeg_file(checked.data).layer  # (id, horizontal, vertical sampling, table)
    assert [component[1:3] for component in components] == [(1, 1)] * 3


def test_first_frame_of_an_animation_is_used_and_said_so() -> None:
    red, blue = Image.new("RGB", (16, 16), "red"), Image.new("RGB", (16, 16), "blue")
    checked = check_image(encode(red, "GIF", save_all=True, append_images=[blue]))
    pixel = Image.open(BytesIO(checked.data)).getpixel((8, 8))
    assert isinstance(pixel, tuple) and pixel[0] > 245 and pixel[2] < 10
    assert checked.mended is not None and checked.mended.endswith("first of 2 frames")


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_become_white(mode: str) -> None:
    if mode == "P":
        palette = Image.new("P", (16, 16), 1)
        palette.putpalette([0, 0, 0, 200, 0, 0])
        palette.paste(0, (8, 0, 16, 16))
        data, expected = encode(palette, "PNG", transparency=b"\0\xff"), (200, 0, 0)
    else:
        image = Image.new(mode, (16, 16), 0)
        image.putalpha(0)
        image.paste(Image.new(mode, (8, 16), "black"))
        data, expected = encode(image, "PNG"), (0, 0, 0)
    checked = check_image(data)
    pixels = np.asarray(Image.open(BytesIO(checked.data)), int)
    assert pixels[8:, 8:].min() >= 250 and abs(pixels[8:, :8] - expected).max() <= 5
    assert checked.mended == "PNG re-encoded as RGB JPEG, quality 95, transparent parts became white"


def test_sixteen_bit_greys_are_scaled_not_clipped() -> None:
    greys = np.full((16, 16), 0x8000, dtype=np.uint16)
    checked = check_image(encode(Image.fromarray(greys), "PNG"))
    assert abs(np.asarray(Image.open(BytesIO(checked.data)), dtype=int) - 128).max() <= 2


@pytest.mark.parametrize(("kind", "channels"), [(2, 3), (6, 4)])
def test_colours_of_sixteen_bits_lose_eight_and_it_is_said(kind: int, channels: int) -> None:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = (b"\0" + b"\xff\xff" * channels * 8) * 6
    header = struct.pack(">IIBBBBB", 8, 6, 16, kind, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert check_image(data).mended == "PNG re-encoded as RGB JPEG, quality 95, 16 bits a channel reduced to 8"


def tiff(code: str, bits: int, sample_format: int, values: Sequence[float], **tags: int) -> bytes:
    """A grey TIFF one pixel high: little-endian, one strip, no compression. `tags`: photometric, largest."""
    data = b"".join(struct.pack(f"<{code}", value) for value in values)
    entries = [
        (256, 4, len(values)),
        (257, 4, 1),
        (258, 3, bits),
        (259, 3, 1),
        (262, 3, tags.get("photometric", 1)),
        (273, 4, 8 + 2 + 12 * (10 + ("largest" in tags)) + 4),
        (277, 3, 1),
        (278, 4, 1),
        (279, 4, len(data)),
        *([(281, 3, tags["largest"])] if "largest" in tags else []),
        (339, 3, sample_format),
    ]
    directory = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + directory + bytes(4) + data


RAMP = [number / 63 for number in range(64)]


@pytest.mark.parametrize(
    ("data", "remark"),
    [
        (tiff("f", 32, 3, RAMP), "floating-point greys"),
        (tiff("f", 32, 3, RAMP[::-1], photometric=0), "floating-point greys"),
        (tiff("I", 32, 1, [round((2**32 - 1) * t) for t in RAMP]), "32-bit greys"),
        (tiff("H", 16, 1, [round(65535 * t) for t in RAMP]), "16-bit greys"),
        (tiff("H", 16, 1, [round(65535 * (1 - t)) for t in RAMP], photometric=0), "16-bit greys"),
        (tiff("H", 16, 1, [round(4095 * t) for t in RAMP], largest=4095), "16-bit greys"),
    ],
)
def test_greys_of_every_type_come_out_from_black_to_white(data: bytes, remark: str) -> None:
    checked = check_image(data)
    greys = np.asarray(Image.open(BytesIO(checked.data)), float)[0]
    assert abs(greys - np.array(RAMP)[:, None] * 255).max() <= 4
    assert checked.mended == f"TIFF re-encoded as RGB JPEG, quality 95, {remark} reduced to 8 bits"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (tiff("f", 32, 3, [65535 * t for t in RAMP]), "floating-point greys from 0 to 65535"),
        (tiff("f", 32, 3, [float("nan"), 1.0]), "floating-point greys from nan"),
        (tiff("h", 16, 2, [round(32767 * t) for t in RAMP]), "16-bit integers with a sign"),
        (tiff("i", 32, 2, [round(65535 * t) for t in RAMP]), "32-bit integers with a sign"),
        (tiff("b", 8, 2, [round(127 * t) for t in RAMP]), "8-bit integers with a sign"),
        (
            tiff("H", 16, 1, [round(65535 * t) for t in RAMP], largest=4095),
            "greys from 0 to 65,535 where white is 4,095",
        ),
        (encode(Image.new("RGBA", (9, 9), (200, 0, 0, 0)), "PNG"), "every pixel is transparent"),
    ],
)
def test_what_would_come_out_black_white_or_negative_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(BadImage, match=reason):
        check_image(data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (written_by_hand(40, 30, precision_bits=12, marker=0xC1), "JPEG with 12 bits a channel"),
        (
            written_by_hand(40, 30, ((1, 1), (1, 1)), quantization=(0, 0), huffman=(0, 0)),
            "JPEG with 2 channels; decoders read 1, 3 and 4",
        ),
        (with_size_in_header(encode(noise()), 64, 0), "JPEG of 64 x 0 px by its header"),
        (
            encode(Image.new("L", (70_000, 3)), "PNG"),
            r"PNG of 70,000 x 3 px: a JPEG has at most 65,500 px a side.*resize",
        ),
        (tiff("d", 64, 3, RAMP), r"TIFF of a kind that Pillow cannot read \(unknown pixel mode\)"),
    ],
)
def test_what_no_decoder_reads_says_what_was_seen_and_what_to_do(data: bytes, reason: str) -> None:
    with pytest.raises(BadImage, match=reason):
        check_image(data)


def test_a_long_strip_can_be_made_smaller() -> None:
    checked = check_image(encode(Image.new("L", (70_000, 300)), "PNG"), shrink("max=700"))
    assert (checked.width_px, checked.height_px) == (700, 3)


@pytest.mark.parametrize("option", ["icc_profile", "pnginfo"])
def test_a_png_with_a_large_profile_or_text_is_read(option: str) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("notes", "x" * 3_000_000, zip=True)
    value = bytes(3_000_000) if option == "icc_profile" else text
    assert check_image(encode(noise(), "PNG", **{option: value})).mended == "PNG re-encoded as RGB JPEG, quality 95"


def test_a_picture_that_comes_out_very_dark_is_listed_as_such() -> None:
    checked = check_image(tiff("H", 16, 1, [round(4095 * t) for t in RAMP]))
    assert checked.mended is not None and checked.mended.endswith("very dark: the largest grey is 4,095 of 65,535")


def test_a_tiff_is_turned_as_its_own_orientation_says_and_listed_so() -> None:
    exif = Image.Exif()
    exif[274] = 6  # TIFF 6.0: Orientation
    checked = check_image(encode(Image.new("RGB", (32, 16), "red"), "TIFF", exif=exif))
    assert (checked.width_px, checked.height_px, checked.ignored_turn) == (16, 32, False)
    assert checked.mended == "TIFF re-encoded as RGB JPEG, quality 95, turned as its own orientation (6) says"


def shrink(spec: str) -> Resize:
    return parse_resize(spec, quality=90, subsampling="4:2:0")


@pytest.mark.parametrize(
    ("spec", "size", "expected"),
    [
        ("short=256", (500, 375), (341, 256)),
        ("short=256", (375, 500), (256, 341)),
        ("short=256", (256, 900), (256, 900)),
        ("max=400", (500, 375), (400, 300)),
        ("max=400", (400, 400), (400, 400)),
        ("max=400", (9000, 3), (400, 1)),
    ],
)
def test_resizing_never_enlarges(spec: str, size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert shrink(spec).size(*size) == expected


def test_an_image_that_is_small_enough_is_kept_byte_for_byte() -> None:
    data = encode(noise())
    limit = max(Image.open(BytesIO(data)).size)
    assert check_image(data, shrink(f"max={limit}")).data == data
    smaller = check_image(data, shrink(f"max={limit - 1}"))
    assert smaller.resized and max(smaller.width_px, smaller.height_px) == limit - 1
    assert Image.open(BytesIO(smaller.data)).size == (smaller.width_px, smaller.height_px)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_a_small_progressive_jpeg_becomes_a_baseline_one_only_where_images_are_resized(
    mode: str, subsampling: int
) -> None:
    image = noise((5, 4), mode).resize((200, 160), Image.Resampling.BICUBIC)
    data = encode(image, progressive=True, quality=85, subsampling=subsampling)
    assert check_image(data).data == data
    checked = check_image(data, shrink("max=200"))
    before, after = jpeg_file(data), jpeg_file(checked.data)
    assert (checked.width_px, checked.height_px, checked.resized, checked.mended) == (200, 160, True, None)
    assert "progressive" in before.info and "progressive" not in after.info
    assert after.quantization == before.quantization
    assert mode == "L" or after.layer == before.layer
    difference = np.asarray(after, float) - np.asarray(before, float)
    assert 10 * np.log10(255**2 / (difference**2).mean()) > 42
    with pytest.raises(BadImage, match="truncated"):
        check_image(data[: len(data) // 2], shrink("max=200"))


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_progressive_jpeg_keeps_its_tables_whatever_their_numbers(mode: str) -> None:
    image = noise((5, 4), mode).resize((200, 160), Image.Resampling.BICUBIC)
    data = bytearray(encode(image, progressive=True, quality=85))
    for number in range(1 if mode == "L" else 2):  # luma's table becomes number 1, chroma's number 0
        at = -1
        for _ in range(number + 1):
            at = data.index(b"\xff\xdb", at + 1)
        data[at + 4] ^= 1
    frame = data.index(b"\xff\xc2")
    for component in range(data[frame + 9]):
        data[frame + 12 + 3 * component] ^= 1
    checked = check_image(bytes(data), shrink("max=200"))
    before, after = (np.asarray(Image.open(BytesIO(each)), float) for each in (data, checked.data))
    assert checked.resized and "progressive" not in Image.open(BytesIO(checked.data)).info
    numbered, renumbered = (jpeg_file(bytes(each)).quantization for each in (data, checked.data))
    assert renumbered == {number ^ 1: table for number, table in numbered.items()}
    assert 10 * np.log10(255**2 / ((after - before) ** 2).mean()) > 42


def test_a_progressive_jpeg_whose_tables_cannot_be_used_again_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("bad tables")

    data = encode(noise(), progressive=True)
    monkeypatch.setattr(Image.Image, "save", refuse)
    checked = check_image(data, shrink("max=64"))
    assert checked.data == data and not checked.resized


def test_resizing_is_antialiased_with_lanczos_over_all_pixels() -> None:
    image = noise()
    data = encode(image)
    limit = max(image.size) // 3
    smaller = check_image(data, parse_resize(f"max={limit}", quality=95, subsampling="4:4:4"))
    expected = Image.open(BytesIO(data)).resize((smaller.width_px, smaller.height_px), Image.Resampling.LANCZOS)
    difference = np.asarray(Image.open(BytesIO(smaller.data)), float) - np.asarray(expected, float)
    assert np.sqrt((difference**2).mean()) < 8  # of 255: what the JPEG's quality costs


def test_a_resized_image_can_be_entered_in_the_middle() -> None:
    smaller = check_image(encode(noise()), shrink("max=10"))
    interval = smaller.data.index(b"\xff\xdd")  # DRI, "define restart interval": length and number of MCUs follow
    assert int.from_bytes(smaller.data[interval + 4 : interval + 6], "big") == BLOCKS_BETWEEN_RESTARTS


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
def test_a_resized_grey_image_stays_grey(mode: str, channels: int) -> None:
    smaller = check_image(encode(noise(mode=mode)), shrink("max=10"))
    assert len(Image.open(BytesIO(smaller.data)).getbands()) == channels


def test_a_mended_image_is_resized_in_the_same_step() -> None:
    checked = check_image(encode(noise().convert("CMYK")), shrink("max=10"))
    assert checked.resized and max(checked.width_px, checked.height_px) == 10
    assert checked.mended == "CMYK JPEG re-encoded as RGB, quality 90"


def test_resizing_refuses_a_truncated_image_too() -> None:
    with pytest.raises(BadImage, match="truncated"):
        check_image(encode(noise())[:-200], shrink("max=10"))


@pytest.mark.parametrize("text", ["400", "max=", "long=400", "max=4", "max=4000000", "short=256 "])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="short=PIXELS or max=PIXELS"):
        parse_resize(text, quality=90, subsampling="4:2:0")
