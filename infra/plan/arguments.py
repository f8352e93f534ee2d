"""What the planning commands take as arguments."""

import argparse
import math


def whole_number(text: str) -> int:
    """Return an argument that must be a whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, at least 1")
    return int(text)


def positive(text: str) -> float:
    """Return an argument that must be a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number above 0")
    return value
