"""Our RandAugment of timm's is timm's: the same draws and pixels, by Pillow and in C."""

import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imagestream import TimmRandAugment
from imagestream.augment.native import change
from imagestream.decode.native import library
from tests.conftest import REPOSITORY
from tests.jpegs import photo


@pytest.fixture(scope="module")
def timms() -> Any:
    libraries = str(REPOSITORY / "build/examples")
    if not Path(libraries, "timm").exists():
        pytest.skip("timm is not there: make test-examples")
    sys.path.append(libraries)
    from timm.data import auto_augment

    sys.path.remove(libraries)
    return auto_augment


@pytest.mark.parametrize(
    ("name", "hparams", "ours"),
    [
        ("rand-m7-mstd0.5-inc1", {}, TimmRandAugment()),
        ("rand-m6-mstd0.5-inc1", {"interpolation": 3}, TimmRandAugment(6, interpolation="bicubic")),
        ("rand-m9-n4-p1-inc1", {"interpolation": 2}, TimmRandAugment(9, 4, 1.0, 0.0, "bilinear")),
        ("rand-m10-n3-p0.7-mstd3-inc1", {}, TimmRandAugment(10, 3, 0.7, 3.0)),
    ],
)
def test_rand_augment_is_timms(name: str, hparams: dict[str, Any], ours: TimmRandAugment, timms: Any) -> None:
    theirs, results = timms.rand_augment_transform(name, {"img_mean": (124, 116, 104), **hparams}), set()
    for seed in range(150):
        image = Image.fromarray(photo(64 + seed % 3, 57 + seed % 2 * 8, seed % 7))
        np.random.seed(seed)
        random.seed(seed)
        expected = np.asarray(theirs(image))
        after = np.random.random(), random.random()
        np.random.seed(seed)
        random.seed(seed)
        assert np.array_equal(np.asarray(ours(image)), expected), seed
        assert (np.random.random(), random.random()) == after
        results.add(expected.tobytes())
        if library.is_built():
            np.random.seed(seed)
            random.seed(seed)
            pixels = np.asarray(image)[None].copy()
            change(pixels, [ours.draw(image.height, image.width, np.random)])
            assert np.array_equal(pixels[0], expected), seed
    assert len(results) > 90
