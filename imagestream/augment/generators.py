"""The numbers that numpy's global generator would draw, without it.

Seeding it for each image takes longer than most changes of one. Python's `random` has the same Mersenne Twister, which
it seeds and reads in a fifth of the time; numpy's streams stay as they are (NEP 19).
"""

import random
from typing import Protocol

import numpy as np


class Numbers(Protocol):
    """What policies draw from: numpy's global generator, `numpy.random` itself, or what stands in for it."""

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """Return a number in [low, high)."""

    def randint(self, low: int, high: int) -> int:
        """Return a whole number in [low, high)."""

    def bytes(self, length: int) -> bytes:
        """Return so many random bytes."""


class LikeNumpy:
    """numpy's global generator after `numpy.random.seed(words)`, of what policies draw."""

    def __init__(self) -> None:
        self._twister = random.Random()

    def seed(self, words: bytes) -> None:
        """Begin as numpy does with these 16 bytes as four numbers of 32 bits, little end first.

        Raises:
            ValueError: the last of them is 0, which Python leaves out of its key.
        """
        if not any(words[12:]):
            raise ValueError("Python and numpy seed a generator in different ways where the last word is 0")
        self._twister.seed(int.from_bytes(words, "little"))

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        return low + (high - low) * self._twister.random()

    def randint(self, low: int, high: int) -> int:
        most, bits = high - low - 1, self._twister.getrandbits
        mask = (1 << most.bit_length()) - 1
        while (drawn := bits(32) & mask) > most:
            pass
        return low + drawn

    def bytes(self, length: int) -> bytes:
        """Whole words only: a part of one would take all of it."""
        assert length % 4 == 0
        return self._twister.getrandbits(8 * length).to_bytes(length, "little")


def numbers_of(words: bytes, like_numpy: LikeNumpy) -> Numbers:
    """Return the numbers that numpy draws after having been seeded with 16 bytes; `like_numpy` is used if it can be."""
    try:
        like_numpy.seed(words)
    except ValueError:
        return np.random.RandomState(np.frombuffer(words, dtype="<u4"))
    return like_numpy
