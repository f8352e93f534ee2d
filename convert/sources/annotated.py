"""Images with a list of labels beside them, as Tiny-ImageNet ships.

    train/<wnid>/images/<file>  train/<wnid>/<wnid>_boxes.txt  val/images/<file>  val/val_annotations.txt

or a plain flat `val/<file>` with a list of `<file> <wnid>` lines; train may lie in plain class folders.
"""

from collections import Counter
from collections.abc import Sequence
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
    glimpse,
    in_order,
    indexes_of,
    labelled_splits,
    logger,
)
from convert.sources.folders import class_folders, flat_listing, lines_of, outside_of_classes, walk
from imagestream.storage.local import LocalPlace
from imagestream.storage.protocol import Place

CLASS_LIST = "wnids.txt"
READABLE = "words.txt"


def is_annotated(files: Place) -> bool:
    """Whether this folder holds such lists."""
    return any(files.stat(name) is not None for name in (CLASS_LIST, *_lists("val")))


@dataclass(frozen=True, slots=True)
class Annotated:
    """train in class folders, with or without an `images` folder in each; the other splits flat, with a list."""

    root: Path
    layout: ClassVar[str] = "annotated"

    @property
    def files(self) -> LocalPlace:
        return LocalPlace(self.root)

    def splits(self, requested: Sequence[str] | None) -> list[str]:
        wanted = requested or DEFAULT_SPLITS
        found = [
            split
            for split in wanted
            if (self.root / split).is_dir() and (split != "test" or self._list_of(split) is not None)
        ]
        return labelled_splits(requested, found, source=self.root, seen=glimpse(self.files))

    def class_names(self, splits: Sequence[str]) -> list[str]:
        if (self.root / "train").is_dir():
            return class_folders(self.root / "train")
        if (self.root / CLASS_LIST).is_file():
            return sorted({line.strip() for line in lines_of(self.root / CLASS_LIST) if line.strip()})
        return sorted(set(_labels(self._needed_list(splits[0])).values()))

    def listing(self, split: str, classes: Sequence[str]) -> Listing:
        if split == "train" or (self._list_of(split) is None and self._is_sorted(split)):
            return self._class_folders(split, classes)
        labels = self._needed_list(split)
        images = f"{split}/images" if (self.root / split / "images").is_dir() else split
        return flat_listing(
            self.root,
            images,
            split=split,
            classes=classes,
            wnid_of=_named(_labels(labels), classes, labels),
            labels=labels,
            skip=(labels.name,) if labels.parent == self.root / images else (),
        )

    def left_out(self, splits: Sequence[str]) -> list[str]:
        lists = {name.partition("/")[0] for split in splits for name in _lists(split)}
        return all_but(self.files, {*splits, *lists, CLASS_LIST, READABLE})

    def readable_names(self) -> dict[str, str]:
        path = self.root / READABLE
        if not path.is_file():
            return {}
        pairs = (line.partition("\t") for line in lines_of(path))
        return {wnid: name.strip() for wnid, _, name in pairs if name}

    def _class_folders(self, split: str, classes: Sequence[str]) -> Listing:
        folder = self.root / split
        own = class_folders(folder)
        index_of = indexes_of(classes, own, where=folder)
        ignored: Counter[str] = Counter()
        outside_of_classes(folder, ignored)
        samples = []
        for name in own:
            images = f"{split}/{name}/images" if (folder / name / "images").is_dir() else f"{split}/{name}"
            for path, size_bytes in walk(self.root / images, "", ignored):
                if path != f"{name}_boxes.txt":
                    key = f"{split}/{name}/{path}"
                    samples.append(Sample(key, index_of[name], size_bytes, file=f"{images}/{path}"))
        if not samples:
            raise SourceError(f"{folder} has {counted(len(own), 'class folder')} but no images in them")
        return in_order(split, samples, ignored)

    def _is_sorted(self, split: str) -> bool:
        """Whether somebody has sorted a flat split into class folders."""
        return any(name.endswith("/") and name != "images/" for name in self.files.names(split))

    def _list_of(self, split: str) -> Path | None:
        return next((self.root / name for name in _lists(split) if (self.root / name).is_file()), None)

    def _needed_list(self, split: str) -> Path:
        path = self._list_of(split)
        if path is None:
            raise SourceError(
                f"{self.root / split} is flat, and there is no list of its labels: none of "
                f"{', '.join(_lists(split))} is in {self.root}, which holds {glimpse(self.files)}. "
                "A list has a line `<file> <wnid>` for each image."
            )
        return path


def _lists(split: str) -> tuple[str, ...]:
    return (f"{split}/{split}_annotations.txt", f"{split}_annotations.txt", f"{split}.txt")


def _named(class_of: dict[str, str], classes: Sequence[str], path: Path) -> dict[str, str]:
    """The classes of a list that gives numbers, such as Caffe's val.txt: the n-th class, counted from 0.

    Raises:
        SourceError: they may be counted from 1, or there are not so many classes.
    """
    if not all(map(str.isdecimal, class_of.values())) or set(class_of.values()) <= set(classes):
        return class_of
    numbers = {int(number) for number in class_of.values()}
    if min(numbers) != 0 or max(numbers) >= len(classes):
        raise SourceError(
            f"{path} gives numbers from {min(numbers):,} to {max(numbers):,} for classes, and there are "
            f"{counted(len(classes), 'class', 'classes')}, such as {classes[0]}. Only numbers that count the sorted "
            "classes from 0 are understood; write the classes' names instead of numbers."
        )
    logger.warning("warning: %s gives numbers; 0 is taken for %s, the first of the sorted classes", path, classes[0])
    return {name: classes[int(number)] for name, number in class_of.items()}


def _labels(path: Path) -> dict[str, str]:
    """File name -> wnid, out of lines `<file> <wnid> ...` with tabs or blanks between; the rest is a box."""
    wnid_of: dict[str, str] = {}
    for number, line in enumerate(lines_of(path), start=1):
        fields = line.split("\t") if "\t" in line else line.split()
        if not line.strip():
            continue
        if len(fields) < 2 or not fields[1].strip():
            raise SourceError(f"{path}:{number}: {line!r} is not `<file> <wnid>`")
        name, wnid = fields[0].rpartition("/")[2], fields[1].strip()
        if wnid_of.setdefault(name, wnid) != wnid:
            raise SourceError(f"{path}:{number}: {name} is {wnid} here and {wnid_of[name]} in an earlier line")
    if not wnid_of:
        raise SourceError(f"{path} is empty; it must have a line `<file> <wnid>` for each image")
    return wnid_of
