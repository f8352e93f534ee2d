"""Changes of colour: torchvision's ColorJitter, and the 3-Augment of DeiT III."""

import random
from typing import ClassVar

import torch

from imagestream.augment.generators import Numbers
from imagestream.augment.operations import Code, Operation, Step
from imagestream.augment.policy import Policy, Source
from imagestream.limits import check

_ONE = torch.empty(())
MOST_BLUR_PX, LEAST_BLUR_PX = 2.0, 0.1  # radii of DeiT III's


class ColorJitter(Policy):
    """Brightness, contrast and saturation times random factors, in random order: `torchvision.transforms.ColorJitter`.

    Args:
        brightness: factors are from 1 - brightness, at least 0, to 1 + brightness; 0: it stays as it is.
        contrast: likewise.
        saturation: likewise.

    Raises:
        ValueError: one of them is out of range.
    """

    sources: ClassVar[frozenset[Source]] = frozenset({"torch"})

    def __init__(self, brightness: float = 0.3, contrast: float = 0.3, saturation: float = 0.3) -> None:
        self.brightness, self.contrast, self.saturation = brightness, contrast, saturation
        self._ranges: list[tuple[Code, float, float] | None] = []
        for name, code, value in (
            ("brightness", Code.BRIGHTNESS, brightness),
            ("contrast", Code.CONTRAST, contrast),
            ("saturation", Code.COLOR, saturation),
        ):
            check(name, value, 0, 10)
            self._ranges.append((code, max(0.0, 1.0 - value), 1.0 + value) if value else None)

    def draw(self, height: int, width: int, numbers: Numbers) -> list[Step]:
        order = torch.randperm(4).tolist()  # the fourth is torchvision's change of hue
        drawn = [found and Operation(found[0], (float(_ONE.uniform_(found[1], found[2])),)) for found in self._ranges]
        return [step for place in order if place < 3 and (step := drawn[place])]


class ThreeAugment(Policy):
    """One of three: grey, solarised from 128 on, or blurred: DeiT III's 3-Augment (arXiv:2204.07118) less its jitter.

    With `ColorJitter(0.3, 0.3, 0.3)` after it, it is all of that. The draws are those of DeiT's
    `new_data_aug_generator`, from the generator of `random`.
    """

    sources: ClassVar[frozenset[Source]] = frozenset({"random"})

    def draw(self, height: int, width: int, numbers: Numbers) -> list[Step]:
        place = random.choices((0, 1, 2))[0]
        random.random()  # whether it is done, which is certain
        if place == 0:
            return [Operation(Code.COLOR, (0.0,))]
        if place == 1:
            return [Operation(Code.SOLARIZE, (128,))]
        return [Operation(Code.BLUR, (random.uniform(LEAST_BLUR_PX, MOST_BLUR_PX),))]
