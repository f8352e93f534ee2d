"""Images in folders: which are found, in which order, how far ahead they are read, and what cannot be used."""

import io
import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from convert.images import check_image
from imagestream.data.image_files import ImageFile, file_loader, image_files
from imagestream.decode.backends import open_decoder
from imagestream.decode.crops import CenterCrop
from imagestream.decode.limits import MAX_PIXELS
from imagestream.decode.pillow import DecodeError, PillowDecoder
from imagestream.storage.errors import PlaceError
from imagestream.storage.local import LocalPlace
from imagestream.storage.places import open_place
from tests.jpegs import jpeg
from tests.s3_server import S3Server

CROP = CenterCrop(16, resize=20)


def names(folder: Path) -> list[str]:
    return [file.name for file in image_files(LocalPlace(folder))]


def test_images_come_in_order_of_their_names_and_once_whatever_links_there_are(tmp_path: Path) -> None:
    for name in ("b/2.JPG", "b/10.png", "a.webp", "z.avif", "b/notes.txt", ".hidden.jpg", "._mac.jpg", ".git/x.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b/loop").symlink_to(tmp_path)
    (tmp_path / "self.jpg").symlink_to("self.jpg")
    (tmp_path / "again").symlink_to(tmp_path / "b")
    assert names(tmp_path) == ["a.webp", "z.avif", "again/10.png", "again/2.JPG", "b/10.png", "b/2.JPG"]


def test_a_folder_in_a_bucket_is_walked_alike(s3_folder: str, s3_server: S3Server) -> None:
    place = open_place(s3_folder)
    for name in ("b/c/2.jpg", "a.jpg", "b/1.jpg", "b/x.txt"):
        place.write(name, b"x")
    assert [file.name for file in image_files(place)] == ["a.jpg", "b/1.jpg", "b/c/2.jpg"]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_are_in_the_order_of_the_files_with_their_own_pixels(workers: int, tmp_path: Path) -> None:
    for number in range(23):
        (tmp_path / f"{number:02}.jpg").write_bytes(jpeg(40 + number, 61 - number, seed=number))
    loaded = list(
        file_loader(image_files(LocalPlace(tmp_path)), open_decoder("auto"), CROP, batch_size=4, num_workers=workers)
    )
    assert [file.name for files, _ in loaded for file in files] == [f"{number:02}.jpg" for number in range(23)]
    pillow = PillowDecoder()
    for files, raw in loaded:
        data = [file.place.read(file.name) for file in files]
        views = [CROP.view(*size) for size in pillow.image_sizes(data)]
        assert torch.equal(raw.images, pillow.decode_batch(data, views, 16, bounded=False))
        assert raw.faults == ()


@pytest.mark.parametrize("workers", [0, 2])
def test_what_cannot_be_used_is_black_and_named_and_its_neighbours_are_as_they_are(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = jpeg(50, 40)
    large = io.BytesIO()
    Image.new("1", (9500, 9500)).save(large, "PNG")
    assert MAX_PIXELS < 9500 * 9500
    contents = {
        "0.jpg": good,
        "1.jpg": good[: len(good) // 2],
        "2.png": b"",
        "3.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "4.png": large.getvalue(),
        "5.jpg": good,
        "6.jpg": None,
    }
    for name, data in contents.items():
        if data is not None:
            (tmp_path / name).write_bytes(data)
    place = LocalPlace(tmp_path)
    files = [ImageFile(place, name, len(data or b"")) for name, data in contents.items()]
    ((found, raw),) = file_loader(files, open_decoder("auto"), CROP, batch_size=9, num_workers=workers)
    assert found == files
    faults = dict(raw.faults)
    assert list(faults) == [1, 2, 3, 4, 6]
    assert "truncated" in faults[1] and "0 bytes" in faults[2] and "not an image in any of JPEG, PNG" in faults[3]
    assert faults[4] == "9,500 x 9,500 px are more than the 89,478,485 allowed" and "6.jpg" in faults[6]
    assert torch.equal(raw.images[0], raw.images[5]) and raw.images[0].any()
    assert not raw.images[list(faults)].any()


def test_no_more_files_are_looked_at_than_the_next_few_batches_need(tmp_path: Path) -> None:
    """So that a folder of any size takes no more memory."""
    (tmp_path / "x.jpg").write_bytes(jpeg(30, 30))
    seen = itertools.count()
    file = ImageFile(LocalPlace(tmp_path), "x.jpg", 1)
    endless = (file for _ in seen)
    batches = file_loader(endless, open_decoder("auto"), CROP, batch_size=4, num_workers=2)
    for _ in range(20):
        next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert next(seen) <= (20 + 2 * 2 + 2) * 4


def test_an_image_that_would_start_a_program_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow opens EPS by Ghostscript; in a shard it is no image."""
    eps = io.BytesIO()
    Image.new("RGB", (8, 8)).save(eps, "EPS")
    with Image.open(io.BytesIO(eps.getvalue())) as opened:
        assert opened.format == "EPS"  # Pillow's own answer
    for decoder in (PillowDecoder(), open_decoder("auto")):
        with pytest.raises(DecodeError, match="not an image in any of JPEG, PNG, GIF, BMP, WEBP, TIFF, AVIF"):
            decoder.image_sizes([eps.getvalue()])


def test_avif_is_an_image() -> None:
    picture, data = Image.fromarray(np.full((30, 40, 3), 90, np.uint8)), io.BytesIO()
    picture.save(data, "AVIF")
    assert open_decoder("auto").image_sizes([data.getvalue()]) == [(40, 30)]


def encoded(image: Image.Image, kind: str, **more: Any) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **more)
    return data.getvalue()


def on_its_side() -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    return exif


def odd_images() -> dict[str, bytes]:
    """Images of which Pillow's own RGB is not what a person sees."""
    rng = np.random.default_rng(1)
    colours = Image.fromarray(rng.integers(0, 256, (40, 56, 3), np.uint8))
    alpha = colours.copy()
    alpha.putalpha(Image.fromarray(np.arange(40 * 56, dtype=np.uint32).reshape(40, 56).astype(np.uint8)))
    return {
        "alpha.png": encoded(alpha, "PNG"),
        "clear.gif": encoded(colours.quantize(8), "GIF", transparency=3),
        "grey16.png": encoded(Image.fromarray(rng.integers(0, 65536, (40, 56), np.uint16)), "PNG"),
        "side.jpg": encoded(colours, "JPEG", quality=95, subsampling=0, exif=on_its_side()),
        "side.tif": encoded(colours, "TIFF", exif=on_its_side()),
        "side.png": encoded(colours, "PNG", exif=on_its_side()),
    }


@pytest.mark.parametrize("turn", [False, True])
def test_a_network_sees_what_the_converter_would_have_stored(turn: bool, tmp_path: Path) -> None:
    for name, data in odd_images().items():
        (tmp_path / name).write_bytes(data)
    loaded = file_loader(
        image_files(LocalPlace(tmp_path)), open_decoder("auto"), CROP, batch_size=9, num_workers=0, turn=turn
    )
    ((files, raw),) = loaded
    assert raw.faults == () and len(files) == 6
    for file, image in zip(files, raw.images.int(), strict=True):
        stored = check_image(file.place.read(file.name), turn=turn).data
        (size,) = PillowDecoder().image_sizes([stored])
        expected = PillowDecoder().decode_batch([stored], [CROP.view(*size)], 16, bounded=False)[0].int()
        assert (image - expected).abs().float().mean() < 2, file.name  # the stored one is a JPEG of quality 95


def test_a_picture_that_is_transparent_everywhere_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(Image.new("RGBA", (30, 30), (255, 0, 0, 0)), "PNG"))
    loaded = file_loader(image_files(LocalPlace(tmp_path)), open_decoder("auto"), CROP, batch_size=1, num_workers=0)
    ((_, raw),) = loaded
    ((place, why),) = raw.faults
    assert place == 0 and why.startswith("every pixel is transparent")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "shut").mkdir(mode=0)
    with pytest.raises(PlaceError, match="shut"):
        names(tmp_path)
