"""Pixels and ledger entries of augmentations that runs may have been started with: they never change."""

import hashlib
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from imagestream.data.per_sample import PerSample
from imagestream.decode.native import library
from train.config.algorithms import Algorithm
from train.config.augmentations import PerSampleAlgorithm

needs_native = pytest.mark.skipif(not library.is_built(), reason="not built: python imagestream/decode/build.py")

MEAN = (123.675, 116.28, 103.53)
KEYS = [(epoch, position) for epoch in (0, 1, 7) for position in (0, 3, 4, 900, 1_281_166)]
ERASING = {"name": "random_erasing", "probability": 0.6}
# Of the loader before its augmentations were in C (November 2026), by Pillow 12.3, numpy 2.4, torchvision 0.29 and
# Composer 0.32.1.
FROZEN: list[tuple[list[dict[str, Any]], str]] = [
    ([{"name": "randaugment", "augmentation_set": "all"}], "fd8296153c6f7fda"),
    ([{"name": "augmix", "augmentation_set": "all"}], "a528337dd12da493"),
    ([{"name": "randaugment", "augmentation_set": "safe"}], "7224e7421b03eada"),
    ([{"name": "augmix", "augmentation_set": "safe"}], "785b7702a97b7db9"),
    ([{"name": "randaugment", "augmentation_set": "original"}], "b2595dc6be7a4fb0"),
    ([{"name": "augmix", "augmentation_set": "original"}], "21ae477bf9c97b39"),
    ([{"name": "randaugment", "severity": 10, "depth": 7}], "bfeb0533bac9cb6b"),
    ([{"name": "randaugment", "severity": 1, "depth": 1}], "441039d82c58af14"),
    ([{"name": "augmix", "severity": 10, "depth": 2, "width": 5, "alpha": 0.3}], "ec3da0d3023fd2a8"),
    ([{"name": "augmix", "severity": 6, "width": 1, "alpha": 4.0}], "3074e890c2d5d500"),
    ([{"name": "trivial_augment"}], "8d1919ee760bb0e0"),
    ([{"name": "trivial_augment", "interpolation": "nearest"}], "d9b79d0218c1b4b5"),
    ([ERASING], "3b032a7d37d700ea"),
    ([{"name": "trivial_augment"}, ERASING], "08508073ec38cf2b"),
    ([{"name": "randaugment"}, {"name": "augmix"}, {"name": "trivial_augment"}, ERASING], "8888288d15bc4a6a"),
]


def build(settings: dict[str, Any]) -> PerSampleAlgorithm:
    algorithm = TypeAdapter(Algorithm).validate_python(settings)
    assert isinstance(algorithm, PerSampleAlgorithm)
    return algorithm


def digest(settings: list[dict[str, Any]], *, in_c: bool, px: int = 61) -> str:
    """SHA-256 of pixels and ledger entries, its first 16 digits."""
    noise = torch.randint(0, 256, (9, 9, 3), generator=torch.Generator().manual_seed(5), dtype=torch.uint8)
    rough = noise.repeat_interleave(7, dim=0).repeat_interleave(7, dim=1)[:px, :px]
    slope = torch.arange(px, dtype=torch.uint8)[None, :, None]
    images = ((rough // 2) + slope).repeat(len(KEYS), 1, 1, 1).contiguous()
    draws = PerSample([build(one).policy(MEAN) for one in settings], seed=17, in_c=in_c)(images, KEYS)
    return hashlib.sha256(images.numpy().tobytes() + draws.numpy().tobytes()).hexdigest()[:16]


@pytest.mark.parametrize("in_c", [False, pytest.param(True, marks=needs_native)], ids=["by Pillow", "in C"])
@pytest.mark.parametrize(("settings", "expected"), FROZEN, ids=str)
def test_what_a_key_stands_for_never_changes(settings: list[dict[str, Any]], expected: str, in_c: bool) -> None:
    """Pinned: a run that was started before a change continues with the same pixels, and its ledger agrees."""
    assert digest(settings, in_c=in_c) == expected
