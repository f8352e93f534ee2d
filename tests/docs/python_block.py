"""A Python block of the documentation as a program: `main([file])` runs it."""

import runpy
from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Run a file as `python FILE` would."""
    runpy.run_path(argv[0], run_name="__main__")
    return 0
