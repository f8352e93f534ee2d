"""Where the shards go: a local folder or a prefix of a bucket. Each file appears whole or not at all.

The bucket's half is `imagestream/storage/s3.py`. Both have the same methods and know nothing about datasets;
what a dataset is made of, and in which order its parts appear, is said once in `convert/conversion.py`.
"""

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import xxhash

from imagestream.storage.errors import OutputError
from imagestream.storage.places import bucket_and_key, is_url


class Output(Protocol):
    """A place a dataset is written to. Instances are pickled into worker processes."""

    def check(self) -> None:
        """Raise OutputError now rather than after an hour's work where the place cannot be reached."""
        ...

    def sizes(self, folder: str) -> dict[str, int]:
        """The files directly in a folder, sorted, with their sizes in bytes; temporary ones are among them."""
        ...

    def read(self, name: str) -> bytes | None:
        """The content of a file, given its path below the output; None where there is none."""
        ...

    def write(self, name: str, data: bytes) -> str:
        """Put a file there, whole or not at all, replacing one of the same name; returns its receipt."""
        ...

    def holds(self, name: str, size_bytes: int, receipt: str) -> bool:
        """Whether a file is there just as `write` left it."""
        ...

    def create(self, name: str, data: bytes) -> bool:
        """Put a small file there unless there is one of that name; False: there is. One of two callers succeeds."""
        ...

    def age_s(self, name: str) -> float | None:
        """Seconds since a file was written, by one clock for all; None where there is none."""
        ...

    def delete(self, names: Sequence[str]) -> None:
        """Delete these files, in this order; those already gone are no error. Folders left empty go too."""
        ...

    def abort_uploads(self) -> int:
        """End uploads that killed writers have left unfinished, which cost money unseen; returns how many."""
        ...


def open_output(out: str) -> Output:
    """The output an --out argument means.

    Raises:
        ValueError: it is a URL of a kind that is not supported, or names no bucket.
    """
    if not is_url(out):
        return LocalOutput(Path(out))
    try:
        bucket, prefix = bucket_and_key(out)
    except ValueError as error:
        raise ValueError(f"--out {error}") from None
    from imagestream.storage.s3 import S3Output  # here, since boto3 takes long to import for those who need no bucket

    return S3Output(bucket, prefix)


@dataclass(frozen=True, slots=True)
class LocalOutput:
    """A folder. A file is written to `.<name>.tmp` beside its place, synced, and then renamed."""

    root: Path

    def __str__(self) -> str:
        return str(self.root)

    def check(self) -> None:
        with _explained("use", self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            if not os.access(self.root, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    def sizes(self, folder: str) -> dict[str, int]:
        with _explained("list", self.root / folder):
            try:
                files = [entry for entry in os.scandir(self.root / folder) if entry.is_file()]
                return {entry.name: entry.stat().st_size for entry in sorted(files, key=lambda entry: entry.name)}
            except (FileNotFoundError, NotADirectoryError):
                return {}

    def read(self, name: str) -> bytes | None:
        with _explained("read", self.root / name):
            try:
                return (self.root / name).read_bytes()
            except FileNotFoundError:
                return None

    def write(self, name: str, data: bytes) -> str:
        path = self.root / name
        temporary = path.with_name(temporary_name(path.name))
        with _explained("write", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                _write_synced(temporary, data)
                os.replace(temporary, path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            _sync_folder(path.parent)  # or a power cut may undo the rename
        return xxhash.xxh64(data).hexdigest()

    def holds(self, name: str, size_bytes: int, receipt: str) -> bool:
        with _explained("read", self.root / name):
            try:
                if (self.root / name).stat().st_size != size_bytes:
                    return False
                with open(self.root / name, "rb") as file:
                    digest = xxhash.xxh64()
                    while part := file.read(2**20):
                        digest.update(part)
            except FileNotFoundError:
                return False
        return digest.hexdigest() == receipt

    def create(self, name: str, data: bytes) -> bool:
        path = self.root / name
        with _explained("write", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            except FileExistsError:
                return False
            with open(descriptor, "wb") as file:
                file.write(data)
        return True

    def age_s(self, name: str) -> float | None:
        with _explained("look at", self.root / name):
            try:
                written = (self.root / name).stat().st_mtime
            except FileNotFoundError:
                return None
            # The clock of the file system's server, which the time written was taken from too.
            folder, probe = (self.root / name).parent, f".{Path(name).name}.{{}}.clock"
            with open(folder / probe.format(os.getpid()), "wb") as file:
                os.fsync(file.fileno())
                now = os.fstat(file.fileno()).st_mtime
            for left in folder.glob(probe.format("*")):  # a process that is killed here leaves its own
                left.unlink(missing_ok=True)
        return now - written

    def delete(self, names: Sequence[str]) -> None:
        for name in names:
            path = self.root / name
            with _explained("delete", path):
                path.unlink(missing_ok=True)
        for folder in sorted({(self.root / name).parent for name in names} - {self.root}, reverse=True):
            with contextlib.suppress(OSError):  # it is not empty, or gone
                folder.rmdir()

    def abort_uploads(self) -> int:
        return 0


def temporary_name(name: str) -> str:
    """The name that a file has in its folder until it is whole."""
    return f".{name}.tmp"


def final_name(name: str) -> str:
    """The name that a temporary file was to have; other names unchanged."""
    return name[1:-4] if name.startswith(".") and name.endswith(".tmp") else name


@contextlib.contextmanager
def _explained(verb: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        hint = ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            hint = ". Free some space or choose another --out; a dataset takes as much room as its images"
        raise OutputError(f"cannot {verb} {path}: {error.strerror}{hint}") from error


def _write_synced(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
