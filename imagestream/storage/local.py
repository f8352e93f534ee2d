"""A place that is a folder on a disk. A file in it is replaced by renaming a finished copy, never written in place."""

import contextlib
import errno
import os
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from imagestream.storage.errors import PlaceError, all_of, cannot_be_written, has_changed
from imagestream.storage.protocol import Check, Stat

PART = ".part-"
_OWN_NAME = re.compile(rf"{re.escape(PART)}[0-9a-f]{{8}}-(.+)")
NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)
NO_SUCH_FILE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


@dataclass(frozen=True, slots=True)
class LocalPlace:
    """A folder.

    Attributes:
        several_writers: whether other processes may write files of the same names at the same time.
    """

    path: Path
    several_writers: bool = False
    concurrency: ClassVar[int] = 1

    def __str__(self) -> str:
        return str(self.path)

    def names(self, folder: str = "") -> list[str]:
        with _named(self.path / folder, "listed"), contextlib.suppress(*NO_SUCH_FILE):
            return sorted(entry.name + "/" * _leads(entry.is_dir) for entry in os.scandir(self.path / folder))
        return []

    def sizes(self, folder: str = "") -> dict[str, int]:
        found = {}
        with _named(self.path / folder, "listed"), contextlib.suppress(*NO_SUCH_FILE):
            for entry in sorted(os.scandir(self.path / folder), key=lambda entry: entry.name):
                with contextlib.suppress(FileNotFoundError):  # it has been deleted meanwhile
                    if _leads(entry.is_file):
                        found[entry.name] = entry.stat().st_size
        return found

    def stat(self, name: str) -> Stat | None:
        with _named(self.path / name, "looked at"), contextlib.suppress(*NO_SUCH_FILE):
            seen = os.stat(self.path / name)
            return Stat(seen.st_size, seen.st_mtime, "") if stat.S_ISREG(seen.st_mode) else None
        return None

    def read(
        self, name: str, offset_bytes: int = 0, size_bytes: int | None = None, *, seen: Stat | None = None
    ) -> bytes:
        path = self.path / name
        try:
            with _named(path, "read"), open(path, "rb", buffering=0) as file:
                file.seek(offset_bytes)
                data = file.readall() if size_bytes is None else file.read(size_bytes)
                now = os.fstat(file.fileno())
        except PlaceError as error:
            if isinstance(error.__cause__, NO_SUCH_FILE):
                raise FileNotFoundError(errno.ENOENT, error.__cause__.strerror, str(path)) from error
            raise
        if seen is not None and (now.st_size, now.st_mtime) != (seen.size_bytes, seen.written_s):
            raise has_changed(path)
        return data if size_bytes is None else all_of(data, size_bytes, path)

    def get(self, name: str, into: Path) -> Path:
        return self.path / name

    def write(self, name: str, data: bytes) -> Stat:
        path = self.path / name
        part_name = _own_name(path.name) if self.several_writers else temporary_name(path.name)
        with self._part(path, part_name, size_bytes=len(data)) as part:
            _write_synced(part, data)
            os.replace(part, path)
            _flush(path.parent)
            return Stat(len(data), os.stat(path).st_mtime, "")

    def put(self, name: str, source: Path, *, check: Check | None = None) -> None:
        path = self.path / name
        with self._part(path, _own_name(path.name), size_bytes=source.stat().st_size) as part:
            shutil.move(source, part)
            _flush(part)  # before the check, for it can take seconds
            if check:
                check()
            os.replace(part, path)
            _flush(path.parent)

    def create(self, name: str, data: bytes) -> bool:
        path = self.path / name
        with self._part(path, _own_name(path.name), size_bytes=len(data)) as part:
            _write_synced(part, data)
            try:
                os.link(part, path)  # fails where the name exists, on NFS and Lustre too
            except FileExistsError:
                return part.stat().st_nlink == 2  # over NFS the answer to a link that was made can be lost
            except OSError as error:
                if error.errno not in NO_HARD_LINKS:
                    raise
                return _create_without_link(path, data)
            _flush(path.parent)
        return True

    def rename(self, name: str, new: str) -> None:
        with _named(self.path / name, f"renamed to {new}"):
            os.replace(self.path / name, self.path / new)

    def delete(self, names: Sequence[str]) -> None:
        for name in names:
            with _named(self.path / name, "deleted"):
                (self.path / name).unlink(missing_ok=True)
        for folder in sorted({(self.path / name).parent for name in names} - {self.path}, reverse=True):
            with contextlib.suppress(OSError):  # it is not empty, or gone
                folder.rmdir()

    def check_writable(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / ".probe"
            probe.write_bytes(b"x")
            probe.unlink(missing_ok=True)  # another rank may have been quicker
        except OSError as error:
            raise PlaceError(f"{self.path} is not writable: {error.strerror}") from error

    @contextlib.contextmanager
    def _part(self, final: Path, name: str, *, size_bytes: int) -> Iterator[Path]:
        """Give a path beside a file, since a rename is atomic within a file system only; nothing is left there."""
        part = final.with_name(name)
        try:
            try:
                final.parent.mkdir(parents=True, exist_ok=True)
                yield part
            finally:
                part.unlink(missing_ok=True)
        except PlaceError:  # of a check
            raise
        except OSError as error:
            raise cannot_be_written(final, error, needed_bytes=size_bytes) from error


def temporary_name(name: str) -> str:
    """The name that a file of a single writer has in its folder until it is whole."""
    return f".{name}.tmp"


def final_name(name: str) -> str:
    """The name that a temporary file was to have; other names unchanged."""
    if own := _OWN_NAME.fullmatch(name):
        return own[1]
    return name[1:-4] if name.startswith(".") and name.endswith(".tmp") else name


def _own_name(name: str) -> str:
    """A name of this call's own: others may write a file of the same name at the same time."""
    return f"{PART}{uuid.uuid4().hex[:8]}-{name}"


@contextlib.contextmanager
def _named(path: Path, done: str) -> Iterator[None]:
    """Have an error name the file, and what could not be done with it."""
    try:
        yield
    except OSError as error:
        raise PlaceError(f"{path} cannot be {done}: {error.strerror or error}") from error


def _leads(ask: Callable[[], bool]) -> bool:
    """Return what an entry of a folder says of itself; False of a link to itself, as of any broken one."""
    try:
        return ask()
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return False


def _create_without_link(path: Path, data: bytes) -> bool:
    try:
        with open(path, "xb") as file:
            file.write(data)
    except FileExistsError:
        return False
    return True


def _write_synced(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _flush(path: Path) -> None:
    """Have a file's or folder's content on its disk, so that a crash leaves the old file or the new one, whole."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
