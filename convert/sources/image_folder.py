"""torchvision's ImageFolder: `<source>/<split>/<class>/<file>`."""

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
    first_few,
    glimpse,
    in_order,
    indexes_of,
    is_hidden,
    logger,
    names_of,
)
from convert.sources.folders import class_folders, outside_of_classes, walk
from imagestream.storage.local import LocalPlace


@dataclass(frozen=True, slots=True)
class ImageFolder:
    """`<root>/<split>/<class>/**/<file>`, with torchvision's class indexes and sample order.

    Every file in a class folder is a candidate: an image is known by its content, not by its extension.
    Names that start with a dot are ignored, and so are links to folders inside a class (they may form loops).
    """

    root: Path
    layout: ClassVar[str] = "folder"

    @property
    def files(self) -> LocalPlace:
        return LocalPlace(self.root)

    def splits(self, requested: Sequence[str] | None) -> list[str]:
        if not self.root.is_dir():
            problem = "is not a folder" if self.root.exists() else "does not exist"
            raise SourceError(f"--source {self.root} {problem}; give the folder that holds train/ and val/")
        found = [split for split in requested or DEFAULT_SPLITS if self._folder(split)]
        if "test" in (requested or ()) and self._folder("val") == "test":
            found = [split for split in found if split != "val"]  # it is wanted under its own name
        missing = [split for split in requested or () if split not in found]
        if missing or not found:
            raise SourceError(
                f"--source {self.root} has no {first_few(missing or DEFAULT_SPLITS)}; it holds "
                f"{glimpse(self.files)}. Give the folder above the splits, or name the splits with --splits; "
                "of class folders without splits, say how much is for validation: --val-fraction 0.2."
            )
        return found

    def class_names(self, splits: Sequence[str]) -> list[str]:
        # Even where val alone is converted: the labels have to mean the same whenever train is converted.
        return class_folders(self.root / (self._folder("train") or self._folder(splits[0]) or splits[0]))

    def listing(self, split: str, classes: Sequence[str]) -> Listing:
        name_there = self._folder(split) or split
        if name_there != split:
            logger.info("%s: read from the folder %s/", split, name_there)
        folder = self.root / name_there
        own = class_folders(folder)
        index_of = indexes_of(classes, own, where=folder)
        ignored: Counter[str] = Counter()
        outside_of_classes(folder, ignored)
        samples = []
        for name in own:
            for path, size_bytes in walk(folder / name, "", ignored):
                file = f"{name_there}/{name}/{path}"
                samples.append(Sample(f"{split}/{name}/{path}", index_of[name], size_bytes, file=file))
        if not samples:
            raise SourceError(f"{folder} has {counted(len(own), 'class folder')} but no files in them")
        return in_order(split, samples, ignored)

    def left_out(self, splits: Sequence[str]) -> list[str]:
        return all_but(self.files, [self._folder(split) or split for split in splits])

    def _folder(self, split: str) -> str | None:
        """The name of a split's folder; None where there is none. Without val a test set by class takes its place."""
        there = next((name for name in names_of(split) if (self.root / name).is_dir()), None)
        return "test" if there is None and split == "val" and self._has_classes_of_train("test") else there

    def _has_classes_of_train(self, folder: str) -> bool:
        train = self._folder("train")
        own, known = (
            {name for name in LocalPlace(self.root).names(each or "") if name.endswith("/") and not is_hidden(name)}
            for each in (folder, train)
        )
        return train is not None and bool(own) and own <= known

    def readable_names(self) -> dict[str, str]:
        return {}
