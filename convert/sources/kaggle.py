"""Kaggle's ILSVRC: `ILSVRC/Data/CLS-LOC/{train,val}`, `LOC_synset_mapping.txt` and `LOC_val_solution.csv`."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from convert.sources.base import DEFAULT_SPLITS, Listing, SourceError, all_but, glimpse, labelled_splits
from convert.sources.folders import class_folders, flat_listing, lines_of
from convert.sources.image_folder import ImageFolder
from imagestream.storage.local import LocalPlace
from imagestream.storage.protocol import Place

IMAGES = ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC")  # the second where --source is the folder ILSVRC itself
SYNSETS = "LOC_synset_mapping.txt"
VAL_LABELS = "LOC_val_solution.csv"


def is_kaggle(files: Place) -> bool:
    """Whether this folder holds Kaggle's layout."""
    return any(files.names(images) for images in IMAGES)


@dataclass(frozen=True, slots=True)
class Kaggle:
    """The competition's archive, unpacked. train lies in class folders, val is flat, test has no labels."""

    root: Path
    layout: ClassVar[str] = "kaggle"

    @property
    def files(self) -> LocalPlace:
        return LocalPlace(self._images)

    def splits(self, requested: Sequence[str] | None) -> list[str]:
        found = [split for split in DEFAULT_SPLITS if (self._images / split).is_dir()]
        return labelled_splits(requested, found, source=self._images, seen=glimpse(self.files))

    def class_names(self, splits: Sequence[str]) -> list[str]:
        if (self._images / "train").is_dir():
            return class_folders(self._images / "train")
        return sorted(self._synsets(self._beside(SYNSETS, "the classes")))

    def listing(self, split: str, classes: Sequence[str]) -> Listing:
        if split == "train" or _has_folders(self._images / split):  # val may have been sorted since
            return ImageFolder(self._images).listing(split, classes)
        labels = self._beside(VAL_LABELS, f"the labels of {split}")
        return flat_listing(self._images, split, split=split, classes=classes, wnid_of=_solution(labels), labels=labels)

    def left_out(self, splits: Sequence[str]) -> list[str]:
        return all_but(self.files, splits)

    def readable_names(self) -> dict[str, str]:
        path = self._find(SYNSETS)
        return self._synsets(path) if path else {}

    @property
    def _images(self) -> Path:
        return next((self.root / images for images in IMAGES if (self.root / images).is_dir()), self.root / IMAGES[0])

    def _find(self, name: str) -> Path | None:
        return next((path for path in (self.root / name, self.root.parent / name) if path.is_file()), None)

    def _beside(self, name: str, what: str) -> Path:
        path = self._find(name)
        if path is None:
            raise SourceError(
                f"{what} are in {name}, which is not in {self.root} (it holds {glimpse(LocalPlace(self.root))}). "
                "Download it from the competition's page, imagenet-object-localization-challenge, and put it there; "
                "--splits train needs no such file."
            )
        return path

    @staticmethod
    def _synsets(path: Path) -> dict[str, str]:
        """wnid -> name, out of lines such as `n01440764 tench, Tinca tinca`."""
        pairs = (line.strip().partition(" ") for line in lines_of(path) if line.strip())
        return {wnid: name.strip() for wnid, _, name in pairs}


def _solution(path: Path) -> dict[str, str]:
    """Image id -> wnid, out of rows such as `ILSVRC2012_val_00048981,n03995372 85 1 499 272`.

    An image has one class; a prediction string with more boxes repeats it.
    """
    wnid_of: dict[str, str] = {}
    rows = csv.DictReader(lines_of(path))
    if rows.fieldnames != ["ImageId", "PredictionString"]:
        raise SourceError(f"{path}: its header is {rows.fieldnames}, not ImageId,PredictionString")
    for row in rows:
        wnid = (row["PredictionString"] or "").split(" ")[0]
        if not wnid:
            raise SourceError(f"{path}:{rows.line_num}: no class for {row['ImageId']!r}")
        wnid_of[row["ImageId"]] = wnid
    return wnid_of


def _has_folders(folder: Path) -> bool:
    return any(name.endswith("/") and not name.startswith(".") for name in LocalPlace(folder).names())
