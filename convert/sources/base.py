"""What every layout of a source gives: its splits, its classes and, of each image, where its bytes are."""

import contextlib
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

from tqdm import tqdm

from imagestream.mds.names import printable
from imagestream.storage.protocol import Place

Item = TypeVar("Item")
Result = TypeVar("Result")

logger = logging.getLogger("convert.sources")

DEFAULT_SPLITS = ("train", "val")
# The names that folders of a split go by; the first that is there counts.
USUAL_NAMES = {"train": ("train", "training"), "val": ("val", "validation", "valid")}
# What file managers, network drives and archivers leave between the images.
_NOT_OURS = frozenset(
    {"@eaDir", "@Recycle", "#recycle", "#snapshot", "$RECYCLE.BIN", "System Volume Information", "__MACOSX"}
    | {"lost+found", "Thumbs.db", "ehthumbs.db", "desktop.ini"}
)


class SourceError(ValueError):
    """The source cannot be converted as it stands; the message says what was seen and what to do."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One candidate image: what it is called, what it shows, and where its bytes are.

    Attributes:
        key: `<split>/<class>/<file>`, unique; the same in every layout the image may come in.
        label: position in the list of classes.
        size_bytes: of the image as it is stored in the source.
        file: the file that holds it, below the source's `files`.
        offset_bytes: where in that file it begins; None: it is the whole file.
    """

    key: str
    label: int
    size_bytes: int
    file: str
    offset_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """The samples of one split, in `canonical_order`; a sample's position in `samples` is its id."""

    split: str
    samples: tuple[Sample, ...]
    ignored: dict[str, int]  # what was left out -> how many, for a warning


class Source(Protocol):
    """ImageNet, or something like it, in one of the layouts that it comes in."""

    @property
    def layout(self) -> str:
        """The name by which --layout selects it."""
        ...

    @property
    def files(self) -> Place:
        """Where the bytes of the samples are; the workers read from here."""
        ...

    def splits(self, requested: Sequence[str] | None) -> list[str]:
        """The splits to convert: those requested or, by default, those of train and val that exist."""
        ...

    def class_names(self, splits: Sequence[str]) -> list[str]:
        """Sorted class names (wnids), which set the labels: those of train where the source has it."""
        ...

    def left_out(self, splits: Sequence[str]) -> list[str]:
        """The names of what lies in the source and is in none of these splits; the lists it was read by are not."""
        ...

    def readable_names(self) -> dict[str, str]:
        """Readable names of classes, as far as the source itself knows any; {} where it does not."""
        ...

    def listing(self, split: str, classes: Sequence[str]) -> Listing:
        """Every sample of a split in canonical order, labelled by position in `classes`."""
        ...


def canonical_order(sample: Sample) -> tuple[int, str, str]:
    """The order of ids, torchvision's: by class, folder and file name, so `z.jpg` comes before `a/b.jpg`."""
    folder, _, name = sample.key.rpartition("/")
    return sample.label, folder, name


def in_order(split: str, samples: Iterable[Sample], ignored: Mapping[str, int]) -> Listing:
    """The listing of these samples, put in canonical order."""
    return Listing(split, tuple(sorted(samples, key=canonical_order)), dict(sorted(ignored.items())))


def indexes_of(classes: Sequence[str], own: Collection[str], *, where: object) -> dict[str, int]:
    """Class name -> label. Raises SourceError where `own`, the classes of a split, has some that are not there."""
    index_of = {name: index for index, name in enumerate(classes)}
    unknown = sorted(name for name in own if name not in index_of)
    if unknown:
        raise SourceError(
            f"{where} has {counted(len(unknown), 'class', 'classes')} that train lacks: {first_few(unknown)}. "
            "The classes of train set the labels, so the other splits must keep to them."
        )
    return index_of


def labelled_splits(requested: Sequence[str] | None, found: Sequence[str], *, source: object, seen: str) -> list[str]:
    """The splits to convert of those `found`; SourceError where there is none, or one requested is missing."""
    missing = [split for split in requested or () if split not in found]
    if missing or not found:
        what = f"no {first_few(missing or DEFAULT_SPLITS)}"
        without_labels = " (ImageNet's test images have no labels)" if "test" in missing else ""
        raise SourceError(f"--source {source} has {what}{without_labels}; it holds {seen}. Name others with --splits.")
    return list(requested or found)


def names_of(split: str) -> tuple[str, ...]:
    """The names that the folder of a split may have, the likeliest first."""
    return USUAL_NAMES.get(split, (split,))


def is_hidden(name: str) -> bool:
    """Whether a file or folder is none of the source's own: of a name with a dot, or a system's leavings."""
    return name.startswith(".") or name.rstrip("/") in _NOT_OURS


def all_but(files: Place, used: Collection[str], folder: str = "") -> list[str]:
    """The names in a folder but for those used; hidden ones are nobody's business."""
    return [f"{folder}{name}" for name in files.names(folder) if name.rstrip("/") not in used and not is_hidden(name)]


@contextlib.contextmanager
def reading(source: object) -> Iterator[None]:
    """Turn the OSErrors of a place that cannot be read into SourceErrors."""
    try:
        yield
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise SourceError(f"--source {source} cannot be read: {where}{error.strerror or error}") from error


def each(
    work: Callable[[Item], Result], items: Sequence[Item], *, threads: int, unit: str, what: str
) -> Iterator[Result]:
    """`work(item)` of each item in order, several at once, with a bar. The first error ends it all."""
    pool = ThreadPoolExecutor(threads)
    try:
        yield from tqdm(pool.map(work, items), total=len(items), desc=what, unit=f" {unit}", disable=None)
    finally:
        pool.shutdown(cancel_futures=True)


def size_of(files: Place, name: str) -> int:
    """The size of a file in bytes; 0 where there is none."""
    seen = files.stat(name)
    return seen.size_bytes if seen else 0


def glimpse(files: Place, folder: str = "") -> str:
    """What a folder holds, in a few words: `3 folders (a/, b/, c/) and 2 files (x, y)`."""
    names = files.names(folder)
    folders = [name for name in names if name.endswith("/")]
    others = [name for name in names if not name.endswith("/")]
    parts = []
    if folders:
        parts.append(f"{counted(len(folders), 'folder')} ({first_few(folders)})")
    if others:
        parts.append(f"{counted(len(others), 'file')} ({first_few(others)})")
    return " and ".join(parts) or "nothing"


def first_few(names: Sequence[str], limit: int = 5) -> str:
    """The first of some names, and how many more there are; fit for a message."""
    shown = ", ".join(printable(name) for name in names[:limit])
    return shown + (f", ... and {len(names) - limit:,} more" if len(names) > limit else "")


def counted(n: int, one: str, many: str = "") -> str:
    """`1 class`, `2 classes`."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"
