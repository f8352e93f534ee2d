"""Boxes painted over."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torchvision.transforms import RandomErasing as TorchvisionsErasing

from imagestream.augment.generators import Numbers
from imagestream.augment.operations import Code, Colour, Operation, Step
from imagestream.augment.policy import Policy, Source
from imagestream.limits import check

_PIXELS, _ONE = torch.empty(3, 1, 1), torch.empty(())


class RandomErasing(Policy):
    """Paints a box of one colour over some images (Zhong et al. 2017, arXiv:1708.04896).

    torchvision's `RandomErasing` sets it to 0 after normalising, of which the mean colour is 0; whole numbers of 0-255
    come to within 0.01 of that, in standard deviations. The draws are torchvision's, from torch's global generator.

    Args:
        probability: of an image, 0 to 1.
        scale: the box's area, as a fraction of the image's: from, to.
        ratio: its height to its width: from, to.
        colour: RGB, 0-255; ImageNet's mean by default.

    Raises:
        ValueError: one of them is out of range.
    """

    sources: ClassVar[frozenset[Source]] = frozenset({"torch"})

    def __init__(
        self,
        probability: float = 0.1,
        scale: Sequence[float] = (0.02, 0.33),
        ratio: Sequence[float] = (0.3, 3.3),
        colour: Sequence[float] = (123.675, 116.28, 103.53),
    ) -> None:
        check("probability", probability, 0, 1)
        self._chance = float(np.float32(probability))  # as torch compares it
        self.probability, self.scale, self.ratio = probability, tuple(scale), tuple(ratio)
        for name, pair, most in (("scale", self.scale, 1.0), ("ratio", self.ratio, 100.0)):
            if len(pair) != 2 or not 0 < pair[0] <= pair[1] <= most:
                raise ValueError(f"{name}: {pair} must be (low, high) with 0 < low <= high <= {most:g}")
        red, green, blue = (round(level) for level in colour)
        self.colour: Colour = (red, green, blue)
        for level in self.colour:
            check("colour", level, 0, 255)

    def draw(self, height: int, width: int, numbers: Numbers) -> Sequence[Step]:
        if float(_ONE.uniform_()) >= self._chance:  # the first draw, as torchvision's
            return []
        like = _PIXELS.expand(3, height, width)
        top, left, high, wide, _ = TorchvisionsErasing.get_params(like, self.scale, self.ratio, value=[0.0])
        if (high, wide) == (height, width):  # torchvision has found no box, and returns the image
            return []
        return [Operation(Code.ERASE, (top, left, high, wide, *self.colour))]
