"""What the layouts that are folders of image files have in common: class folders, and flat folders with a list."""

import codecs
import os
import stat
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from convert.sources.base import (
    Listing,
    Sample,
    SourceError,
    counted,
    first_few,
    glimpse,
    in_order,
    indexes_of,
    is_hidden,
    reading,
)
from imagestream.mds.names import printable
from imagestream.storage.local import LocalPlace

HIDDEN = "hidden file or folder"


def class_folders(folder: Path) -> list[str]:
    """The sorted names of the class folders in a split's folder.

    Raises:
        SourceError: there are none, or one has a name that is not UTF-8.
    """
    # A class folder that is itself a link is followed: subsets of ImageNet are often made of links.
    with reading(folder):
        names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not is_hidden(entry.name))
    if not names:
        raise SourceError(
            f"{folder} has no class folders; it holds {glimpse(LocalPlace(folder))}. Each image must lie in a folder "
            "named after its class; ImageNet's flat validation files have to be sorted into theirs first, or come "
            "with one of the lists that --layout tars, kaggle and annotated know."
        )
    for name in names:
        if not _is_utf8(name):
            raise SourceError(f"the class folder {printable(str(folder / name))} has a name that is not UTF-8")
    return names


def walk(folder: Path, prefix: str, ignored: Counter[str]) -> Iterator[tuple[str, int]]:
    """Yields (path below the class folder, size in bytes) of each file, in no order; counts what it leaves out."""
    with reading(folder):
        for entry in os.scandir(folder):
            path = prefix + entry.name
            if is_hidden(entry.name):
                ignored[HIDDEN] += 1
            elif entry.is_dir(follow_symlinks=False):
                yield from walk(folder / entry.name, path + "/", ignored)
            elif entry.is_dir():
                ignored["link to a folder"] += 1
            else:
                yield path, _size_of_regular_file(entry)


def outside_of_classes(folder: Path, ignored: Counter[str]) -> None:
    """Count what lies beside the class folders of a split."""
    with reading(folder):
        entries = [(entry.name, entry.is_dir()) for entry in os.scandir(folder)]
    for name, is_folder in entries:
        if is_hidden(name):
            ignored[HIDDEN] += 1
        elif not is_folder:
            ignored["file outside a class folder"] += 1


def flat_listing(
    root: Path,
    folder: str,
    *,
    split: str,
    classes: Sequence[str],
    wnid_of: Mapping[str, str],
    labels: Path,
    skip: Collection[str] = (),
) -> Listing:
    """The listing of a folder that holds the images of all classes side by side.

    Args:
        folder: below `root`.
        wnid_of: file name -> class; where a name is missing, the name less its extension is looked up.
        labels: the file that `wnid_of` was read from, for messages.
        skip: names in the folder that are no images.

    Raises:
        SourceError: a file has no label, a label is not among `classes`, or there are no files.
    """
    ignored: Counter[str] = Counter()
    found: list[tuple[str, str, int]] = []
    unlabelled: list[str] = []
    for path, size_bytes in walk(root / folder, "", ignored):
        if path in skip:
            continue
        wnid = wnid_of.get(path) or wnid_of.get(path.rpartition(".")[0])
        if wnid is None:
            unlabelled.append(path)
        else:
            found.append((wnid, path, size_bytes))
    if unlabelled:
        raise SourceError(
            f"{labels} gives no class for {counted(len(unlabelled), 'file')} of {root / folder}: "
            f"{first_few(sorted(unlabelled))}. Remove what does not belong to this split, or correct the list."
        )
    if not found:
        raise SourceError(f"{root / folder} has no images; it holds {glimpse(LocalPlace(root / folder))}")
    if len(found) < len(wnid_of):
        ignored[f"line of {labels.name} without its image"] += len(wnid_of) - len(found)
    index_of = indexes_of(classes, {wnid for wnid, _, _ in found}, where=labels)
    samples = [
        Sample(f"{split}/{wnid}/{path}", index_of[wnid], size_bytes, file=f"{folder}/{path}")
        for wnid, path, size_bytes in found
    ]
    return in_order(split, samples, ignored)


def lines_of(path: Path) -> list[str]:
    """The lines of a text file; see `text_of`."""
    return text_of(path).splitlines()


def text_of(path: Path) -> str:
    """The text of a file, in UTF-8 with or without a byte order mark, or in UTF-16 with one.

    Raises:
        SourceError: it cannot be read, or is in another encoding.
    """
    with reading(path):
        data = path.read_bytes()
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise SourceError(
            f"{path}:{line} is not text in UTF-8 (byte {data[error.start]:#04x}); save it as UTF-8, as by "
            f"iconv -f latin1 -t utf-8"
        ) from None


def _size_of_regular_file(entry: os.DirEntry[str]) -> int:
    try:
        status = entry.stat()
    except OSError as error:
        raise SourceError(f"cannot read {printable(entry.path)}: {error.strerror} (a broken link?)") from None
    if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for ever
        raise SourceError(f"{printable(entry.path)} is not a regular file; remove it")
    return status.st_size


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
