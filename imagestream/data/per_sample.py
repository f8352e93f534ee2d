"""Functions that change one image at a time, in the loader's worker, drawn for each sample from its own key.

A worker's generators depend on what it did before. Here they are set for each sample from (seed, epoch, position), so
that workers, ranks and restarts do not matter.
"""

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image

ImageFunction = Callable[[Image.Image], Image.Image]


class PerSample:
    """Applies functions, in their order, to each image of decoded batches.

    Args:
        functions: each takes an RGB image and returns one of the same size. They may draw from the global generators of
            `random`, numpy and torch, and from nothing else.
    """

    def __init__(self, functions: Sequence[ImageFunction], *, seed: int) -> None:
        self.functions, self.seed = tuple(functions), seed

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
        pixels, draws = images.numpy(), torch.empty(len(keys), dtype=torch.int64)
        for index, (epoch, position) in enumerate(keys):
            with _seeded(f"{self.seed}/{epoch}/{position}/per sample"):
                image = Image.fromarray(pixels[index])
                for function in self.functions:
                    image = function(image)
                # The next draw is another one as soon as one draw more or less was made.
                draws[index] = int.from_bytes(np.random.bytes(8), "little", signed=True)
            changed = np.asarray(image)
            if changed.shape != pixels[index].shape or changed.dtype != np.uint8:
                raise ValueError(
                    f"the functions given as `transforms` made {changed.dtype} {changed.shape} of uint8 "
                    f"{pixels[index].shape}; they have to keep an image's size and return a PIL image in RGB"
                )
            pixels[index] = changed
        return draws


@contextmanager
def _seeded(key: str) -> Iterator[None]:
    """Seed the global generators of numpy, `random` and torch, and put them back afterwards.

    Numpy's streams are the same in each of its versions (NEP 19).
    """
    before = np.random.get_state(), random.getstate(), torch.get_rng_state()
    digest = hashlib.blake2b(key.encode(), digest_size=16).digest()
    np.random.seed(np.frombuffer(digest, dtype="<u4"))
    random.seed(digest)
    torch.default_generator.manual_seed(int.from_bytes(digest[:7], "little"))
    try:
        yield
    finally:
        np.random.set_state(before[0])
        random.setstate(before[1])
        torch.set_rng_state(before[2])
