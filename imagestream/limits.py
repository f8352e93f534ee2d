"""What the loader's settings may be, here and in train/'s configuration, which imports neither torch nor Streaming."""

from typing import Literal

ShuffleAlgo = Literal["py1e", "py1s", "py2s", "py1br", "naive"]
"""Streaming's."""
MAX_WORKERS = 256  # loader processes of a rank
MAX_SAMPLES = 1_000_000_000
MAX_PREFETCH_FACTOR = 1000  # batches
MAX_SECONDS = 30 * 86_400.0  # timers and sockets take no number whatever
MAX_CACHE_GB = 1_000_000
