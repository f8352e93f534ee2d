"""A Python block of the documentation, or a script, as a program: `main([file, *arguments])` runs it."""

import runpy
import sys
from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Run a file as `python FILE ARGUMENTS` would."""
    sys.argv = list(argv)
    runpy.run_path(argv[0], run_name="__main__")
    return 0
