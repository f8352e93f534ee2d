"""What an audit finds: one line each, gathered by kind, so that a thousand alike do not hide the one that differs."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from imagestream.mds.names import printable

SHOWN_PER_KIND = 20  # lines on the terminal
KEPT_PER_KIND = 200  # in memory, and in the report; the rest is counted


class Kind(StrEnum):
    """What findings may have in common; the text follows a number."""

    INDEX = "faults of index.json"
    MANIFEST = "disagreements with manifest.json"
    FILES = "disagreements with files.parquet"
    SPLITS = "splits that do not belong, or are missing"
    LEFTOVER = "files that do not belong"
    UNFINISHED = "traces of an unfinished conversion"
    UNKNOWN_HASH = "hashes that could not be compared"
    UNREADABLE = "shards that cannot be read"
    MISSING = "missing shards"
    SIZE = "shards of the wrong size"
    HASH = "shards that do not match their hashes"
    FORMAT = "damaged shards or records"
    IMAGE = "images that do not decode"
    UNMENDED = "images that are not plain JPEGs"
    LABEL = "labels out of range"
    COUNTS = "classes with the wrong count"
    ID = "wrong ids"
    NOT_COMPARED = "comparisons left out"
    TWO_LABELS = "images stored again with another label"
    TWO_SPLITS = "images that are in two splits"
    TWICE = "images stored twice"


class RecordAt(NamedTuple):
    """Where a record is: the split, the shard's place in index.json, and the record's place in the shard."""

    split: str
    shard: int
    record: int


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault. A warning is worth knowing, but does not make the audit fail."""

    kind: Kind
    where: str  # a path below the dataset
    what: str
    is_warning: bool = False
    images: tuple[RecordAt, ...] = ()  # the images concerned, for the report

    @property
    def line(self) -> str:
        """For the terminal; a name in it, whatever it is, makes no second line."""
        return printable(f"{'warning: ' if self.is_warning else ''}{self.where}: {self.what}")


class Findings:
    """All findings of an audit: the first of each kind, and how many there are."""

    def __init__(self) -> None:
        self._kept: dict[tuple[bool, Kind], list[Finding]] = {}
        self._counts: Counter[tuple[bool, Kind]] = Counter()

    def add(self, findings: Iterable[Finding]) -> None:
        for finding in findings:
            group = (finding.is_warning, finding.kind)
            self._counts[group] += 1
            kept = self._kept.setdefault(group, [])
            if len(kept) < KEPT_PER_KIND:
                kept.append(finding)

    @property
    def errors(self) -> int:
        return self._total(warnings=False)

    @property
    def warnings(self) -> int:
        return self._total(warnings=True)

    def groups(self, *, warnings: bool) -> Iterator[tuple[Kind, list[Finding], int]]:
        """Of each kind that occurred, in the order in which they did: the first findings, and how many in all."""
        for (is_warning, kind), kept in self._kept.items():
            if is_warning == warnings:
                yield kind, kept, self._counts[is_warning, kind]

    def lines(self) -> Iterator[str]:
        """What the terminal shows: errors first."""
        for warnings in (False, True):
            for kind, kept, count in self.groups(warnings=warnings):
                yield from (finding.line for finding in kept[:SHOWN_PER_KIND])
                if count > SHOWN_PER_KIND:
                    yield f"{'warning: ' if warnings else ''}... and {count - SHOWN_PER_KIND:,} more {kind}"

    def _total(self, *, warnings: bool) -> int:
        return sum(count for (is_warning, _), count in self._counts.items() if is_warning == warnings)


def path_in(split: str, name: str) -> str:
    """A file's path below the dataset; the split of a dataset that has but one may have the name ''."""
    return f"{split}/{name}" if split else name
