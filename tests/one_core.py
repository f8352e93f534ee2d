"""`train.main` on one of the machine's cores."""

import os
from collections.abc import Sequence

import train.main


def main(argv: Sequence[str]) -> int:
    """Run the command."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    return train.main.main(argv)
