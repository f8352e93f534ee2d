"""Where a source's bytes are: files in a local folder or below a prefix of a bucket, read whole or in part."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, ClassVar, Protocol

from imagestream.storage.errors import all_of
from imagestream.storage.places import bucket_and_key, is_url


class Files(Protocol):
    """A folder of files. Instances are pickled into worker processes, so they hold a place and nothing open.

    A name is a path below the folder, with '/'. Each method raises OSError where the place cannot be read.
    """

    concurrency: ClassVar[int]
    """Reads worth having under way at once in one process."""

    def names(self, folder: str = "") -> list[str]:
        """The sorted names of what lies directly in `folder`; those of folders end with '/'. None there: []."""
        ...

    def size(self, name: str) -> int | None:
        """A file's size in bytes; None where there is no such file."""
        ...

    def read(self, name: str, offset_bytes: int = 0, size_bytes: int | None = None) -> bytes:
        """A part of a file, by default all of it. Fewer bytes than asked for are an OSError, never returned."""
        ...

    def open(self, name: str, *, most_of_it: bool = False) -> BinaryIO:
        """A file for reading with `seek`; what is not read is not fetched, but for some read ahead.

        Args:
            most_of_it: it will be read from end to end with few gaps, so that reading ahead by much pays.
        """
        ...


@dataclass(frozen=True, slots=True)
class LocalFiles:
    """A local folder."""

    root: Path
    concurrency: ClassVar[int] = 1

    def __str__(self) -> str:
        return str(self.root)

    def names(self, folder: str = "") -> list[str]:
        try:
            return sorted(entry.name + "/" * entry.is_dir() for entry in os.scandir(self.root / folder))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def size(self, name: str) -> int | None:
        path = self.root / name
        return path.stat().st_size if path.is_file() else None

    def read(self, name: str, offset_bytes: int = 0, size_bytes: int | None = None) -> bytes:
        with open(self.root / name, "rb", buffering=0) as file:
            if size_bytes is None:
                size_bytes = os.fstat(file.fileno()).st_size - offset_bytes
            file.seek(offset_bytes)
            return all_of(file.read(size_bytes), size_bytes)

    def open(self, name: str, *, most_of_it: bool = False) -> BinaryIO:
        return open(self.root / name, "rb")


def open_files(place: str) -> Files:
    """The files of a local folder or of s3://bucket/prefix.

    Raises:
        ValueError: it is a URL of another kind, or names no bucket.
    """
    if not is_url(place):
        return LocalFiles(Path(place))
    bucket, prefix = bucket_and_key(place)
    # Here, since boto3 takes long to import for those who need no bucket.
    from imagestream.storage.s3_files import S3Files

    return S3Files(bucket, prefix)
