"""The 1,000 classes of ILSVRC 2012: their WordNet ids in the order of the labels, and readable names."""

from pathlib import Path


def readable_name(wnid: str) -> str | None:
    """The lemmas of a class, such as `tench, Tinca tinca`; None where it is not one of the 1,000."""
    return _NAMES.get(wnid)


def _table() -> dict[str, str]:
    text = Path(__file__).with_suffix(".tsv").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return dict(line.split("\t", 1) for line in lines[1:])


_NAMES = _table()

WNIDS = tuple(_NAMES)
"""The 1,000 in the order of their labels, which is sorted order."""
