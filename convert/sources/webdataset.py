"""WebDataset tars, with a label beside each image, read in place without unpacking them.

    imagenet1k-train-0000.tar        in it n01440764_10026.jpg, n01440764_10026.cls, n01440764_10026.json
    imagenet1k-validation-00.tar
    classnames.txt                   optional: a readable name for each label, one a line

The tars of a split may also lie in a folder of its name, as train/00000.tar.
"""

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise
from typing import ClassVar

from convert.sources.base import (
    DEFAULT_SPLITS,
    Listing,
    Sample,
    SourceError,
    all_but,
    counted,
    each,
    first_few,
    glimpse,
    in_order,
    indexes_of,
    is_hidden,
    labelled_splits,
    names_of,
    reading,
    size_of,
)
from convert.sources.class_names import WNID, classes_of_numbers, warn_of_numbered_names
from convert.sources.webdataset_tars import Row, is_webdataset_tar, rows_of
from imagestream.mds.names import printable
from imagestream.storage.protocol import Place
from imagestream.storage.reading import open_file

CLASS_NAMES = "classnames.txt"
SHOWN_MISSING = 5
MAX_CLASS_NAMES_BYTES = 16 * 1024 * 1024
_NUMBERED = re.compile(r"(?P<series>.*?)(?P<number>\d+)(?:-of-(?P<count>\d+))?\.tar")
_WNID_IN_KEY = re.compile(rf"(?P<first>{WNID.pattern})_.*|(?P<stem>.*)_(?P<last>{WNID.pattern})")


def is_webdataset(files: Place) -> bool:
    """Whether this folder holds WebDataset tars: by their names or, in a split's folder, by what lies in the first."""
    return any(_is_webdataset(files, split) for split in DEFAULT_SPLITS)


def _is_webdataset(files: Place, split: str) -> bool:
    if _tars_beside(files, split, None):
        return True
    tars = _tars_in_folder(files, split, None)
    return bool(tars) and is_webdataset_tar(files, tars[0])


def _tars_beside(files: Place, split: str, only: Collection[str] | None) -> list[str]:
    """The tars in the source itself that have the split's name in theirs, as imagenet-train-000000.tar."""
    names = [name for name in files.names() if not is_hidden(name) and (only is None or name in only)]
    for theirs in names_of(split):
        pattern = re.compile(rf"(?:.*[-_.])?{re.escape(theirs)}[-_.]?\d+(?:-of-\d+)?\.tar")
        if found := [name for name in names if pattern.fullmatch(name)]:
            return found
    return []


def _tars_in_folder(files: Place, split: str, only: Collection[str] | None) -> list[str]:
    for folder in names_of(split):
        there = [f"{folder}/{name}" for name in files.names(folder) if name.endswith(".tar") and not is_hidden(name)]
        if found := [name for name in there if only is None or name in only]:
            return found
    return []


@dataclass(frozen=True, slots=True)
class _Split:
    """The samples of a split: (tar, sample) in the order of the tars' names, and what was left out."""

    rows: list[tuple[str, Row]]
    ignored: Counter[str]

    @property
    def classes(self) -> int:
        return max(row.label for _, row in self.rows) + 1


@dataclass(slots=True)
class WebDataset:
    """WebDataset tars, local or in a bucket; where the user has named them, only those."""

    files: Place
    only: frozenset[str] | None = None
    layout: ClassVar[str] = "webdataset"
    _walked: dict[str, _Split] = field(default_factory=dict, repr=False)  # once: it reads each header and label

    def splits(self, requested: Sequence[str] | None) -> list[str]:
        with reading(self.files):
            self._refuse_absent()
            found = [split for split in requested or DEFAULT_SPLITS if self._tars(split)]
            return labelled_splits(requested, found, source=self.files, seen=glimpse(self.files))

    def class_names(self, splits: Sequence[str]) -> list[str]:
        with reading(self.files):
            by_label, guessed = self._classes_by_label(splits[0])
            if guessed:
                warn_of_numbered_names(by_label, self.files)
            return sorted(by_label)

    def listing(self, split: str, classes: Sequence[str]) -> Listing:
        with reading(self.files):
            walked = self._walk(split)
            by_label, _ = self._classes_by_label(split)
            index_of = indexes_of(classes, by_label, where=f"{split} of {self.files}")
        named = []
        for tar, row in walked.rows:
            if row.label >= len(by_label):
                raise SourceError(
                    f"{self.files}/{tar}: {printable(row.path)} has the label {row.label}; it must be 0 to "
                    f"{len(by_label) - 1}, as there are {counted(len(by_label), 'class', 'classes')}"
                )
            wnid = by_label[row.label]
            named.append((f"{split}/{wnid}/{_file_name(row.path, wnid)}", wnid, tar, row))
        taken = Counter(key for key, *_ in named)
        samples = [
            Sample(
                # Some datasets number their files anew in each tar: then the tar tells them apart.
                key if taken[key] == 1 else f"{split}/{wnid}/{tar.removesuffix('.tar')}/{row.path}",
                index_of[wnid],
                row.size_bytes,
                file=tar,
                offset_bytes=row.offset_bytes,
            )
            for key, wnid, tar, row in named
        ]
        return in_order(split, samples, walked.ignored)

    def left_out(self, splits: Sequence[str]) -> list[str]:
        with reading(self.files):
            if self.only is not None:
                return sorted(self.only - {tar for split in splits for tar in self._tars(split)})
            used = {tar.partition("/")[0] for split in splits for tar in self._tars(split)}
            return all_but(self.files, used | {CLASS_NAMES})

    def readable_names(self) -> dict[str, str]:
        with reading(self.files):
            names = self._names()
            split = next((split for split in DEFAULT_SPLITS if self._tars(split)), None)
            if not names or not split:
                return {}
            return dict(zip(self._classes_by_label(split)[0], names, strict=True))

    def _tars(self, split: str) -> list[str]:
        return _tars_beside(self.files, split, self.only) or _tars_in_folder(self.files, split, self.only)

    def _refuse_absent(self) -> None:
        """Raise SourceError where a tar that the user has named is not there."""
        folders = {name.rpartition("/")[0] for name in self.only or ()}
        there = {f"{folder}/{name}" if folder else name for folder in folders for name in self.files.names(folder)}
        if absent := sorted((self.only or frozenset()) - there):
            raise SourceError(
                f"{self.files} lacks {counted(len(absent), 'tar')} that --source names: {first_few(absent)}"
            )

    def _walk(self, split: str) -> _Split:
        if split not in self._walked:
            tars = self._tars(split)
            self._refuse_missing(split, tars)
            walked = _Split([], Counter(_other_files(self.files, tars)))
            found = each(self._in_tar, tars, threads=self.files.concurrency, unit="tars", what=split)
            for tar, (rows, ignored) in zip(tars, found, strict=True):
                walked.rows.extend((tar, row) for row in rows)
                walked.ignored.update(ignored)
            if not walked.rows:
                raise SourceError(f"{split} of {self.files}: {counted(len(tars), 'tar')} without one image")
            self._walked[split] = walked
        return self._walked[split]

    def _in_tar(self, tar: str) -> tuple[list[Row], Counter[str]]:
        ignored: Counter[str] = Counter()
        size_bytes = size_of(self.files, tar)
        with open_file(self.files, tar, most_of_it=True) as file:
            return rows_of(file, where=f"{self.files}/{tar}", size_bytes=size_bytes, ignored=ignored), ignored

    def _refuse_missing(self, split: str, tars: Sequence[str]) -> None:
        """Raise SourceError for missing tars, as after a download that broke off, or for those of two datasets."""
        numbers: dict[str, list[int]] = {}
        counts: dict[str, int] = {}
        for tar in tars:
            if match := _NUMBERED.fullmatch(tar):
                numbers.setdefault(match["series"], []).append(int(match["number"]))
                counts[match["series"]] = int(match["count"] or 0)
        if len(numbers) > 1:
            raise SourceError(
                f"{self.files} holds several series of tars of {split}: "
                f"{first_few([f'{name}*.tar' for name in numbers])}. Give each a folder of its own"
            )
        for series, there in numbers.items():
            ends = [-1, counts[series]] if len(there) < counts[series] else []
            gaps = (number for one, other in pairwise(sorted([*there, *ends])) for number in range(one + 1, other))
            if missing := [str(number) for number in islice(gaps, SHOWN_MISSING)]:
                raise SourceError(
                    f"{self.files}: tars of {split} are missing beside {series}*.tar, such as number "
                    f"{', '.join(missing)}. Fetch them"
                )

    def _names(self) -> list[str]:
        """The readable names of the labels; [] where there is no list of them."""
        if self.files.stat(CLASS_NAMES) is None:
            return []
        size_bytes = size_of(self.files, CLASS_NAMES)
        where = f"{self.files}/{CLASS_NAMES}"
        if size_bytes > MAX_CLASS_NAMES_BYTES:
            raise SourceError(
                f"{where} has {size_bytes:,} bytes; a list of class names has {MAX_CLASS_NAMES_BYTES:,} at most"
            )
        try:
            return self.files.read(CLASS_NAMES).decode("utf-8-sig").rstrip().splitlines()
        except UnicodeDecodeError as error:
            raise SourceError(f"{where} is not text in UTF-8 ({error}); save it as UTF-8") from None

    def _classes_by_label(self, split: str) -> tuple[list[str], bool]:
        """The class of each label, and whether it is a guess. train has them all, so it is asked first."""
        walked = self._walk("train" if self._tars("train") else split)
        names = self._names()
        if names and len(names) < walked.classes:
            raise SourceError(
                f"{self.files}/{CLASS_NAMES} names {counted(len(names), 'class', 'classes')}, and the largest label is "
                f"{walked.classes - 1}; it must have a line for each label, the first for 0"
            )
        return classes_of_numbers(len(names) or walked.classes, self._wnids_in_keys(walked), names)

    def _wnids_in_keys(self, walked: _Split) -> dict[int, str]:
        """Label -> wnid, as far as keys tell; {} where a label has several, as that of a group of classes has."""
        wnids_of: dict[int, set[str]] = {}
        first_of: dict[str, tuple[str, Row]] = {}
        for tar, row in walked.rows:
            match = _WNID_IN_KEY.fullmatch(row.key.rpartition("/")[2])
            if not match:
                continue
            wnid = match["first"] or match["last"]
            wnids_of.setdefault(row.label, set()).add(wnid)
            other_tar, other = first_of.setdefault(wnid, (tar, row))
            if other.label != row.label:
                raise SourceError(
                    f"{self.files}/{tar}: {printable(row.path)} has the label {row.label}, and {wnid} has "
                    f"{other.label} by {printable(other.path)} in {other_tar}. Correct the one that is wrong"
                )
        if any(len(wnids) > 1 for wnids in wnids_of.values()):
            return {}
        return {label: wnid for label, (wnid,) in wnids_of.items()}


def _other_files(files: Place, tars: Sequence[str]) -> dict[str, int]:
    """What lies beside the tars in the folder of a split."""
    folder = tars[0].rpartition("/")[0] if tars else ""
    others = len(all_but(files, {tar.rpartition("/")[2] for tar in tars}, f"{folder}/")) if folder else 0
    return {"file that is no tar": others} if others else {}


def _file_name(path: str, wnid: str) -> str:
    """The image's own file name: `n01440764_10026.JPEG` of `n01440764_10026_n01440764.JPEG`."""
    stem, dot, extension = path.rpartition("/")[2].rpartition(".")
    return stem.removesuffix(f"_{wnid}") + dot + extension
