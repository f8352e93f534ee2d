"""timm's RandAugment, by which the recipes of "ResNet strikes back" (arXiv:2110.00476) and later ones train.

The draws are timm's, from numpy's generator and that of `random` (timm 1.0, timm/data/auto_augment.py).
"""

import random
from collections.abc import Callable
from typing import ClassVar, Literal, NamedTuple, TypeAlias

from imagestream.augment.generators import Numbers
from imagestream.augment.operations import Code, Colour, Operation, Step, affine, rotation, shift
from imagestream.augment.policy import Policy, Source
from imagestream.limits import check, check_whole

MOST = 10.0  # strength, `_LEVEL_DENOM`
TRANSLATED_FRACTION = 0.45

Interpolation: TypeAlias = Literal["random", "bilinear", "bicubic"]
RESAMPLES: dict[str, tuple[int, ...]] = {  # PIL.Image.Resampling
    "random": (2, 3),
    "bilinear": (2,),
    "bicubic": (3,),
}


class Frame(NamedTuple):
    """What changes know of an image: its edges, px, how it is interpolated, and the colour of what is uncovered."""

    height: int
    width: int
    resamples: tuple[int, ...]
    fill: Colour

    def resample(self) -> int:
        return random.choice(self.resamples) if len(self.resamples) > 1 else self.resamples[0]


Made: TypeAlias = Callable[[float, Frame], Operation]
"""One change of a strength from 0 to 1."""


def _signed(strength: float) -> float:
    return -strength if random.random() > 0.5 else strength


def _rotate(level: float, frame: Frame) -> Operation:
    degrees = _signed(level * 30.0)
    return rotation(degrees, frame.height, frame.width, frame.resample(), frame.fill)


def _shear_x(level: float, frame: Frame) -> Operation:
    factor = _signed(level * 0.3)
    return affine((1, factor, 0, 0, 1, 0), frame.resample(), frame.fill)


def _shear_y(level: float, frame: Frame) -> Operation:
    factor = _signed(level * 0.3)
    return affine((1, 0, 0, factor, 1, 0), frame.resample(), frame.fill)


def _translate_x(level: float, frame: Frame) -> Operation:
    fraction = _signed(level * TRANSLATED_FRACTION)
    return shift(fraction * frame.width, 0, frame.resample(), frame.fill)


def _translate_y(level: float, frame: Frame) -> Operation:
    fraction = _signed(level * TRANSLATED_FRACTION)
    return shift(0, fraction * frame.height, frame.resample(), frame.fill)


def _enhanced(code: Code) -> Made:
    def made(level: float, frame: Frame) -> Operation:
        return Operation(code, (max(0.1, 1.0 + _signed(level * 0.9)),))

    return made


def _posterize(level: float, frame: Frame) -> Operation:
    return Operation(Code.POSTERIZE, (4 - int(level * 4),))


def _solarize(level: float, frame: Frame) -> Operation:
    return Operation(Code.SOLARIZE, (256 - min(256, int(level * 256)),))


def _solarize_add(level: float, frame: Frame) -> Operation:
    return Operation(Code.SOLARIZE_ADD, (min(128, int(level * 110)), 128))


def _plain(code: Code, *numbers: float) -> Made:
    return lambda level, frame: Operation(code, numbers)


_INCREASING: tuple[Made, ...] = (
    _plain(Code.AUTOCONTRAST),
    _plain(Code.EQUALIZE),
    _plain(Code.SOLARIZE, 0.0),  # which inverts
    *(_rotate, _posterize, _solarize, _solarize_add),
    *map(_enhanced, (Code.COLOR, Code.CONTRAST, Code.BRIGHTNESS, Code.SHARPNESS)),
    *(_shear_x, _shear_y, _translate_x, _translate_y),
)


class TimmRandAugment(Policy):
    """Up to `num_layers` random changes: timm's `rand-m7-mstd0.5-inc1`, of changes that grow with the magnitude.

    Args:
        magnitude: mean strength, 0 to 10; `m` in timm's name for it.
        num_layers: changes of an image, at most; `n`.
        probability: of each of them; `p`.
        magnitude_std: standard deviation of the strength; `mstd`.
        interpolation: of rotated, sheared and shifted images; random: bilinear or bicubic by chance, timm's default.
        fill: the colour of what a change uncovers; ImageNet's mean by default.

    Raises:
        ValueError: one of them is out of range.
    """

    sources: ClassVar[frozenset[Source]] = frozenset({"numbers", "random"})

    def __init__(
        self,
        magnitude: float = 7,
        num_layers: int = 2,
        probability: float = 0.5,
        magnitude_std: float = 0.5,
        interpolation: Interpolation = "random",
        *,
        fill: Colour = (124, 116, 104),
    ) -> None:
        check("magnitude", magnitude, 0, MOST)
        check_whole("num_layers", num_layers, 1, 100)
        check("probability", probability, 0, 1)
        check("magnitude_std", magnitude_std, 0, 100)
        if interpolation not in RESAMPLES:
            raise ValueError(f"interpolation: {interpolation!r} must be {', '.join(RESAMPLES)}")
        self.magnitude, self.num_layers, self.probability = magnitude, num_layers, probability
        self.magnitude_std, self.interpolation, self.fill = magnitude_std, interpolation, fill

    def draw(self, height: int, width: int, numbers: Numbers) -> list[Step]:
        kinds = [_INCREASING[numbers.randint(0, len(_INCREASING))] for _ in range(self.num_layers)]
        frame, steps = Frame(height, width, RESAMPLES[self.interpolation], self.fill), list[Step]()
        for made in kinds:
            if self.probability < 1.0 and random.random() > self.probability:
                continue
            magnitude = random.gauss(self.magnitude, self.magnitude_std) if self.magnitude_std else self.magnitude
            steps.append(made(max(0.0, min(magnitude, MOST)) / MOST, frame))
        return steps
