"""What a place of files does, be it a folder on a disk or a prefix of a bucket in S3. It knows nothing of the files."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

Check = Callable[[], None]


class Stat(NamedTuple):
    """What a place says of a file, without reading it."""

    size_bytes: int
    written_s: float  # by the place's own clock, since 1970
    tag: str  # of this content; "" on a disk, which knows none


class Place(Protocol):
    """A folder of files. Instances are pickled into worker processes, so they hold an address and nothing open.

    A file's name is a path below the place, with '/'. Each method raises PlaceError, which names the file, where the
    place cannot be read or written.
    """

    @property
    def concurrency(self) -> int:
        """Reads worth having under way at once in one process."""

    @property
    def path(self) -> Path | None:
        """Where it is on a disk; None in S3."""

    def names(self, folder: str = "") -> list[str]:
        """Return the sorted names of what lies directly in `folder`; those of folders end with '/'. None there: []."""

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Return the files directly in `folder`, sorted, with their sizes in bytes. None there: {}."""

    def stat(self, name: str) -> Stat | None:
        """Return what is known of a file; None where there is no such file."""

    def read(
        self, name: str, offset_bytes: int = 0, size_bytes: int | None = None, *, seen: Stat | None = None
    ) -> bytes:
        """Return a part of a file, by default all of it. Fewer bytes than asked for are an error, never returned.

        Args:
            seen: what `stat` has said of the file; another one by now is an error.

        Raises:
            FileNotFoundError: there is no such file.
        """

    def get(self, name: str, into: Path) -> Path:
        """Return a local path of a file; `into` is a folder to download to, where that is needed."""

    def write(self, name: str, data: bytes) -> Stat:
        """Put a file there, whole or not at all, replacing one of the same name. One process at a time for a name."""

    def put(self, name: str, source: Path, *, check: Check | None = None) -> None:
        """Move a finished local file there: whole or not at all, replacing one of the same name.

        `check` is called at the last moment before it appears; what it raises prevents it.
        """

    def create(self, name: str, data: bytes) -> bool:
        """Put a small file there, whole or not at all, if there is none of that name; return whether there was none."""

    def rename(self, name: str, new: str) -> None:
        """Give a file another name."""

    def delete(self, names: Sequence[str]) -> None:
        """Delete these files, in this order; those already gone are no error. Folders left empty go too."""

    def check_writable(self) -> None:
        """Write and delete a probe, so that a wrong key or a full disk shows before hours are spent."""


def read_if_there(place: Place, name: str) -> bytes | None:
    """Return a file's content; None where there is no such file."""
    try:
        return place.read(name)
    except FileNotFoundError:
        return None
