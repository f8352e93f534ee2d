"""The changes that augmentations are made of: in C they have Pillow's pixels, to the last bit, on all instructions."""

import random
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from imagestream.augment.native import change
from imagestream.augment.operations import Code, Mix, Operation, Step, affine, by_pillow, rotation, shift
from imagestream.decode.native import library
from imagestream.decode.native.decoder import AUTO, AVX2, PORTABLE

pytestmark = pytest.mark.skipif(not library.is_built(), reason="not built: python imagestream/decode/build.py")

EDGES = [(1, 1), (1, 9), (9, 1), (2, 2), (3, 3), (4, 5), (2, 30), (32, 32)]  # height, width
FACTORS = [0.0, 1.0, 2.0, 0.01, 1.99, *(1 + 0.033 * step for step in range(-30, 31))]
ANGLES = [0, 90, -90, 180, 45, *(4.5 * step for step in range(-30, 31))]


def picture(rng: random.Random, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Noise, one colour, black and white, few levels, or slopes: what filters, histograms and clipping stumble over."""
    noise, kind, shape = np.random.default_rng(rng.randrange(1 << 30)), rng.randrange(5), (height, width, 3)
    if kind == 0:
        return noise.integers(0, 256, shape, dtype=np.uint8)
    if kind == 1:
        return np.broadcast_to(noise.integers(0, 256, 3, dtype=np.uint8), shape).copy()
    if kind == 2:
        return noise.integers(0, 2, shape, dtype=np.uint8) * np.uint8(255)
    if kind == 3:
        return noise.integers(100, 110, shape, dtype=np.uint8)
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([(x * 3 + y) % 256, (x * y) % 256, (255 - y * 2) % 256], axis=-1).astype(np.uint8)


def size(rng: random.Random) -> tuple[int, int]:
    return rng.choice([*EDGES, (rng.randrange(1, 70), rng.randrange(1, 70)), (rng.randrange(1, 300), 224)])


def drawn(rng: random.Random, code: Code, height: int, width: int) -> Operation:
    if code in (Code.BRIGHTNESS, Code.CONTRAST, Code.COLOR, Code.SHARPNESS):
        return Operation(code, (rng.choice([*FACTORS, rng.random(), rng.random() * 9]),))
    if code == Code.POSTERIZE:
        return Operation(code, (rng.randrange(9),))
    if code == Code.SOLARIZE:
        return Operation(code, (rng.choice([0, 256, 255.0, rng.random() * 256, rng.randrange(257)]),))
    if code == Code.SOLARIZE_ADD:
        return Operation(code, (rng.randrange(129), 128))
    if code == Code.BLUR:
        return Operation(code, (rng.choice([0.0, 0.1, 2.0, rng.uniform(0, 2), rng.uniform(0, 30)]),))
    if code == Code.AFFINE:
        return moved(rng, height, width)
    if code == Code.ERASE:
        top, left = rng.randrange(height + 1), rng.randrange(width + 1)
        box = (top, left, rng.randrange(height - top + 1), rng.randrange(width - left + 1))
        return Operation(code, (*box, rng.randrange(256), rng.randrange(256), rng.randrange(256)))
    return Operation(code)


def moved(rng: random.Random, height: int, width: int) -> Operation:
    resample, fill = rng.choice([0, 2, 3]), (rng.randrange(256), rng.randrange(256), rng.randrange(256))
    right, down = rng.uniform(-width - 2, width + 3), rng.uniform(-height - 2, height + 3)
    kind = rng.randrange(6)
    if kind == 0:
        return affine((1, rng.uniform(-1, 1), 0, 0, 1, 0), resample, fill)
    if kind == 1:
        return affine((1, 0, 0, rng.uniform(-1, 1), 1, 0), resample, fill)
    if kind == 2:
        return shift(int(right), int(down), resample, fill)
    if kind == 3:
        return shift(right, down, resample, fill)
    if kind == 4:
        return affine(
            [rng.uniform(-1.5, 1.5) for _ in range(2)] + [right] + [rng.uniform(-2, 2)] * 2 + [down], resample
        )
    return rotation(rng.choice([*ANGLES, rng.uniform(-180, 180)]), height, width, resample, fill)


def in_c(pixels: npt.NDArray[np.uint8], steps: Sequence[Step], path: int = AUTO) -> npt.NDArray[np.uint8]:
    images = pixels[None].copy()
    change(images, [steps], path=path)
    return images[0]


def assert_pixels_are_pillows(pixels: npt.NDArray[np.uint8], steps: Sequence[Step]) -> None:
    expected = np.asarray(by_pillow(Image.fromarray(pixels), steps))
    for path in (PORTABLE, AVX2) if has_avx2() else (PORTABLE,):
        assert np.array_equal(in_c(pixels, steps, path), expected), (pixels.shape, steps, path)


def has_avx2() -> bool:
    try:
        change(np.zeros((1, 1, 1, 3), dtype=np.uint8), [[]], path=AVX2)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("code", [code for code in Code if code < Code.MIX_BEGIN], ids=lambda code: code.name.lower())
def test_each_change_has_pillows_pixels(code: Code) -> None:
    rng = random.Random(code)
    for _ in range(300 if code == Code.AFFINE else 100):
        height, width = size(rng)
        assert_pixels_are_pillows(picture(rng, height, width), [drawn(rng, code, height, width)])


def test_changes_follow_each_other_and_mix_as_by_pillow() -> None:
    rng, codes = random.Random(5), [code for code in Code if code < Code.MIX_BEGIN]
    for _ in range(60):
        height, width = size(rng)
        steps = [drawn(rng, rng.choice(codes), height, width) for _ in range(rng.randrange(5))]
        weights = np.random.default_rng(rng.randrange(99)).dirichlet([1.0] * 3).astype(np.float32).tolist()
        chains = tuple((weight, tuple(rng.sample(steps, rng.randrange(len(steps) + 1)))) for weight in weights)
        mix = Mix(float(np.float32(rng.random())), chains)
        assert_pixels_are_pillows(picture(rng, height, width), [*steps, mix, *steps[:1], mix])


@pytest.mark.parametrize("degrees", ANGLES)
@pytest.mark.parametrize(("height", "width"), [(40, 40), (40, 31), (1, 1)])
def test_a_rotation_is_pillows_rotate(degrees: float, height: int, width: int) -> None:
    pixels = picture(random.Random(1), height, width)
    for resample in (0, 2, 3):
        rotated = Image.fromarray(pixels).rotate(degrees, resample=Image.Resampling(resample), fillcolor=(9, 8, 7))
        assert np.array_equal(
            in_c(pixels, [rotation(degrees, height, width, resample, (9, 8, 7))]), np.asarray(rotated)
        )


def test_levels_that_lie_on_a_whole_number_are_cut_off_as_pillow_does() -> None:
    """Of places at fractions of 1/2 to 1/32 many levels are whole to the last bit, or just not."""
    rng = random.Random(3)
    for resample in (2, 3):
        for step in (0.5, 0.25, 0.125, 1 / 3, 1 / 32, 0.1, 1e-9):
            pixels = picture(rng, 60, 60) // 8 * 8
            for matrix in ((1, step, step, step, 1, -step), (1, step, 0, 0, 1, 0), (1, 0, step, step, 1, 3)):
                assert_pixels_are_pillows(pixels, [affine(matrix, resample)])


def test_a_list_belongs_to_its_image() -> None:
    rng = random.Random(2)
    images = np.stack([picture(rng, 33, 47) for _ in range(12)])
    lists = [[drawn(rng, Code(rng.randrange(Code.MIX_BEGIN)), 33, 47) for _ in range(rng.randrange(4))] for _ in images]
    expected = [
        np.asarray(by_pillow(Image.fromarray(image), steps)) for image, steps in zip(images, lists, strict=True)
    ]
    change(images, lists)
    assert np.array_equal(images, np.stack(expected))


@pytest.mark.parametrize(
    "operation",
    [
        Operation(Code.BRIGHTNESS, (float("nan"),)),
        Operation(Code.COLOR, (1e6,)),
        Operation(Code.ERASE, (30, 0, 4, 1, 0, 0, 0)),
        Operation(Code.ERASE, (0, -1, 4, 1, 0, 0, 0)),
        Operation(Code.MIX_CHAIN, (0.5,)),
        Operation(Code.MIX_END, (0.5,)),
        affine((1, 0, 1e9, 0, 1, 0), 2),
        affine((1, float("nan"), 0, 0, 1, 0), 2),
        affine((1, 0.1, 0, 0, 1, 0), 1),
    ],
    ids=str,
)
def test_what_is_out_of_bounds_is_refused_with_its_image(operation: Operation) -> None:
    images = np.zeros((3, 32, 32, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match="an operation on image 1 of 32 x 32 px cannot be carried out"):
        change(images, [[Operation(Code.EQUALIZE)], [Operation(Code.EQUALIZE), operation], []])


def test_images_that_are_too_large_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"images of 4097 x 1 px cannot be augmented: .* an edge is not from 1 to 4096 px"
    ):
        change(np.zeros((1, 4097, 1, 3), dtype=np.uint8), [[]])
