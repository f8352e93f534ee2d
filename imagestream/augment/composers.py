"""Composer's RandAugment and AugMix, drawn from numpy's generator as Composer 0.32 does.

The strengths are those of composer/algorithms/utils/augmentation_primitives.py, on its scale of 1 to 10.
"""

from collections.abc import Callable, Sequence
from typing import ClassVar, Literal, TypeAlias, get_args

import numpy as np

from imagestream.augment.generators import Numbers
from imagestream.augment.operations import Code, Mix, Operation, Step, affine, rotation, shift
from imagestream.augment.policy import Policy, Source
from imagestream.limits import check, check_whole

AugmentationSet: TypeAlias = Literal["all", "safe", "original"]
BILINEAR = 2  # PIL.Image.Resampling, as in Composer for all that is moved

Drawn: TypeAlias = Callable[[Numbers, float, int, int], Operation]
"""(numbers, level, height, width) to one change."""


def _whole(level: float, most: float) -> int:
    return int(level * most / 10)


def _sampled(numbers: Numbers, level: float) -> float:
    return numbers.uniform(0.1, level)


def _signed(numbers: Numbers, strength: float) -> float:
    return -strength if numbers.uniform() > 0.5 else strength


def _about_one(numbers: Numbers, level: float) -> float:
    """Above 1 as often as below."""
    if numbers.uniform() > 0.5:
        return numbers.uniform(1, level)
    return numbers.uniform(1 - (0.09 * level), 1)


def _autocontrast(numbers: Numbers, level: float, height: int, width: int) -> Operation:
    return Operation(Code.AUTOCONTRAST)


def _equalize(numbers: Numbers, level: float, height: int, width: int) -> Operation:
    return Operation(Code.EQUALIZE)


def _posterize(numbers: Numbers, level: float, height: int, width: int) -> Operation:
    return Operation(Code.POSTERIZE, (4 - _whole(_sampled(numbers, level), 4),))


def _rotate(numbers: Numbers, level: float, height: int, width: int) -> Operation:
    return rotation(_signed(numbers, _whole(_sampled(numbers, level), 30)), height, width, BILINEAR)


def _solarize(numbers: Numbers, level: float, height: int, width: int) -> Operation:
    return Operation(Code.SOLARIZE, (256 - _whole(_sampled(numbers, level), 256),))


def _sheared(numbers: Numbers, level: float) -> float:
    return _signed(numbers, _sampled(numbers, level) * 0.3 / 10.0)


def _shear_x(numbers: Numbers, level: float, height: int, width: int) -> Operation:
    return affine((1, _sheared(numbers, level), 0, 0, 1, 0), BILINEAR)


def _shear_y(numbers: Numbers, level: float, height: int, width: int) -> Operation:
    return affine((1, 0, 0, _sheared(numbers, level), 1, 0), BILINEAR)


def _translate_x(numbers: Numbers, level: float, height: int, width: int) -> Operation:
    return shift(_signed(numbers, _whole(_sampled(numbers, level), width / 3)), 0, BILINEAR)


def _translate_y(numbers: Numbers, level: float, height: int, width: int) -> Operation:
    return shift(0, _signed(numbers, _whole(_sampled(numbers, level), height / 3)), BILINEAR)


def _enhanced(code: Code) -> Drawn:
    def drawn(numbers: Numbers, level: float, height: int, width: int) -> Operation:
        factor = _about_one(numbers, level)
        return Operation(code, (factor * 0.75 if code == Code.BRIGHTNESS and factor > 1 else factor,))

    return drawn


def _first_enhanced(code: Code) -> Drawn:
    """By the strengths of the first implementation, which are those of ImageNet-C."""

    def drawn(numbers: Numbers, level: float, height: int, width: int) -> Operation:
        return Operation(code, (_sampled(numbers, level) * 1.8 / 10.0 + 0.1,))

    return drawn


_SAFE: tuple[Drawn, ...] = (
    *(_autocontrast, _equalize, _posterize, _rotate, _solarize),
    *(_shear_x, _shear_y, _translate_x, _translate_y),
)
_CODES = (Code.COLOR, Code.CONTRAST, Code.BRIGHTNESS, Code.SHARPNESS)
_SETS: dict[str, tuple[Drawn, ...]] = {
    "all": (*_SAFE, *map(_enhanced, _CODES)),
    "safe": _SAFE,
    "original": (*_SAFE, *map(_first_enhanced, _CODES)),
}


class _OfASet(Policy):
    def __init__(self, severity: float, augmentation_set: AugmentationSet) -> None:
        check("severity", severity, 1, 10)
        if augmentation_set not in get_args(AugmentationSet):
            raise ValueError(f"augmentation_set: {augmentation_set!r} must be all, safe or original")
        self.severity, self.augmentation_set = severity, augmentation_set

    def _changes(self, count: int, height: int, width: int, numbers: Numbers) -> list[Operation]:
        kinds: Sequence[Drawn] = _SETS[self.augmentation_set]
        return [kinds[numbers.randint(0, len(kinds))](numbers, self.severity, height, width) for _ in range(count)]


class ComposerRandAugment(_OfASet):
    """`depth` random changes, each of a random strength: `composer.functional.randaugment_image`.

    Args:
        severity: largest strength, 1 to 10.
        depth: changes of an image, from 1.
        augmentation_set: all; safe: without those of ImageNet-C; original: with the first implementation's strengths.

    Raises:
        ValueError: one of them is out of range.
    """

    sources: ClassVar[frozenset[Source]] = frozenset({"numbers"})

    def __init__(self, severity: int = 9, depth: int = 2, augmentation_set: AugmentationSet = "all") -> None:
        super().__init__(severity, augmentation_set)
        check_whole("depth", depth, 1, 100)
        self.depth = depth

    def draw(self, height: int, width: int, numbers: Numbers) -> Sequence[Step]:
        return [*self._changes(self.depth, height, width, numbers)]


class AugMix(_OfASet):
    """The image mixed with changed copies of it: `composer.functional.augmix_image` (arXiv:1912.02781).

    Args:
        severity: largest strength, 1 to 10.
        depth: changes of a copy; -1: 1 to 3 at random.
        width: copies.
        alpha: parameter of the Dirichlet and Beta distributions that the shares are drawn from.
        augmentation_set: as of `ComposerRandAugment`.

    Raises:
        ValueError: one of them is out of range.
    """

    sources: ClassVar[frozenset[Source]] = frozenset({"numpy"})  # two distributions that only it has

    def __init__(
        self,
        severity: int = 3,
        depth: int = -1,
        width: int = 3,
        alpha: float = 1.0,
        augmentation_set: AugmentationSet = "all",
    ) -> None:
        super().__init__(severity, augmentation_set)
        if depth != -1:
            check_whole("depth", depth, 1, 100)
        check_whole("width", width, 1, 100)
        check("alpha", alpha, 0.001, 1000)
        self.depth, self.width, self.alpha = depth, width, alpha

    def draw(self, height: int, width: int, numbers: Numbers) -> Sequence[Step]:
        weights = np.random.dirichlet([self.alpha] * self.width).astype(np.float32)
        share = np.float32(np.random.beta(self.alpha, self.alpha))
        chains = []
        for weight in weights.tolist():
            count = self.depth if self.depth > 0 else np.random.randint(1, 4)
            chains.append((weight, tuple(self._changes(count, height, width, np.random))))
        return [Mix(float(share), tuple(chains))]
