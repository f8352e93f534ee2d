"""torchvision's augmentations of one image, for the loader's workers; the same draws give torchvision's result."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, RandomErasing, TrivialAugmentWide

NO_PIXELS = torch.empty(3, 1, 1)


class TrivialAugment(TrivialAugmentWide):
    """torchvision's, which works out the strengths of all changes anew for each image; here it does so once."""

    def __init__(self, interpolation: str) -> None:
        super().__init__(interpolation=InterpolationMode(interpolation))
        self._space = super()._augmentation_space(self.num_magnitude_bins)

    def _augmentation_space(self, num_bins: int) -> Any:
        return self._space


class Erasing:
    """Paints a box of the mean colour over some images, where torchvision's `RandomErasing` sets it to 0.

    torchvision erases what has been normalised, of which 0 is the mean. Whole numbers of 0-255 come to within 0.01 of
    that, in standard deviations.

    Args:
        probability: of an image.
        scale: the box's area, as a fraction of the image's: from, to.
        ratio: its height to its width: from, to.
        colour: RGB, 0-255.
    """

    def __init__(
        self, probability: float, scale: Sequence[float], ratio: Sequence[float], colour: Sequence[float]
    ) -> None:
        self.probability, self.scale, self.ratio = probability, tuple(scale), tuple(ratio)
        self.colour = np.round(np.array(colour)).astype(np.uint8)

    def __call__(self, image: Image.Image) -> Image.Image:
        if torch.rand(1) >= self.probability:  # the first draw, as torchvision's
            return image
        pixels = np.array(image)
        like = NO_PIXELS.expand(3, *pixels.shape[:2])
        top, left, height, width, _ = RandomErasing.get_params(like, self.scale, self.ratio, value=[0.0])
        if (height, width) != pixels.shape[:2]:  # then torchvision has found no box, and returns the image
            pixels[top : top + height, left : left + width] = self.colour
        return Image.fromarray(pixels)
