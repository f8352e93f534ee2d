"""Hugging Face's parquet shards: `data/train-00000-of-00294.parquet`, with a column of images and one of labels.

An image in a compressed parquet file cannot be read by itself, so each file's images are unpacked, once, into a
local folder, the spool, and read from there; they take as much room as the images.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
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
    logger,
    reading,
)
from convert.sources.class_names import WNID, is_wnid, numbered_names, warn_of_numbered_names, wnids_of
from convert.sources.parquet_images import (
    Unpacked,
    class_names,
    images_path,
    labels_and_paths,
    open_parquet,
    unpack,
)
from imagestream.mds.files_table import FILES_NAME
from imagestream.storage.local import LocalPlace
from imagestream.storage.protocol import Place
from imagestream.storage.reading import open_file

FOLDERS = ("", "data/")
SPLIT_NAMES = {"training": "train", "validation": "val", "valid": "val"}  # theirs -> ours
_FILE = re.compile(r"(?P<split>\w+?)(?:-(?P<index>\d{5})-of-(?P<count>\d{5})(?:-\w+)?)?\.parquet")
_PART = re.compile(r"(\d{4,})\.parquet")
_SPLIT_FOLDERS = ("train", "training", "validation", "valid", "val", "test")
FOLDERS_LOOKED_INTO = 20
_LABELS_IN_PATH = re.compile(rf"(?P<stem>.*)_(?P<wnid>{WNID.pattern})")


def is_parquet(files: Place) -> bool:
    """Whether this folder holds parquet files of images, by their names."""
    return bool(_configurations(files))


def _configurations(files: Place) -> dict[str, dict[str, list[str]]]:
    """Folder -> split -> its parquet files: of the source and `data/`, else of each folder, as `plain_text/`."""
    for folder in FOLDERS:
        if found := _splits_in(files, folder):
            return {folder: found}
    folders = [name for name in files.names() if name.endswith("/") and not is_hidden(name)]
    if len(folders) > FOLDERS_LOOKED_INTO:
        return {}
    return {folder: found for folder in folders if (found := _splits_in(files, folder))}


def _splits_in(files: Place, folder: str) -> dict[str, list[str]]:
    """Split -> its files, `<split>-00000-of-00002.parquet` or `<split>/0000.parquet`, as Hugging Face converts them."""
    found: dict[str, list[str]] = {}
    for name in files.names(folder):
        if name == FILES_NAME:  # of a dataset of ours
            continue
        match = _FILE.fullmatch(name)
        if match and not match["split"].isdecimal():
            found.setdefault(SPLIT_NAMES.get(match["split"], match["split"]), []).append(folder + name)
        elif name.removesuffix("/") in _SPLIT_FOLDERS and name.endswith("/"):
            split = SPLIT_NAMES.get(name.removesuffix("/"), name.removesuffix("/"))
            parts = [folder + name + part for part in files.names(folder + name) if _PART.fullmatch(part)]
            if parts:
                found.setdefault(split, []).extend(parts)
    return found


@dataclass(frozen=True, slots=True)
class Parquet:
    """Parquet files, local or in a bucket, unpacked into `spool`, which exists."""

    source: Place
    spool: Path
    layout: ClassVar[str] = "parquet"

    @property
    def files(self) -> LocalPlace:
        return LocalPlace(self.spool)

    def splits(self, requested: Sequence[str] | None) -> list[str]:
        with reading(self.source):
            found = [split for split in requested or DEFAULT_SPLITS if self._names(split)]
            if "test" in (requested or ()) and not self._configuration()[1].get("val"):
                found = [split for split in found if split != "val"]  # it is wanted under its own name
            return labelled_splits(requested, found, source=self.source, seen=glimpse(self.source, self._folder()))

    def class_names(self, splits: Sequence[str]) -> list[str]:
        with reading(self.source):
            by_label = self._classes_by_label(splits[0])
            if by_label == numbered_names(len(by_label)) and not is_wnid(by_label[0]):
                warn_of_numbered_names(by_label, self.source)
            return sorted(by_label)

    def listing(self, split: str, classes: Sequence[str]) -> Listing:
        with reading(self.source):
            names = self._whole_split(split)
            if split == "val" and not self._configuration()[1].get("val"):
                logger.info("val: read from the files of test")
            by_label = self._classes_by_label(split)
            index_of = indexes_of(classes, by_label, where=f"{self.source}: {split}")
            parts = each(
                lambda name: unpack(self.source, name, self.spool),
                names,
                threads=1,
                unit="files",
                what=f"unpacking {split}",
            )
            declared = self._declared(names[0])
            rows = [row for part in parts for row in self._rows(part, split, by_label, declared)]
        if not rows:
            raise SourceError(f"{self.source}: the parquet files of {split} hold no rows")
        taken = Counter(row.key for row in rows)
        samples = [
            Sample(
                # Some datasets number their files anew in each parquet file: then the row tells them apart.
                row.key if taken[row.key] == 1 else row.unique_key,
                index_of[row.wnid],
                row.size_bytes,
                file=row.file,
                offset_bytes=row.offset_bytes,
            )
            for row in rows
        ]
        return in_order(split, samples, {})

    def left_out(self, splits: Sequence[str]) -> list[str]:
        with reading(self.source):
            folder = self._folder()
            files = (name.removeprefix(folder) for split in splits for name in self._names(split))
            used = {name.partition("/")[0] for name in files}
            beside = all_but(self.source, {folder.rstrip("/")}) if folder else []
            return beside + all_but(self.source, used, folder)

    def readable_names(self) -> dict[str, str]:
        with reading(self.source):
            split = next((split for split in DEFAULT_SPLITS if self._names(split)), None)
            declared = self._declared(self._names(split)[0]) if split else None
            if not split or not declared:
                return {}
            pairs = zip(self._classes_by_label(split), declared, strict=True)
            return {wnid: name for wnid, name in pairs if wnid != name}

    def _configuration(self) -> tuple[str, dict[str, list[str]]]:
        """The folder of the parquet files, and split -> its files, in order."""
        found = _configurations(self.source)
        if len(found) > 1:
            raise SourceError(
                f"--source {self.source} holds several configurations of a dataset: {first_few(list(found))}. "
                "Give the folder of one."
            )
        return next(iter(found.items()), ("", {}))

    def _folder(self) -> str:
        return self._configuration()[0]

    def _names(self, split: str) -> list[str]:
        """The parquet files of a split, in order. Without val, as CIFAR is, test takes its place."""
        found = self._configuration()[1]
        return found.get(split) or (found.get("test", []) if split == "val" else [])

    def _whole_split(self, split: str) -> list[str]:
        """The files of a split; SourceError where some are missing, as after a download that broke off."""
        names = self._names(split)
        parts = [_FILE.fullmatch(name.rpartition("/")[2]) for name in names]
        counts = {int(part["count"]) for part in parts if part and part["count"]}
        there = sorted(int(part["index"]) for part in parts if part and part["index"])
        if not counts:
            numbers = [int(part[1]) for name in names if (part := _PART.fullmatch(name.rpartition("/")[2]))]
            if numbers != list(range(len(numbers))):
                raise SourceError(
                    f"{self.source}: the parquet files of {split} are numbered {first_few(list(map(str, numbers)))}; "
                    "some are missing. Fetch them."
                )
            return names
        count = max(counts)
        if len(counts) > 1 or there != list(range(count)):
            missing = [f"{split}-{index:05}-of-{count:05}" for index in sorted(set(range(count)) - set(there))]
            what = f"missing: {first_few(missing)}" if missing else "some belong to another edition of the dataset"
            raise SourceError(
                f"{self.source}/{self._folder()} holds {len(names):,} parquet files of {split} where there should be "
                f"{count:,}; {what}. Fetch the missing ones, or remove those of the other edition."
            )
        return names

    def _declared(self, name: str) -> list[str] | None:
        with open_file(self.source, name) as file:
            return class_names(open_parquet(file, f"{self.source}/{name}"))

    def _classes_by_label(self, split: str) -> list[str]:
        """The class of each label. train has them all, so it is asked first."""
        names = self._names("train") or self._names(split)
        declared = self._declared(names[0])
        if declared and all(map(is_wnid, declared)):
            return wnids_of(declared, {})
        seen, largest = self._wnids_in_paths(names, count=len(declared) if declared else None)
        if declared is None and len(seen) == largest + 1:
            return wnids_of([""] * len(seen), seen)
        return wnids_of(declared if declared is not None else numbered_names(largest + 1), seen)

    def _wnids_in_paths(self, names: Iterable[str], *, count: int | None) -> tuple[dict[int, str], int]:
        """Label -> wnid as paths end in them, and the largest label; stops once `count` labels are known.

        Where `count` is given, it also stops at the first path that ends in none.
        """
        seen: dict[int, str] = {}
        largest = -1
        for name in names:
            with open_file(self.source, name) as file:
                for label, path in labels_and_paths(open_parquet(file, name), f"{self.source}/{name}"):
                    if label is None or label < 0:
                        continue  # the listing says where
                    largest = max(largest, label)
                    match = _LABELS_IN_PATH.fullmatch((path or "").rpartition(".")[0])
                    if match and seen.setdefault(label, match["wnid"]) != match["wnid"]:
                        raise SourceError(
                            f"{self.source}/{name}: label {label} is {match['wnid']} by the path {path}, "
                            f"and {seen[label]} by an earlier one"
                        )
                    if count is not None and (not match or len(seen) == count):
                        return seen, largest
        return seen, largest

    def _rows(
        self, part: Unpacked, split: str, by_label: Sequence[str], declared: Sequence[str] | None
    ) -> "Iterable[_Row]":
        where = f"{self.source}/{part.name}"
        if part.class_names != declared:
            raise SourceError(f"{where} gives its labels other names than the first file of {split} does")
        stem = part.name.rpartition("/")[2].removesuffix(".parquet")
        at = 0
        for row, (label, path, size_bytes) in enumerate(zip(part.labels, part.paths, part.sizes_bytes, strict=True)):
            if not 0 <= label < len(by_label):
                hint = " (the labels of ImageNet's test images are not public)" if label == -1 else ""
                raise SourceError(
                    f"{where}: row {row} has the label {label}; it must be 0 to {len(by_label) - 1}, "
                    f"as there are {counted(len(by_label), 'class', 'classes')}{hint}"
                )
            wnid = by_label[label]
            by_row = f"{stem}-{row:06}.jpg"
            file = images_path(self.spool, self.source, part.name).name
            folder = f"{split}/{wnid}"
            yield _Row(f"{folder}/{_file_name(path, wnid) or by_row}", f"{folder}/{by_row}", wnid, file, at, size_bytes)
            at += size_bytes


@dataclass(frozen=True, slots=True)
class _Row:
    key: str
    unique_key: str
    wnid: str
    file: str
    offset_bytes: int
    size_bytes: int


def _file_name(path: str | None, wnid: str) -> str:
    """The image's own file name: `n01440764_10026.JPEG` of `n01440764_10026_n01440764.JPEG`."""
    stem, dot, extension = (path or "").rpartition("/")[2].rpartition(".")
    return stem.removesuffix(f"_{wnid}") + dot + extension
