"""torchvision's automatic augmentations: RandAugment, TrivialAugmentWide and AutoAugment's policy for ImageNet.

The draws are torchvision's, from torch's global generator, and so are the strengths (torchvision 0.29,
transforms/autoaugment.py).
"""

import functools
import math
from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple, TypeAlias, get_args

import numpy as np
import torch

from imagestream.augment.generators import Numbers
from imagestream.augment.operations import Code, Colour, Operation, Step, affine, rotation, shift
from imagestream.augment.policy import Policy, Source
from imagestream.limits import check_whole

Interpolation: TypeAlias = Literal["nearest", "bilinear", "bicubic"]
RESAMPLE: dict[str, int] = {"nearest": 0, "bilinear": 2, "bicubic": 3}  # PIL.Image.Resampling

BINS = 31  # strengths, as in torchvision and in TrivialAugment's paper
_ENHANCED = {
    "Brightness": Code.BRIGHTNESS,
    "Color": Code.COLOR,
    "Contrast": Code.CONTRAST,
    "Sharpness": Code.SHARPNESS,
}


_ONE = torch.empty((), dtype=torch.int64)


class Kind(NamedTuple):
    """One of a space's kinds of change.

    Attributes:
        strengths: from weak to strong; none where it has no strength.
        signed: whether half of them go the other way.
    """

    name: str
    strengths: Sequence[float] = ()
    signed: bool = False


def check_interpolation(interpolation: str) -> None:
    """Raise ValueError unless it is one that Pillow transforms with."""
    if interpolation not in get_args(Interpolation):
        raise ValueError(f"interpolation: {interpolation!r} must be nearest, bilinear or bicubic")


def operation(
    name: str, strength: float, height: int, width: int, interpolation: Interpolation, fill: Colour
) -> Operation | None:
    """Return torchvision's change of this name and strength (`_apply_op`); None: the image stays as it is."""
    resample = RESAMPLE[interpolation]
    if name in _ENHANCED:
        return Operation(_ENHANCED[name], (1.0 + strength,))
    if name == "ShearX":
        return affine((1.0, math.tan(_there_and_back(strength)), 0.0, 0.0, 1.0, 0.0), resample, fill)
    if name == "ShearY":
        angle = _there_and_back(strength)
        return affine((1.0, 0.0, 0.0, math.sin(angle) / math.cos(angle), 1.0, 0.0), resample, fill)
    if name == "TranslateX":
        return shift(-int(strength), 0.0, resample, fill)
    if name == "TranslateY":
        return shift(0.0, -int(strength), resample, fill)
    if name == "Rotate":
        return rotation(strength, height, width, resample, fill)
    if name == "Posterize":
        return Operation(Code.POSTERIZE, (int(strength),))
    if name == "Solarize":
        return Operation(Code.SOLARIZE, (strength,))
    if name == "Invert":
        return Operation(Code.SOLARIZE, (0.0,))
    if name == "Identity":
        return None
    return Operation({"AutoContrast": Code.AUTOCONTRAST, "Equalize": Code.EQUALIZE}[name])


def _there_and_back(strength: float) -> float:
    """The angle of a shear, with the rounding of torchvision's way by degrees."""
    return math.radians(math.degrees(math.atan(strength)))


def _below(count: int) -> int:
    """What `torch.randint(count, (1,))` draws, in half its time."""
    return int(_ONE.random_(count))


class _Torchvisions(Policy):
    """Changes of torchvision's spaces, drawn from torch's global generator.

    Args:
        interpolation: of rotated, sheared and shifted images; torchvision's recipes: bilinear.
        fill: the colour of what a change uncovers.

    Raises:
        ValueError: the interpolation has no such name.
    """

    sources: ClassVar[frozenset[Source]] = frozenset({"torch"})

    def __init__(self, interpolation: Interpolation = "bilinear", *, fill: Colour = (0, 0, 0)) -> None:
        check_interpolation(interpolation)
        self.interpolation, self.fill = interpolation, fill

    def one_of(self, kinds: Sequence[Kind], place: int | None, height: int, width: int) -> list[Step]:
        """Draw a kind of change and its sign; its strength is at this place of its strengths, or drawn too."""
        name, strengths, signed = kinds[_below(len(kinds))]
        strength = strengths[_below(len(strengths)) if place is None else place] if strengths else 0.0
        if signed and _below(2):
            strength = -strength
        found = operation(name, strength, height, width, self.interpolation, self.fill)
        return [found] if found else []


class TrivialAugment(_Torchvisions):
    """One random change of any strength: `torchvision.transforms.TrivialAugmentWide` (arXiv:2103.10158).

    Args:
        interpolation: of rotated, sheared and shifted images; torchvision's recipes: bilinear.
        fill: the colour of what a change uncovers.

    Raises:
        ValueError: the interpolation has no such name.
    """

    def __init__(self, interpolation: Interpolation = "bilinear", *, fill: Colour = (0, 0, 0)) -> None:
        super().__init__(interpolation, fill=fill)
        self._kinds = _wide_space()

    def draw(self, height: int, width: int, numbers: Numbers) -> Sequence[Step]:
        return self.one_of(self._kinds, None, height, width)


class RandAugment(_Torchvisions):
    """`num_ops` random changes of one strength: `torchvision.transforms.RandAugment` (arXiv:1909.13719).

    Args:
        num_ops: changes of an image, from 1.
        magnitude: their strength, 0 to 30.
        interpolation: of rotated, sheared and shifted images; torchvision's recipes: bilinear.
        fill: the colour of what a change uncovers.

    Raises:
        ValueError: one of them is out of range.
    """

    def __init__(
        self,
        num_ops: int = 2,
        magnitude: int = 9,
        interpolation: Interpolation = "bilinear",
        *,
        fill: Colour = (0, 0, 0),
    ) -> None:
        check_whole("num_ops", num_ops, 1, 100)
        check_whole("magnitude", magnitude, 0, BINS - 1)
        super().__init__(interpolation, fill=fill)
        self.num_ops, self.magnitude = num_ops, magnitude

    def draw(self, height: int, width: int, numbers: Numbers) -> Sequence[Step]:
        kinds, steps = _space(BINS, height, width), list[Step]()
        for _ in range(self.num_ops):
            steps += self.one_of(kinds, self.magnitude, height, width)
        return steps


class AutoAugment(_Torchvisions):
    """One of 25 pairs of changes found for ImageNet: `torchvision.transforms.AutoAugment` (arXiv:1805.09501).

    Args:
        interpolation: of rotated, sheared and shifted images; torchvision's recipes: bilinear.
        fill: the colour of what a change uncovers.

    Raises:
        ValueError: the interpolation has no such name.
    """

    def draw(self, height: int, width: int, numbers: Numbers) -> Sequence[Step]:
        pair, chances, signs = _PAIRS[_below(len(_PAIRS))], torch.rand(2).tolist(), torch.randint(2, (2,)).tolist()
        kinds, steps = {kind.name: kind for kind in _space(10, height, width)}, list[Step]()
        for index, (name, chance, place) in enumerate(pair):
            if not chances[index] <= chance:
                continue
            strength = kinds[name].strengths[place] if place is not None else 0.0
            if name in kinds and kinds[name].signed and not signs[index]:
                strength = -strength
            found = operation(name, strength, height, width, self.interpolation, self.fill)
            steps += [found] if found else []
        return steps


def _levels(most: float, bins: int = BINS) -> list[float]:
    return [float(strength) for strength in torch.linspace(0.0, most, bins)]


def _kept_bits(fewer: int, bins: int = BINS) -> list[float]:
    """From 8 bits down to `fewer` less."""
    return [float(kept) for kept in 8 - (torch.arange(bins) / ((bins - 1) / fewer)).round().int()]


def _solarize_levels(bins: int = BINS) -> list[float]:
    return [float(level) for level in torch.linspace(255.0, 0.0, bins)]


@functools.lru_cache(maxsize=1)
def _wide_space() -> tuple[Kind, ...]:
    enhanced = [Kind(name, _levels(0.99), True) for name in ("Brightness", "Color", "Contrast", "Sharpness")]
    return (
        Kind("Identity"),
        *(Kind(name, _levels(0.99), True) for name in ("ShearX", "ShearY")),
        *(Kind(name, _levels(32.0), True) for name in ("TranslateX", "TranslateY")),
        Kind("Rotate", _levels(135.0), True),
        *enhanced,
        Kind("Posterize", _kept_bits(6)),
        Kind("Solarize", _solarize_levels()),
        Kind("AutoContrast"),
        Kind("Equalize"),
    )


@functools.lru_cache(maxsize=64)
def _space(bins: int, height: int, width: int) -> tuple[Kind, ...]:
    """RandAugment's, and AutoAugment's but for Invert, which has no strength."""
    enhanced = [Kind(name, _levels(0.9, bins), True) for name in ("Brightness", "Color", "Contrast", "Sharpness")]
    return (
        Kind("Identity"),
        *(Kind(name, _levels(0.3, bins), True) for name in ("ShearX", "ShearY")),
        Kind("TranslateX", _levels(150.0 / 331.0 * width, bins), True),
        Kind("TranslateY", _levels(150.0 / 331.0 * height, bins), True),
        Kind("Rotate", _levels(30.0, bins), True),
        *enhanced,
        Kind("Posterize", _kept_bits(4, bins)),
        Kind("Solarize", _solarize_levels(bins)),
        Kind("AutoContrast"),
        Kind("Equalize"),
    )


_Change: TypeAlias = tuple[str, float, int | None]
IMAGENET: tuple[tuple[_Change, _Change], ...] = (
    (("Posterize", 0.4, 8), ("Rotate", 0.6, 9)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, None)),
    (("Equalize", 0.8, None), ("Equalize", 0.6, None)),
    (("Posterize", 0.6, 7), ("Posterize", 0.6, 6)),
    (("Equalize", 0.4, None), ("Solarize", 0.2, 4)),
    (("Equalize", 0.4, None), ("Rotate", 0.8, 8)),
    (("Solarize", 0.6, 3), ("Equalize", 0.6, None)),
    (("Posterize", 0.8, 5), ("Equalize", 1.0, None)),
    (("Rotate", 0.2, 3), ("Solarize", 0.6, 8)),
    (("Equalize", 0.6, None), ("Posterize", 0.4, 6)),
    (("Rotate", 0.8, 8), ("Color", 0.4, 0)),
    (("Rotate", 0.4, 9), ("Equalize", 0.6, None)),
    (("Equalize", 0.0, None), ("Equalize", 0.8, None)),
    (("Invert", 0.6, None), ("Equalize", 1.0, None)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Rotate", 0.8, 8), ("Color", 1.0, 2)),
    (("Color", 0.8, 8), ("Solarize", 0.8, 7)),
    (("Sharpness", 0.4, 7), ("Invert", 0.6, None)),
    (("ShearX", 0.6, 5), ("Equalize", 1.0, None)),
    (("Color", 0.4, 0), ("Equalize", 0.6, None)),
    (("Equalize", 0.4, None), ("Solarize", 0.2, 4)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, None)),
    (("Invert", 0.6, None), ("Equalize", 1.0, None)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Equalize", 0.8, None), ("Equalize", 0.6, None)),
)
"""Of each change: its name, its chance and which of ten strengths; table 9 of the paper."""

_PAIRS = tuple(tuple((name, float(np.float32(chance)), place) for name, chance, place in pair) for pair in IMAGENET)
"""With chances in single precision, as torch compares them."""
