"""Where the images come from: which splits, classes and samples a source holds, and each one's bytes.

One layout so far, torchvision's ImageFolder: `<source>/<split>/<class>/<file>`. Another layout (tars,
parquet, Kaggle's) is one more class with the four methods of `Source`.
"""

import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

DEFAULT_SPLITS = ("train", "val")


class SourceError(ValueError):
    """The source cannot be converted as it stands; the message says what was seen and what to do."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One candidate image: where it is, what it shows, and how large its file is."""

    key: str  # path below the source, with '/'; unique over all splits
    label: int  # position in the list of classes
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Listing:
    """The samples of one split, sorted; a sample's position in `samples` is its id."""

    split: str
    samples: tuple[Sample, ...]
    ignored: dict[str, int]  # what was left out -> how many, for a warning


class Source(Protocol):
    """A place ImageNet is read from. Instances are pickled into worker processes, so keep them small."""

    def splits(self, requested: Sequence[str] | None) -> list[str]:
        """The splits to convert: those requested or, by default, those of train and val that exist."""
        ...

    def class_names(self, splits: Sequence[str]) -> list[str]:
        """Sorted class names, which set the labels: those of train where the source has it."""
        ...

    def listing(self, split: str, classes: Sequence[str]) -> Listing:
        """Every sample of a split in a fixed order, labelled by position in `classes`."""
        ...

    def read(self, key: str) -> bytes:
        """The bytes of one sample; raises OSError where they cannot be read."""
        ...


@dataclass(frozen=True, slots=True)
class ImageFolder:
    """`<root>/<split>/<class>/**/<file>`, with torchvision's class indexes and sample order.

    Every file in a class folder is a candidate: an image is known by its content, not by its extension.
    Names that start with a dot are ignored, and so are links to folders inside a class (they may form loops).
    """

    root: Path

    def splits(self, requested: Sequence[str] | None) -> list[str]:
        if not self.root.is_dir():
            problem = "is not a folder" if self.root.exists() else "does not exist"
            raise SourceError(f"--source {self.root} {problem}; give the folder that holds train/ and val/")
        found = [split for split in requested or DEFAULT_SPLITS if (self.root / split).is_dir()]
        missing = [split for split in requested or () if split not in found]
        if missing or not found:
            raise SourceError(
                f"--source {self.root} has no {_first_few(missing or DEFAULT_SPLITS)}; it holds "
                f"{_glimpse(self.root)}. Give the folder above the splits, or name the splits with --splits."
            )
        return found

    def class_names(self, splits: Sequence[str]) -> list[str]:
        # Even where val alone is converted: the labels have to mean the same whenever train is converted.
        return self._class_folders("train" if (self.root / "train").is_dir() else splits[0])

    def listing(self, split: str, classes: Sequence[str]) -> Listing:
        index_of = {name: index for index, name in enumerate(classes)}
        own = self._class_folders(split)
        unknown = [name for name in own if name not in index_of]
        if unknown:
            raise SourceError(
                f"{self.root / split} has {_count(len(unknown), 'class', 'classes')} that train lacks: "
                f"{_first_few(unknown)}. The classes of train set the labels, so the other splits must keep to them."
            )
        ignored: Counter[str] = Counter()
        for entry in os.scandir(self.root / split):
            if _hidden(entry):
                ignored["hidden file or folder"] += 1
            elif not entry.is_dir():
                ignored["file outside a class folder"] += 1
        samples = [
            Sample(f"{split}/{name}/{path}", index_of[name], size)
            for name in own
            for path, size in sorted(_walk(self.root / split / name, "", ignored), key=_torchvision_order)
        ]
        if not samples:
            raise SourceError(f"{self.root / split} has {_count(len(own), 'class folder')} but no files in them")
        return Listing(split, tuple(samples), dict(sorted(ignored.items())))

    def read(self, key: str) -> bytes:
        return (self.root / key).read_bytes()

    def _class_folders(self, split: str) -> list[str]:
        folder = self.root / split
        # A class folder that is itself a link is followed: subsets of ImageNet are often made of links.
        names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not _hidden(entry))
        if not names:
            raise SourceError(
                f"{folder} has no class folders; it holds {_glimpse(folder)}. Each image must lie in a folder "
                "named after its class; ImageNet's flat validation files have to be sorted into theirs first."
            )
        for name in names:
            if not _is_utf8(name):
                raise SourceError(f"the class folder {_printable(str(folder / name))} has a name that is not UTF-8")
        return names


def open_source(source: str) -> Source:
    """The source a --source argument means; it is the place to tell further layouts apart."""
    return ImageFolder(Path(source))


def printable_key(key: str) -> str:
    """A key fit for JSON: file names that are not UTF-8 get their odd bytes written as `\\xNN`."""
    return _printable(key)


def _walk(folder: Path, prefix: str, ignored: Counter[str]) -> Iterator[tuple[str, int]]:
    """Yields (path below the class folder, size in bytes) of each file, in no order; counts what it leaves out."""
    for entry in os.scandir(folder):
        path = prefix + entry.name
        if _hidden(entry):
            ignored["hidden file or folder"] += 1
        elif entry.is_dir(follow_symlinks=False):
            yield from _walk(folder / entry.name, path + "/", ignored)
        elif entry.is_dir():
            ignored["link to a folder"] += 1
        else:
            yield path, _size_of_regular_file(entry)


def _size_of_regular_file(entry: os.DirEntry[str]) -> int:
    try:
        status = entry.stat()
    except OSError as error:
        raise SourceError(f"cannot read {_printable(entry.path)}: {error.strerror} (a broken link?)") from None
    if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for ever
        raise SourceError(f"{_printable(entry.path)} is not a regular file; remove it")
    return status.st_size


def _torchvision_order(item: tuple[str, int]) -> tuple[str, str]:
    """ImageFolder sorts by folder, then by file name: `z.jpg` comes before `a/b.jpg`."""
    folder, _, name = item[0].rpartition("/")
    return folder, name


def _hidden(entry: os.DirEntry[str]) -> bool:
    return entry.name.startswith(".")


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _printable(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _glimpse(folder: Path) -> str:
    """What a folder holds, in a few words: `3 folders (a, b, c) and 2 files (x, y)`."""
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    folders = [entry.name + "/" for entry in entries if entry.is_dir()]
    files = [entry.name for entry in entries if not entry.is_dir()]
    parts = []
    if folders:
        parts.append(f"{_count(len(folders), 'folder')} ({_first_few(folders)})")
    if files:
        parts.append(f"{_count(len(files), 'file')} ({_first_few(files)})")
    return " and ".join(parts) or "nothing"


def _first_few(names: Sequence[str], limit: int = 5) -> str:
    shown = ", ".join(_printable(name) for name in names[:limit])
    return shown + (f", ... and {len(names) - limit:,} more" if len(names) > limit else "")


def _count(n: int, one: str, many: str = "") -> str:
    return f"{n:,} {one if n == 1 else many or one + 's'}"
