"""torchvision's ImageFolder: `<source>/<split>/<class>/<file>`."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from convert.files import LocalFiles
from convert.sources.base import (
    DEFAULT_SPLITS,
    Listing,
    Sample,
    SourceError,
    counted,
    first_few,
    glimpse,
    in_order,
    indexes_of,
)
from convert.sources.folders import class_folders, outside_of_classes, walk


@dataclass(frozen=True, slots=True)
class ImageFolder:
    """`<root>/<split>/<class>/**/<file>`, with torchvision's class indexes and sample order.

    Every file in a class folder is a candidate: an image is known by its content, not by its extension.
    Names that start with a dot are ignored, and so are links to folders inside a class (they may form loops).
    """

    root: Path
    layout: ClassVar[str] = "folder"

    @property
    def files(self) -> LocalFiles:
        return LocalFiles(self.root)

    def splits(self, requested: Sequence[str] | None) -> list[str]:
        if not self.root.is_dir():
            problem = "is not a folder" if self.root.exists() else "does not exist"
            raise SourceError(f"--source {self.root} {problem}; give the folder that holds train/ and val/")
        found = [split for split in requested or DEFAULT_SPLITS if (self.root / split).is_dir()]
        missing = [split for split in requested or () if split not in found]
        if missing or not found:
            raise SourceError(
                f"--source {self.root} has no {first_few(missing or DEFAULT_SPLITS)}; it holds "
                f"{glimpse(self.files)}. Give the folder above the splits, or name the splits with --splits."
            )
        return found

    def class_names(self, splits: Sequence[str]) -> list[str]:
        # Even where val alone is converted: the labels have to mean the same whenever train is converted.
        return class_folders(self.root / ("train" if (self.root / "train").is_dir() else splits[0]))

    def listing(self, split: str, classes: Sequence[str]) -> Listing:
        folder = self.root / split
        own = class_folders(folder)
        index_of = indexes_of(classes, own, where=folder)
        ignored: Counter[str] = Counter()
        outside_of_classes(folder, ignored)
        samples = []
        for name in own:
            for path, size_bytes in walk(folder / name, "", ignored):
                key = f"{split}/{name}/{path}"
                samples.append(Sample(key, index_of[name], size_bytes, file=key))
        if not samples:
            raise SourceError(f"{folder} has {counted(len(own), 'class folder')} but no files in them")
        return in_order(split, samples, ignored)

    def readable_names(self) -> dict[str, str]:
        return {}
