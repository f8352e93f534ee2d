"""A CSV that lists images: a header, and in each row a path, a label and, if there is such a column, a split.

path,label,split
images/0001.jpg,cat,train
"""

import csv
import os
import stat
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, NamedTuple

from convert.sources.base import (
    DEFAULT_SPLITS,
    USUAL_NAMES,
    Listing,
    Sample,
    SourceError,
    counted,
    first_few,
    in_order,
    indexes_of,
    labelled_splits,
)
from convert.sources.folders import text_of
from convert.sources.share import Share, warn_of_lonely
from imagestream.mds.names import printable
from imagestream.storage.local import LocalPlace

COLUMNS = {
    "path": ("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "image_file"),
    "label": ("label", "labels", "class", "class_name", "classname", "category", "wnid", "target"),
    "split": ("split", "set", "subset"),
}
"""What a column may be called, in small letters; the first that is there counts."""
SPLITS = {theirs: ours for ours, names in USUAL_NAMES.items() for theirs in names}
DELIMITERS = (",", "\t", ";")
SHOWN_FAULTS = 50


class _Row(NamedTuple):
    line: int
    path: str  # as the list has it
    label: str
    split: str | None
    file: str  # from the root of the file system
    size_bytes: int


@dataclass(slots=True)
class CsvList:
    """The images that a list names. Their paths are below `root`, else below the list's own folder, or absolute."""

    path: Path
    root: Path
    share: Share | None
    layout: ClassVar[str] = "csv"
    _rows: list[_Row] = field(default_factory=list, repr=False)

    @property
    def files(self) -> LocalPlace:
        return LocalPlace(Path("/"))

    def splits(self, requested: Sequence[str] | None) -> list[str]:
        there = {self._split(row) for row in self._read()}
        found = [split for split in requested or DEFAULT_SPLITS if split in there]
        return labelled_splits(requested, found, source=self.path, seen=f"rows of {first_few(sorted(there))}")

    def class_names(self, splits: Sequence[str]) -> list[str]:
        rows = self._read()
        return sorted({row.label for row in rows if self._split(row) == "train"} or {row.label for row in rows})

    def listing(self, split: str, classes: Sequence[str]) -> Listing:
        rows = [row for row in self._read() if self._split(row) == split]
        index_of = indexes_of(classes, {row.label for row in rows}, where=f"{split} of {self.path}")
        keys = [f"{split}/{row.label}/{row.path.rpartition('/')[2]}" for row in rows]
        taken = Counter(keys)
        samples = [
            # A file name that is there twice is told apart by its folders.
            Sample(
                key if taken[key] == 1 else f"{split}/{row.label}/{row.path.strip('/')}",
                index_of[row.label],
                row.size_bytes,
                file=row.file,
            )
            for key, row in zip(keys, rows, strict=True)
        ]
        return in_order(split, samples, {})

    def left_out(self, splits: Sequence[str]) -> list[str]:
        others = Counter(self._split(row) for row in self._read() if self._split(row) not in splits)
        return [f"the {counted(count, 'row')} of {split}" for split, count in sorted(others.items())]

    def readable_names(self) -> dict[str, str]:
        return {}

    def _split(self, row: _Row) -> str:
        if row.split is not None:
            return row.split
        return self.share.split_of(row.label, self._drawn_by(row)) if self.share else "train"

    def _drawn_by(self, row: _Row) -> str:
        """The path by which a file's split is drawn: the same however the list has it, and wherever the images lie."""
        if not os.path.isabs(row.path):
            return os.path.normpath(row.path)
        file = os.sep + row.file
        bases = (os.path.abspath(place) for place in (self.root, self.path.parent))
        inside = next((base for base in bases if file.startswith(base.rstrip(os.sep) + os.sep)), os.sep)
        return os.path.relpath(file, inside)

    def _read(self) -> list[_Row]:
        if not self._rows:
            self._rows = rows_of(self.path, self.root)
            if self.share and self._rows[0].split is not None:
                raise SourceError(f"{self.path} gives the splits itself; leave out --val-fraction")
            if self.share:
                warn_of_lonely((row.label, self._split(row)) for row in self._rows)
        return self._rows


def rows_of(path: Path, root: Path) -> list[_Row]:
    """The rows of a list, in its order.

    Raises:
        SourceError: naming every row that cannot be used.
    """
    lines = text_of(path).splitlines(keepends=True)
    header = lines[0] if lines else ""
    rows = csv.reader(lines, delimiter=max(DELIMITERS, key=header.count), strict=True)
    try:
        at = _columns(next(rows, []), path)
        found = [(rows.line_num, fields) for fields in rows if any(text.strip() for text in fields)]
    except csv.Error as error:
        raise SourceError(f"{path}:{rows.line_num} is not CSV: {error}") from None
    if not found:
        raise SourceError(f"{path} has a header and no rows")
    faults: list[str] = []
    labels: dict[str, str] = {}
    listed = [_row(line, fields, at, path, root, faults, labels) for line, fields in found]
    kept = [row for row in listed if row is not None]
    lines_by_file: dict[str, list[int]] = defaultdict(list)
    for row in kept:
        lines_by_file[row.file].append(row.line)
    for row in kept:
        if row.line == lines_by_file[row.file][-1] and len(lines_by_file[row.file]) > 1:
            faults.append(f"line {lines_by_file[row.file][0]} and line {row.line} name {printable(row.path)}")
    if faults:
        more = f"\n  ... and {len(faults) - SHOWN_FAULTS:,} more" if len(faults) > SHOWN_FAULTS else ""
        raise SourceError(
            f"{path}: {counted(len(faults), 'row')} cannot be used:\n  " + "\n  ".join(faults[:SHOWN_FAULTS]) + more
        )
    return kept


def _columns(header: Sequence[str], path: Path) -> dict[str, int]:
    """Column -> its place."""
    names = [name.strip().lower() for name in header]
    at = {}
    for column, called in COLUMNS.items():
        place = next((names.index(name) for name in called if name in names), None)
        if place is not None:
            at[column] = place
    if "path" not in at or "label" not in at:
        raise SourceError(
            f"{path}: its first line is {', '.join(map(printable, header)) or 'empty'}; it must name the columns: one "
            f"of {', '.join(COLUMNS['path'])} and one of {', '.join(COLUMNS['label'])}, and may name one of "
            f"{', '.join(COLUMNS['split'])}"
        )
    return at


def _row(
    line: int,
    fields: Sequence[str],
    at: dict[str, int],
    path: Path,
    root: Path,
    faults: list[str],
    labels: dict[str, str],
) -> _Row | None:
    """A row, or None and one more fault.

    Args:
        labels: class -> label as the list has it; more are added.
    """
    if len(fields) <= max(at.values()):
        faults.append(f"line {line} has {counted(len(fields), 'field')}")
        return None
    given = {column: fields[place].strip() for column, place in at.items()}
    empty = [column for column, text in given.items() if not text]
    if empty:
        faults.append(f"line {line} has no {' and no '.join(empty)}")
        return None
    there = next((found for place in (root, path.parent) if (found := _file(place, given["path"]))), None)
    if there is None:
        faults.append(f"line {line}: {printable(given['path'])} is no file below {root} or {path.parent}")
        return None
    split = given.get("split")
    label = given["label"].replace("/", "_")  # a class is a folder in the samples' keys
    if (other := labels.setdefault(label, given["label"])) != given["label"]:
        faults.append(f"line {line}: the labels {printable(other)} and {printable(given['label'])} would be one class")
        return None
    name = given["path"].replace("\\", "/") if os.sep not in given["path"] else given["path"]
    return _Row(line, name, label, SPLITS.get(split.lower(), split) if split else None, *there)


def _file(place: Path, name: str) -> tuple[str, int] | None:
    """A file's path from the root of the file system, and its size; None where there is none."""
    for text in (name, name.replace("\\", "/")):
        path = os.path.normpath(os.path.join(os.path.abspath(place), text))
        try:
            status = os.stat(path)
        except (OSError, ValueError):
            continue
        if stat.S_ISREG(status.st_mode):
            return path.lstrip("/"), status.st_size
    return None
