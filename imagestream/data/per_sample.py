"""Functions that change one image at a time, in the loader's worker, drawn for each sample from its own key.

A worker's generators depend on what it did before. Here they are set for each sample from (seed, epoch, position), so
that workers, ranks and restarts do not matter.
"""

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from imagestream.augment import native
from imagestream.augment.generators import LikeNumpy, Numbers, numbers_of
from imagestream.augment.operations import Step, by_pillow
from imagestream.augment.policy import Policy, Source

ImageFunction = Callable[[Image.Image], Image.Image]

ANY_OF_THEM: frozenset[Source] = frozenset({"numpy", "random", "torch"})
"""What a function that is no policy may draw from."""


class PerSample:
    """Applies functions, in their order, to each image of decoded batches.

    Args:
        functions: policies, or functions that take an RGB image and return one of the same size. The latter may draw
            from the global generators of `random`, numpy and torch, and from nothing else.
        in_c: have the C library change what policies have drawn; else Pillow does, to the same pixels.
    """

    def __init__(self, functions: Sequence[ImageFunction], *, seed: int, in_c: bool = False) -> None:
        self.functions, self.seed, self.in_c = tuple(functions), seed, in_c
        self._sources: set[Source] = set()
        for function in self.functions:
            self._sources |= function.sources if isinstance(function, Policy) else ANY_OF_THEM
        self._like_numpy = LikeNumpy()

    def __bool__(self) -> bool:
        return bool(self.functions)

    def __call__(self, images: torch.Tensor, keys: Sequence[tuple[int, int]]) -> torch.Tensor:
        """Change a batch in place.

        Args:
            images: uint8 (B, H, W, 3), RGB, 0-255; cut and mirrored.
            keys: (epoch, position) of each image.

        Returns:
            int64 (B,): what was drawn of numpy for each image, for the ledger.

        Raises:
            ValueError: a function has returned an image of another size or kind.
        """
        pixels, draws = images.numpy(), np.empty(len(keys), dtype=np.int64)
        lists: list[list[Step]] = []
        with _put_back_afterwards(self._sources):
            for index, (epoch, position) in enumerate(keys):
                numbers = self._seed(f"{self.seed}/{epoch}/{position}/per sample")
                lists.append(self._draw(pixels[index : index + 1], numbers))
                # The next draw is another one as soon as one draw more or less was made.
                draws[index] = int.from_bytes(numbers.bytes(8), "little", signed=True)
        self._carry_out(pixels, lists)
        return torch.from_numpy(draws)

    def _seed(self, key: str) -> Numbers:
        """Seed what is drawn from, and return numpy's generator or what stands in for it."""
        digest = hashlib.blake2b(key.encode(), digest_size=16).digest()
        if "random" in self._sources:
            random.seed(digest)
        if "torch" in self._sources:
            torch.default_generator.manual_seed(int.from_bytes(digest[:7], "little"))
        if "numpy" not in self._sources:
            return numbers_of(digest, self._like_numpy)
        np.random.seed(np.frombuffer(digest, dtype="<u4"))
        return np.random

    def _draw(self, image: npt.NDArray[np.uint8], numbers: Numbers) -> list[Step]:
        """Apply the functions to an image (1, H, W, 3), but for the last policies; return what changes these draw."""
        pending: list[Step] = []
        _, height, width, _ = image.shape
        for function in self.functions:
            if isinstance(function, Policy):
                pending += function.draw(height, width, numbers)
                continue
            if pending:
                self._carry_out(image, [pending])
                pending = []
            image[0] = _of_the_same_kind(function(Image.fromarray(image[0])), image[0])
        return pending

    def _carry_out(self, images: npt.NDArray[np.uint8], lists: Sequence[Sequence[Step]]) -> None:
        if self.in_c:
            native.change(images, lists)
            return
        for image, steps in zip(images, lists, strict=True):
            if steps:
                image[:] = np.asarray(by_pillow(Image.fromarray(image), steps))


def _of_the_same_kind(image: Image.Image, before: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    changed = np.asarray(image)
    if changed.shape != before.shape or changed.dtype != np.uint8:
        raise ValueError(
            f"the functions given as `transforms` made {changed.dtype} {changed.shape} of uint8 "
            f"{before.shape}; they have to keep an image's size and return a PIL image in RGB"
        )
    return changed


@contextmanager
def _put_back_afterwards(sources: Set[Source]) -> Iterator[None]:
    """Let these global generators continue as if nothing had been drawn; numpy's alone takes 0.2 ms."""
    before: dict[str, Any] = {}
    if "numpy" in sources:
        before["numpy"] = np.random.get_state()
    if "random" in sources:
        before["random"] = random.getstate()
    if "torch" in sources:
        before["torch"] = torch.get_rng_state()
    try:
        yield
    finally:
        if "numpy" in before:
            np.random.set_state(before["numpy"])
        if "random" in before:
            random.setstate(before["random"])
        if "torch" in before:
            torch.set_rng_state(before["torch"])
