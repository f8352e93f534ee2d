"""What the library's settings may be. The configuration in train/ has the same limits; nothing here imports torch."""

from typing import Literal

ShuffleAlgo = Literal["py1e", "py1s", "py2s", "py1br", "naive"]
"""Streaming's."""
MAX_WORKERS = 256  # loader processes of a rank
MAX_SAMPLES = 1_000_000_000
MAX_PREFETCH_FACTOR = 1000  # batches
MAX_SECONDS = 30 * 86_400.0  # timers and sockets take no number whatever
MAX_CACHE_GB = 1_000_000


def check(name: str, value: float, low: float, high: float) -> None:
    """Raise ValueError unless a number lies within bounds."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"{name}: {value!r} must be from {low:g} to {high:g}")


def check_above_zero(name: str, value: float, high: float) -> None:
    """Raise ValueError unless a number is above 0, and within a bound."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= high:
        raise ValueError(f"{name}: {value!r} must be above 0, and at most {high:,.0f}")


def check_whole(name: str, value: int, low: int, high: int) -> None:
    """Raise ValueError unless a whole number lies within bounds."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{name}: {value!r} must be a whole number from {low:,} to {high:,}")
