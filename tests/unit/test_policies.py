"""Policies: the draws and pixels of those that they are named after, by Pillow and in C."""

import os
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import composer.functional
import numpy as np
import pytest
import torch
import torchvision
from composer.algorithms.utils import augmentation_sets
from PIL import Image, ImageFilter, ImageOps
from torchvision.transforms import InterpolationMode

from imagestream.augment.colours import ColorJitter, ThreeAugment
from imagestream.augment.composers import AugMix, ComposerRandAugment
from imagestream.augment.erasing import RandomErasing
from imagestream.augment.generators import LikeNumpy, numbers_of
from imagestream.augment.native import change
from imagestream.augment.policy import Policy
from imagestream.augment.spaces import AutoAugment, RandAugment, TrivialAugment
from imagestream.augment.timms import TimmRandAugment
from imagestream.decode.native import library

needs_native = pytest.mark.skipif(not library.is_built(), reason="not built: python imagestream/decode/build.py")
WRONG: Any = "wrong"
SIZES = [(64, 64), (57, 40), (90, 121), (1, 1)]  # height, width


def photograph(height: int, width: int) -> Image.Image:
    """An image with edges, slopes and all brightnesses."""
    rows, columns = np.mgrid[0:height, 0:width]
    channels = [rows * 4 % 256, (rows * columns) % 256, 255 - columns * 3 % 256]
    return Image.fromarray(np.stack(channels, axis=2).astype(np.uint8))


def seed_all(seed: int) -> None:
    np.random.seed(seed)
    random.seed(seed)
    torch.manual_seed(seed)


def composers(function: str, **arguments: Any) -> Callable[[Image.Image], Image.Image]:
    arguments["augmentation_set"] = augmentation_sets[arguments.get("augmentation_set", "all")]
    return partial(getattr(composer.functional, function), **arguments)


def torchvisions(name: str, interpolation: str, **arguments: Any) -> Callable[[Image.Image], Image.Image]:
    kind = getattr(torchvision.transforms, name)
    return kind(interpolation=InterpolationMode(interpolation), **arguments)


def deits(image: Image.Image) -> Image.Image:
    """`new_data_aug_generator` of DeiT III (augment.py), but for its crop, mirror and jitter."""

    def grey(image: Image.Image) -> Image.Image:
        return torchvision.transforms.Grayscale(3)(image) if random.random() < 1.0 else image

    def solarised(image: Image.Image) -> Image.Image:
        return ImageOps.solarize(image) if random.random() < 1.0 else image

    def blurred(image: Image.Image) -> Image.Image:
        if not random.random() <= 1.0:
            return image
        return image.filter(ImageFilter.GaussianBlur(radius=random.uniform(0.1, 2.0)))

    return torchvision.transforms.RandomChoice([grey, solarised, blurred])(image)


PAIRS: dict[str, tuple[Policy, Callable[[Image.Image], Image.Image]]] = {
    **{
        f"trivial augment, {way}": (TrivialAugment(way), torchvisions("TrivialAugmentWide", way))
        for way in ("nearest", "bilinear", "bicubic")
    },
    "trivial augment, on grey": (
        TrivialAugment(fill=(124, 116, 104)),
        torchvisions("TrivialAugmentWide", "bilinear", fill=[124, 116, 104]),
    ),
    "rand augment": (RandAugment(), torchvisions("RandAugment", "bilinear")),
    "rand augment, 5 of 30": (
        RandAugment(5, 30, "nearest"),
        torchvisions("RandAugment", "nearest", num_ops=5, magnitude=30),
    ),
    "auto augment": (AutoAugment(), torchvisions("AutoAugment", "bilinear")),
    "auto augment, nearest": (AutoAugment("nearest"), torchvisions("AutoAugment", "nearest")),
    "three augment": (ThreeAugment(), deits),
    "jitter": (ColorJitter(), torchvision.transforms.ColorJitter(0.3, 0.3, 0.3)),
    "jitter of two": (ColorJitter(0.0, 2.0, 0.4), torchvision.transforms.ColorJitter(0, 2.0, 0.4)),
    "composer's rand augment": (ComposerRandAugment(), composers("randaugment_image", severity=9, depth=2)),
    **{
        f"composer's rand augment, {kinds}": (
            ComposerRandAugment(10, 4, kinds),
            composers("randaugment_image", severity=10, depth=4, augmentation_set=kinds),
        )
        for kinds in ("safe", "original")
    },
    "augmix": (AugMix(), composers("augmix_image")),
    "augmix, five of two": (AugMix(8, 2, 5, 0.3), composers("augmix_image", severity=8, depth=2, width=5, alpha=0.3)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PAIRS)
def test_a_policy_is_what_it_is_named_after(name: str) -> None:
    """The same pixels by Pillow, in C, and by the original, which leaves its generators at the same place."""
    ours, theirs = PAIRS[name]
    results = set()
    for seed in range(60 if "augmix" in name else 110):
        height, width = SIZES[0] if seed % 2 else SIZES[seed // 2 % len(SIZES)]
        image = photograph(height, width)
        seed_all(seed)
        expected = np.asarray(theirs(image))
        after = np.random.random(), torch.rand(1).item(), random.random()
        seed_all(seed)
        assert np.array_equal(np.asarray(ours(image)), expected), seed
        assert (np.random.random(), torch.rand(1).item(), random.random()) == after
        results.add(expected.tobytes())
        if library.is_built():
            seed_all(seed)
            pixels = np.asarray(image)[None].copy()
            change(pixels, [ours.draw(height, width, np.random)])
            assert np.array_equal(pixels[0], expected), seed
    assert len(results) > 25


def test_what_stands_in_for_numpys_generator_draws_the_same() -> None:
    rng, like_numpy = random.Random(0), LikeNumpy()
    for _ in range(200):
        words = rng.randbytes(16)
        np.random.seed(np.frombuffer(words, dtype="<u4"))
        numbers = numbers_of(words, like_numpy)
        assert numbers is like_numpy
        for _ in range(40):
            low, high = rng.randrange(5), rng.randrange(6, 300)
            assert numbers.randint(low, high) == np.random.randint(low, high)
            assert numbers.uniform(low, high / 7) == np.random.uniform(low, high / 7)
            assert numbers.randint(0, 13) == np.random.choice(13)
            assert numbers.bytes(8) == np.random.bytes(8)


def test_numpy_itself_draws_where_python_would_leave_out_a_word_of_the_key() -> None:
    words = os.urandom(12) + bytes(4)
    np.random.seed(np.frombuffer(words, dtype="<u4"))
    numbers = numbers_of(words, LikeNumpy())
    assert numbers.bytes(8) == np.random.bytes(8)
    assert numbers.randint(0, 13) == np.random.choice(13)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TrivialAugment(WRONG), "interpolation: 'wrong' must be nearest, bilinear or bicubic"),
        (partial(RandAugment, 0), "num_ops: 0 must be a whole number from 1 to 100"),
        (lambda: RandAugment(2, WRONG), "magnitude: 'wrong' must be a whole number"),
        (partial(RandAugment, 2, 31), "magnitude: 31 must be a whole number from 0 to 30"),
        (partial(ComposerRandAugment, 11), "severity: 11 must be from 1 to 10"),
        (
            lambda: ComposerRandAugment(augmentation_set=WRONG),
            "augmentation_set: 'wrong' must be all, safe or original",
        ),
        (partial(AugMix, depth=0), "depth: 0 must be a whole number from 1 to 100"),
        (partial(ColorJitter, -0.1), "brightness: -0.1 must be from 0 to 10"),
        (partial(TimmRandAugment, 11), "magnitude: 11 must be from 0 to 10"),
        (lambda: TimmRandAugment(interpolation=WRONG), "interpolation: 'wrong' must be random, bilinear, bicubic"),
        (partial(RandomErasing, 1.5), "probability: 1.5 must be from 0 to 1"),
        (partial(RandomErasing, scale=(0.5, 0.2)), r"scale: \(0.5, 0.2\) must be \(low, high\)"),
    ],
)
def test_a_setting_out_of_range_is_named(build: Callable[[], Policy], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
