"""What a policy is: random changes of one image, drawn as operations before a pixel is touched."""

from collections.abc import Sequence
from typing import ClassVar, Literal, TypeAlias

import numpy as np
from PIL import Image

from imagestream.augment.generators import Numbers
from imagestream.augment.operations import Step, by_pillow

Source: TypeAlias = Literal["numbers", "numpy", "random", "torch"]
"""A generator that is drawn from: numpy's, which `LikeNumpy` may stand in for ("numbers") or may not ("numpy"), that of
`random` or torch's."""


class Policy:
    """Random changes of one image.

    Called with a PIL image in RGB it draws from the global generators and returns the changed one, worked out by
    Pillow: what the class or function that its docstring names returns with the same generators. The loader draws
    alike, and has the C library change the pixels where they lie, to the same values.
    """

    sources: ClassVar[frozenset[Source]]

    def draw(self, height: int, width: int, numbers: Numbers) -> Sequence[Step]:
        """Return the changes of one image of this size, px.

        Args:
            numbers: numpy's generator, for those that name "numbers" among their sources; others take the global ones.
        """
        raise NotImplementedError

    def __repr__(self) -> str:
        """Name it with its settings: equal texts, equal changes of a key's image."""
        settings = [f"{name}={value!r}" for name, value in sorted(vars(self).items()) if not name.startswith("_")]
        return f"{type(self).__name__}({', '.join(settings)})"

    def __call__(self, image: Image.Image) -> Image.Image:
        return by_pillow(image, self.draw(image.height, image.width, np.random))
