"""Crops and mirrors: keyed, of torchvision's distribution, and looking at the pixels that torchvision looks at."""

import io
import random
from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torchvision
from PIL import Image
from torchvision.transforms import InterpolationMode

from imagestream.decode import crops, pillow
from imagestream.decode.backends import open_decoder
from imagestream.decode.crops import (
    CenterCrop,
    Interpolation,
    RandomResizedCrop,
    View,
    center_view,
    random_resized_crop,
    sample_draws,
    view_hash,
)
from imagestream.decode.native import library
from imagestream.decode.native.decoder import NativeDecoder

SETTINGS: dict[str, Any] = {"scale": (0.08, 1.0), "ratio": (3 / 4, 4 / 3), "flip_prob": 0.5}


def test_a_sample_looks_the_same_whenever_and_wherever_it_is_drawn() -> None:
    first = [random_resized_crop(500, 375, sample_draws(17, 3, i), **SETTINGS) for i in range(50)]
    random.seed(1)
    again = [random_resized_crop(500, 375, sample_draws(17, 3, i), **SETTINGS) for i in reversed(range(50))]
    assert first == again[::-1]


def test_seed_epoch_and_sample_each_change_the_view() -> None:
    views = [
        random_resized_crop(500, 375, sample_draws(*key), **SETTINGS)
        for key in ((17, 3, 5), (18, 3, 5), (17, 4, 5), (17, 3, 6), (1, 73, 5))
    ]
    assert len(set(views)) == len(views)


def test_the_views_of_a_known_key_never_change() -> None:
    """Pinned: if this changes, older runs can no longer be resumed exactly, and `crops.ALGORITHM` must say so."""
    assert random_resized_crop(500, 375, sample_draws(17, 0, 0), **SETTINGS) == View((66, 24, 294, 287), True)
    assert view_hash(0, 0, View((1, 2, 3, 4), True), 224) == -320497832532295762
    assert view_hash(0, 0, View((1, 2, 3, 4), True, cubic=True), 224) != -320497832532295762
    assert crops.ALGORITHM == 2


def test_a_stream_does_not_end_and_does_not_repeat() -> None:
    draw = sample_draws(17, 0, 0)
    numbers = [draw() for _ in range(100)]  # a digest holds 8
    assert len(set(numbers)) == 100 and min(numbers) >= 0 and max(numbers) < 1
    assert 0.4 < sum(numbers) / 100 < 0.6


@pytest.mark.parametrize(("width", "height"), [(500, 375), (90, 400), (1000, 80), (1, 1), (33, 2)])
def test_crops_lie_within_the_image(width: int, height: int) -> None:
    for index in range(500):
        left, top, right, bottom = random_resized_crop(width, height, sample_draws(0, 0, index), **SETTINGS).box
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height


def test_crops_are_distributed_as_torchvisions() -> None:
    count, transform = 4000, torchvision.transforms.RandomResizedCrop
    torch.manual_seed(0)
    blank = torch.empty(3, 375, 500)
    theirs = np.array([transform.get_params(blank, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(count)])
    boxes = np.array([random_resized_crop(500, 375, sample_draws(0, 0, i), **SETTINGS).box for i in range(count)])
    ours = np.stack([boxes[:, 1], boxes[:, 0], boxes[:, 3] - boxes[:, 1], boxes[:, 2] - boxes[:, 0]], axis=1)
    for column in range(4):  # top, left, height, width: equal deciles within sampling error
        levels = np.linspace(0.1, 0.9, 9)
        difference = np.quantile(ours[:, column], levels) - np.quantile(theirs[:, column], levels)
        assert np.abs(difference).max() < 14, (column, difference)


def test_mirrors_come_as_often_as_asked() -> None:
    flips = Counter(random_resized_crop(50, 50, sample_draws(0, 0, i), **SETTINGS).flip for i in range(4000))
    assert 1880 < flips[True] < 2120  # 3.8 standard deviations


def test_an_image_too_wide_for_any_crop_gives_its_middle() -> None:
    settings: dict[str, Any] = {"scale": (1.0, 1.0), "ratio": (3 / 4, 4 / 3), "flip_prob": 0.0}
    assert random_resized_crop(1000, 90, sample_draws(0, 0, 0), **settings).box == (440, 0, 560, 90)


def encode(pixels: npt.NDArray[np.uint8], **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def photo(width: int, height: int) -> npt.NDArray[np.uint8]:
    """Smooth colours with some detail, like a photograph and unlike noise."""
    y, x = np.mgrid[0:height, 0:width]
    channels = [127 + 100 * np.sin(x / 7 + k) * np.cos(y / (5 + k)) + 20 * np.sin(x * y / 50) for k in range(3)]
    return np.stack(channels, axis=-1).clip(0, 255).astype(np.uint8)


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["pillow", "native"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("resize_size", "crop_size"), [(64, 56), pytest.param(73, 64, marks=pytest.mark.exhaustive), (256, 224)]
)
def test_evaluation_sees_the_pixels_of_resize_and_center_crop_bit_for_bit(
    resize_size: int, crop_size: int, decoder: str, interpolation: Interpolation
) -> None:
    if decoder == "native" and not library.is_built():
        pytest.skip("the native decoder is not built")
    opened = open_decoder(decoder)  # type: ignore[arg-type]
    transform = torchvision.transforms.Compose(
        [
            torchvision.transforms.Resize(resize_size, InterpolationMode(interpolation)),
            torchvision.transforms.CenterCrop(crop_size),
        ]
    )
    rng = random.Random(resize_size)
    sizes = [(500, 375), (375, 500), (256, 256), (resize_size, resize_size), (257, 301), (90, 400), (9, 700), (1, 30)]
    sizes += [(rng.randrange(20, 700), rng.randrange(20, 700)) for _ in range(25)]
    for width, height in sizes:
        jpeg = encode(photo(width, height), quality=95)
        view = CenterCrop(crop_size, resize_size, interpolation).view(width, height)
        ours = opened.decode_batch([jpeg], [view], crop_size, bounded=False)[0]
        reference = transform(Image.open(io.BytesIO(jpeg)).convert("RGB"))
        assert torch.equal(ours, torch.from_numpy(np.array(reference))), (width, height)
    assert not isinstance(opened, NativeDecoder) or opened.left_to_pillow == 0


def test_a_strip_too_long_to_be_resized_as_a_whole_is_seen_in_its_middle() -> None:
    view = center_view(1, 60_000, resize_size=256, crop_size=224)
    assert view.whole is None
    assert pillow.decode_batch([encode(photo(1, 60_000))], [view], 224, bounded=False).shape == (1, 224, 224, 3)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_training_sees_the_pixels_of_resized_crop_bit_for_bit(interpolation: Interpolation) -> None:
    jpeg = encode(photo(300, 200), quality=95)
    crop = RandomResizedCrop(48, ratio=SETTINGS["ratio"], interpolation=interpolation)
    views = [crop.view(300, 200, sample_draws(0, 0, i)) for i in range(20)]
    ours = pillow.decode_batch([jpeg] * 20, views, 48, bounded=True)
    image = Image.open(io.BytesIO(jpeg)).convert("RGB")
    for view, pixels in zip(views, ours, strict=True):
        left, top, right, bottom = (int(edge) for edge in view.box)
        reference = torchvision.transforms.functional.resized_crop(
            image, top, left, bottom - top, right - left, [48, 48], InterpolationMode(interpolation)
        )
        if view.flip:
            reference = torchvision.transforms.functional.hflip(reference)
        assert np.array_equal(pixels.numpy(), np.asarray(reference))


def test_grey_and_cmyk_images_come_out_as_rgb() -> None:
    grey = encode(photo(60, 40)[:, :, 0])
    cmyk = io.BytesIO()
    Image.fromarray(photo(60, 40)).convert("CMYK").save(cmyk, "JPEG")
    whole = View((0, 0, 60, 40), False)
    images = pillow.decode_batch([grey, cmyk.getvalue()], [whole, whole], 32, bounded=True)
    assert images.shape == (2, 32, 32, 3)
    assert torch.equal(images[0, :, :, 0], images[0, :, :, 2])
    assert not torch.equal(images[1, :, :, 0], images[1, :, :, 2])


def test_a_truncated_jpeg_is_named_by_its_place_in_the_batch() -> None:
    good = encode(photo(300, 200), quality=95)
    whole = View((0, 0, 300, 200), False)
    with pytest.raises(pillow.DecodeError, match="truncated") as caught:
        pillow.decode_batch([good, good[: len(good) // 3]], [whole, whole], 32, bounded=True)
    assert caught.value.index == 1
