"""Class folders without a split: `<class>/<file>`, of which `--val-fraction` is for validation."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from convert.sources.base import DEFAULT_SPLITS, Listing, Sample, SourceError, in_order, indexes_of, labelled_splits
from convert.sources.folders import class_folders, outside_of_classes, walk
from convert.sources.share import Share, warn_of_lonely
from imagestream.storage.local import LocalPlace


@dataclass(slots=True)
class ClassFolders:
    """`<root>/<class>/**/<file>`; the two splits together have each image once."""

    root: Path
    share: Share
    layout: ClassVar[str] = "classes"
    _found: list[tuple[str, str, int]] = field(default_factory=list, repr=False)  # class, path below it, size
    _ignored: Counter[str] = field(default_factory=Counter, repr=False)

    @property
    def files(self) -> LocalPlace:
        return LocalPlace(self.root)

    def splits(self, requested: Sequence[str] | None) -> list[str]:
        seen = f"class folders, of which --val-fraction {self.share.fraction:g} makes train and val"
        return labelled_splits(requested, DEFAULT_SPLITS, source=self.root, seen=seen)

    def class_names(self, splits: Sequence[str]) -> list[str]:
        return class_folders(self.root)

    def listing(self, split: str, classes: Sequence[str]) -> Listing:
        if not self._found:
            self._walk()
        index_of = indexes_of(classes, {name for name, _, _ in self._found}, where=self.root)
        samples = [
            Sample(f"{split}/{name}/{path}", index_of[name], size_bytes, file=f"{name}/{path}")
            for name, path, size_bytes in self._found
            if self.share.split_of(name, path) == split
        ]
        if not samples:
            raise SourceError(
                f"--val-fraction {self.share.fraction:g} leaves no image for {split} of the {len(self._found):,} in "
                f"{self.root}; give another fraction"
            )
        return in_order(split, samples, self._ignored if split == "train" else {})

    def left_out(self, splits: Sequence[str]) -> list[str]:
        return []

    def readable_names(self) -> dict[str, str]:
        return {}

    def _walk(self) -> None:
        outside_of_classes(self.root, self._ignored)
        for name in class_folders(self.root):
            self._found += ((name, path, size) for path, size in walk(self.root / name, "", self._ignored))
        if not self._found:
            raise SourceError(f"{self.root} has class folders but no files in them")
        warn_of_lonely((name, self.share.split_of(name, path)) for name, path, _ in self._found)
