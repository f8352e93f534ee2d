"""AVIF and HEIC, as phones and browsers write them: re-encoded as other files that are no JPEG, or refused in words."""

import importlib
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from convert import images
from convert.images import READERS, check_image
from imagestream.decode.rgb import BadImage
from tests.unit.test_convert_images import encode, noise

HAS_HEIF = "libheif" in READERS
FORMATS = [
    pytest.param("AVIF", marks=pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")),
    pytest.param("HEIF", marks=pytest.mark.skipif(not HAS_HEIF, reason="needs the package pillow-heif")),
]


@pytest.mark.parametrize("kind", FORMATS)
def test_they_become_jpegs_of_the_decoded_pixels(kind: str) -> None:
    data = encode(noise(), kind, quality=95)
    checked = check_image(data)
    assert (checked.mended, checked.width_px, checked.height_px) == (
        f"{kind} re-encoded as RGB JPEG, quality 95", 64, 48,
    )  # fmt: skip
    stored, original = (np.asarray(Image.open(BytesIO(part)).convert("RGB"), int) for part in (checked.data, data))
    assert np.abs(stored - original).mean() < 3
    assert check_image(data).data == checked.data
    assert check_image(data, images.parse_resize("max=32", quality=90, subsampling="4:2:0")).width_px == 32


@pytest.mark.parametrize("kind", FORMATS)
def test_what_is_transparent_becomes_white_and_of_many_pictures_the_first_is_taken(kind: str) -> None:
    clear = noise(mode="RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(clear.size))
    assert check_image(encode(clear, kind)).mended == (
        f"{kind} re-encoded as RGB JPEG, quality 95, transparent parts became white"
    )
    moving = encode(noise(), kind, save_all=True, append_images=[noise(seed=1), noise(seed=2)])
    assert str(check_image(moving).mended).endswith("first of 3 frames")


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("kept", [20, 200, 0.5, -1])
def test_what_is_cut_short_is_refused(kind: str, kept: float) -> None:
    data = encode(noise(), kind)
    with pytest.raises(BadImage, match=r"damaged|cannot read|not an image|pillow-heif"):
        check_image(data[: int(kept * len(data)) if isinstance(kept, float) else kept])


def test_without_its_reader_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_HAS_AVIF", False)
    monkeypatch.setattr(images, "_HAS_HEIF", False)
    monkeypatch.setattr(images, "FORMATS", ("JPEG", "PNG"))
    for brand, words in {
        b"avif": r"AVIF, which this Pillow does not read; install Pillow 11\.3 or later",
        b"heic": r"HEIC, which Pillow reads with the package pillow-heif alone; `pip install pillow-heif`",
        b"mif1": r"HEIC, which .*pillow-heif",
    }.items():
        with pytest.raises(BadImage, match=words):
            check_image(b"\0\0\0\x1cftyp" + brand + b"\0\0\0\0mif1miaf")


def test_the_readers_versions_are_noted() -> None:
    if features.check("avif"):
        assert READERS["libavif"] == features.version("avif")
    if HAS_HEIF:
        pillow_heif: Any = importlib.import_module("pillow_heif")
        assert READERS["libheif"] == pillow_heif.libheif_version()
