"""Algorithms that change one image at a time, in the loader's worker: RandAugment and AugMix, as Composer has them.

Composer's own classes put themselves into `dataset.transforms`, which a streaming dataset has not, and draw from the
worker's generator, whose state depends on what the worker did before. Here the generator is set for each sample from
(seed, epoch, position), so that workers, ranks and restarts do not matter.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image

from train.config.algorithms import PerSampleAlgorithm

ImageFunction = Callable[[Image.Image], Image.Image]


class PerSample:
    """Applies a recipe's per-sample algorithms, in their order, to decoded batches; can be pickled."""

    def __init__(self, algorithms: Sequence[PerSampleAlgorithm], *, seed: int) -> None:
        self.algorithms, self.seed = tuple(algorithms), seed

    def __bool__(self) -> bool:
        return bool(self.algorithms)

    def __call__(self, images: torch.Tensor, keys: Sequence[tuple[int, int]]) -> torch.Tensor:
        """Change a batch in place.

        Args:
            images: uint8 (B, H, W, 3), RGB, 0-255; cut and mirrored.
            keys: (epoch, position) of each image.

        Returns:
            int64 (B,): what was drawn for each image, for the ledger.
        """
        pixels, draws = images.numpy(), torch.empty(len(keys), dtype=torch.int64)
        functions = [algorithm.on_image() for algorithm in self.algorithms]
        for index, (epoch, position) in enumerate(keys):
            with _numpy_seeded(f"{self.seed}/{epoch}/{position}/per sample"):
                image = Image.fromarray(pixels[index])
                for function in functions:
                    image = function(image)
                # The next draw is another one as soon as one draw more or less was made.
                draws[index] = int.from_bytes(np.random.bytes(8), "little", signed=True)
            pixels[index] = np.asarray(image)
        return draws


@contextmanager
def _numpy_seeded(key: str) -> Iterator[None]:
    """Seed numpy's global generator, the only one that Composer's functions draw from, and put it back afterwards.

    Its streams are the same in every version of numpy (NEP 19).
    """
    before = np.random.get_state()
    digest = hashlib.blake2b(key.encode(), digest_size=16).digest()
    np.random.seed(np.frombuffer(digest, dtype="<u4"))
    try:
        yield
    finally:
        np.random.set_state(before)
