"""What the numbers mean that parquet files, WebDataset tars and shards give as labels."""

import re
from collections.abc import Mapping, Sequence

from convert.imagenet_classes import WNIDS, readable_name
from convert.sources.base import SourceError, logger

WNID = re.compile(r"n\d{8}")
# Editions of the readable names differ in a few; names in another order match almost nowhere.
NAMES_THAT_MUST_MATCH_FRACTION = 0.9
MAX_UNNAMED_CLASSES = 100_000  # ImageNet-21k has 21,841; a damaged label may be of any size


def is_wnid(name: str) -> bool:
    return WNID.fullmatch(name) is not None


def numbered_names(count: int) -> list[str]:
    """`class0000`, ...: the classes of a source that names none. Of 1,000 it is assumed that they are ImageNet's.

    Raises:
        SourceError: there would be more than MAX_UNNAMED_CLASSES.
    """
    if count > MAX_UNNAMED_CLASSES:
        raise SourceError(
            f"the source names no classes, and its largest label is {count - 1:,}; without names the "
            f"largest allowed is {MAX_UNNAMED_CLASSES - 1:,}. Is the file damaged?"
        )
    if count == len(WNIDS):
        return list(WNIDS)
    return _numbered(count)


def _numbered(count: int) -> list[str]:
    digits = max(4, len(str(count - 1)))  # so that sorting keeps the order of the labels
    return [f"class{index:0{digits}}" for index in range(count)]


def classes_of_numbers(count: int, seen: Mapping[int, str], names: Sequence[str]) -> tuple[list[str], bool]:
    """The classes of labels that are mere numbers, in the order of the labels, and whether they are a guess.

    Args:
        count: of the classes.
        seen: label -> wnid, as far as file names tell.
        names: readable names of the labels; []: the source has none.
    """
    if len(seen) == count:
        return wnids_of([""] * count, seen), False
    if names and _are_imagenets(names):
        return list(WNIDS), False
    guess = numbered_names(count)
    if guess == list(WNIDS) and not names and all(WNIDS[label] == wnid for label, wnid in seen.items()):
        return guess, True
    return _numbered(count), not names


def warn_of_numbered_names(names: Sequence[str], source: object) -> None:
    """Say once that the classes' names are a guess or mere numbers."""
    if list(names) == list(WNIDS):
        logger.warning("warning: %s names no classes; its 1,000 labels are taken for ImageNet's", source)
    else:
        logger.warning("warning: %s names no classes; they are called %s, ...", source, names[0] if names else "")


def wnids_of(names: Sequence[str], seen: Mapping[int, str]) -> list[str]:
    """The class of each label, as well as it is known: its wnid, else its name.

    Args:
        names: what the source calls the labels.
        seen: label -> wnid, as far as file names tell.

    Raises:
        SourceError: two labels would be the same class.
    """
    if all(map(is_wnid, names)):
        classes = list(names)
    elif len(seen) == len(names):
        classes = [seen[label] for label in range(len(names))]
    elif _are_imagenets(names):
        classes = list(WNIDS)
    else:
        classes = [name.replace("/", "_") for name in names]  # a class is a folder in the samples' keys
    twice = sorted({name for name in classes if classes.count(name) > 1}) if len(set(classes)) < len(classes) else []
    if twice:
        raise SourceError(f"two labels have the same class name: {', '.join(twice[:5])}; they must differ")
    return classes


def _are_imagenets(names: Sequence[str]) -> bool:
    """Whether these are the readable names of ImageNet's 1,000 classes in the order of their wnids."""
    if len(names) != len(WNIDS):
        return False
    same = sum(_first(name) == _first(readable_name(wnid) or "") for name, wnid in zip(names, WNIDS, strict=True))
    return same >= NAMES_THAT_MUST_MATCH_FRACTION * len(WNIDS)


def _first(name: str) -> str:
    """The first of the synonyms; underscores stand for blanks in some editions."""
    return name.partition(",")[0].replace("_", " ").strip().casefold()
