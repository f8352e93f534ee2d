"""The changes that policies are made of: as numbers for the C code, and by Pillow, which is the reference.

draw ──▶ [Operation, Mix, ...] ──packed──▶ imagestream/decode/native/augment.c
                               └─by_pillow▶ a PIL image, the same pixels
"""

import math
import struct
from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

BLACK = (0, 0, 0)
MOST_NUMBERS = 10  # OPERATION_NUMBERS of augment.c
_RECORD, _ZEROS = struct.Struct(f"={1 + MOST_NUMBERS}d"), (0.0,) * MOST_NUMBERS

Colour: TypeAlias = tuple[int, int, int]
"""RGB, 0-255."""


class Code(IntEnum):
    """What an operation does; `enum code` of augment.c."""

    BRIGHTNESS = 0
    CONTRAST = 1
    COLOR = 2
    SHARPNESS = 3
    POSTERIZE = 4
    SOLARIZE = 5
    SOLARIZE_ADD = 6
    AUTOCONTRAST = 7
    EQUALIZE = 8
    AFFINE = 9
    BLUR = 10
    ERASE = 11
    MIX_BEGIN = 12
    MIX_CHAIN = 13
    MIX_END = 14


class Operation(NamedTuple):
    """One change of an image."""

    code: Code
    numbers: tuple[float, ...] = ()


class Mix(NamedTuple):
    """Of the image and of changed copies of it, what AugMix makes: (1 - share) * image + share * sum(weight * copy).

    All in single precision; the result is cut off to whole numbers.
    """

    share: float
    chains: tuple[tuple[float, tuple[Operation, ...]], ...]
    """The weight of each copy, and the changes that make it."""


Step: TypeAlias = Operation | Mix


def affine(matrix: Sequence[float], resample: int, fill: Colour = BLACK) -> Operation:
    """Return Pillow's `transform(size, AFFINE, matrix, resample)`, of which what lies outside gets the colour."""
    return Operation(Code.AFFINE, (*matrix, resample, *fill))


def shift(right_px: float, down_px: float, resample: int, fill: Colour = BLACK) -> Operation:
    """Return the operation that shows at each place what was so far to its right and below."""
    return affine((1.0, 0.0, right_px, 0.0, 1.0, down_px), resample, fill)


def rotation(degrees: float, height: int, width: int, resample: int, fill: Colour = BLACK) -> Operation:
    """Return Pillow's `Image.rotate`, counter-clockwise about the middle, with the same size."""
    angle = -math.radians(degrees % 360.0)
    cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
    x, y = width / 2, height / 2
    return affine((cos, sin, cos * -x + sin * -y + 0.0 + x, -sin, cos, -sin * -x + cos * -y + 0.0 + y), resample, fill)


def packed(steps: Sequence[Step]) -> tuple[bytes, int]:
    """Return the operations as augment.c reads them, and how many they are."""
    records = [_RECORD.pack(o.code, *o.numbers, *_ZEROS[len(o.numbers) :]) for o in _flat(steps)]
    return b"".join(records), len(records)


def _flat(steps: Sequence[Step]) -> Iterator[Operation]:
    for step in steps:
        if isinstance(step, Operation):
            yield step
            continue
        yield Operation(Code.MIX_BEGIN)
        for weight, operations in step.chains:
            yield from operations
            yield Operation(Code.MIX_CHAIN, (weight,))
        yield Operation(Code.MIX_END, (step.share,))


def by_pillow(image: Image.Image, steps: Sequence[Step]) -> Image.Image:
    """Return the changed image, worked out by Pillow."""
    for step in steps:
        image = _mixed(image, step) if isinstance(step, Mix) else _changed(image, step)
    return image


def _mixed(image: Image.Image, mix: Mix) -> Image.Image:
    original, sums = np.asarray(image, dtype=np.float32), np.zeros((*image.size[::-1], 3), dtype=np.float32)
    for weight, operations in mix.chains:
        sums += np.float32(weight) * np.asarray(by_pillow(image, operations))
    share = np.float32(mix.share)
    mixed: npt.NDArray[np.float32] = (1 - share) * original + share * sums
    return Image.fromarray(mixed.astype(np.uint8))


_ENHANCEMENTS = {
    Code.BRIGHTNESS: ImageEnhance.Brightness,
    Code.CONTRAST: ImageEnhance.Contrast,
    Code.COLOR: ImageEnhance.Color,
    Code.SHARPNESS: ImageEnhance.Sharpness,
}


def _changed(image: Image.Image, operation: Operation) -> Image.Image:
    code, numbers = operation
    if code in _ENHANCEMENTS:
        return _ENHANCEMENTS[code](image).enhance(numbers[0])
    if code == Code.AFFINE:
        resample, fill = Image.Resampling(int(numbers[6])), tuple(map(int, numbers[7:]))
        return image.transform(image.size, Image.Transform.AFFINE, numbers[:6], resample, fillcolor=fill)
    if code == Code.BLUR:
        return image.filter(ImageFilter.GaussianBlur(numbers[0]))
    if code == Code.ERASE:
        top, left, height, width, *colour = map(int, numbers)
        image = image.copy()
        image.paste(tuple(colour), (left, top, left + width, top + height))
        return image
    if code == Code.AUTOCONTRAST:
        return ImageOps.autocontrast(image)
    if code == Code.EQUALIZE:
        return ImageOps.equalize(image)
    return image.point(_table(code, numbers) * 3)


def _table(code: Code, numbers: tuple[float, ...]) -> list[int]:
    if code == Code.POSTERIZE:
        kept = 0xFF << (8 - int(numbers[0])) & 0xFF
        return [level & kept for level in range(256)]
    if code == Code.SOLARIZE:
        return [level if level < numbers[0] else 255 - level for level in range(256)]
    assert code == Code.SOLARIZE_ADD
    added, below = numbers
    return [min(255, int(level + added)) if level < below else level for level in range(256)]
