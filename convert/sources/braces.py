"""Names of tars as WebDataset writes them: `imagenet-train-{000000..000146}.tar`, `{train,val}/{00..09}.tar`."""

import itertools
import re
from collections.abc import Iterator

from convert.sources.base import USUAL_NAMES, SourceError

MOST_NAMES = 100_000
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_SPLIT_FOLDERS = {name for names in USUAL_NAMES.values() for name in names}


def has_braces(source: str) -> bool:
    return _BRACES.search(source) is not None


def place_and_names(source: str) -> tuple[str, list[str]]:
    """The folder that a pattern's tars lie in, above the folders of splits, and their names below it, in order.

    Raises:
        SourceError: it is no pattern of tars.
    """
    before = source[: source.index("{")]
    folder, _, _ = before.rpartition("/")
    above, slash, last = folder.rpartition("/")
    if slash and last in _SPLIT_FOLDERS:
        folder = above
    names = list(itertools.islice(expanded(source), MOST_NAMES + 1))
    if len(names) > MOST_NAMES:
        raise SourceError(f"--source {source} stands for more than {MOST_NAMES:,} names")
    if not all(name.endswith(".tar") for name in names):
        raise SourceError(f"--source {source}: a pattern is for WebDataset tars alone, as in x-train-{{00..09}}.tar")
    start = f"{folder}/" if folder else ""
    return folder or ".", sorted({name.removeprefix(start) for name in names})


def expanded(text: str) -> Iterator[str]:
    """Each text that braces stand for: `{00..09}` the numbers, as wide as the first is; `{a,b}` each of a list."""
    parts = _BRACES.split(text)  # text, inside of braces, text, ...
    choices = [_choices(part, text) if at % 2 else [part] for at, part in enumerate(parts)]
    return ("".join(chosen) for chosen in itertools.product(*choices))


def _choices(inside: str, text: str) -> list[str]:
    if match := _RANGE.fullmatch(inside):
        first, last = int(match[1]), int(match[2])
        if last < first or last - first > MOST_NAMES:
            raise SourceError(f"--source {text}: {{{inside}}} must go up, over at most {MOST_NAMES:,} numbers")
        return [f"{number:0{len(match[1])}}" for number in range(first, last + 1)]
    return inside.split(",")
