"""Where the shards go: a local folder or a prefix of a bucket. Each file appears whole or not at all.

The bucket's half is `convert/s3.py`. Both have the same five methods and know nothing about datasets; what a
dataset is made of, and in which order its parts appear, is said once in `convert/imagenet_to_mds.py`.
"""

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from convert.shards import is_our_name


class OutputError(RuntimeError):
    """The output could not be read or written; the message says what and why."""


class Output(Protocol):
    """A place a dataset is written to. Instances are pickled into worker processes."""

    def check(self) -> None:
        """Raise OutputError now rather than after an hour's work where the place cannot be reached."""
        ...

    def our_files(self, split: str) -> list[str]:
        """Sorted names of the files in a split's folder that a conversion, finished or not, has left there."""
        ...

    def read(self, name: str) -> bytes | None:
        """The content of a file, given its path below the output; None where there is none."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Put a file there, whole or not at all, replacing one of the same name."""
        ...

    def delete(self, names: Sequence[str]) -> None:
        """Delete these files, in this order; those already gone are no error."""
        ...


def open_output(out: str) -> Output:
    """The output an --out argument means.

    Raises:
        ValueError: it is a URL of a kind that is not supported, or names no bucket.
    """
    scheme, separator, rest = out.partition("://")
    if not separator:
        return LocalOutput(Path(out))
    bucket, _, prefix = rest.partition("/")
    if scheme != "s3" or not bucket:
        raise ValueError(f"--out {out} is neither a local folder nor s3://bucket/prefix")
    from convert.s3 import S3Output  # here, since boto3 takes long to import for those who need no bucket

    return S3Output(bucket, prefix.strip("/"))


@dataclass(frozen=True, slots=True)
class LocalOutput:
    """A folder. A file is written to `.<name>.tmp` beside its place, synced, and then renamed."""

    root: Path

    def check(self) -> None:
        with _explained("use", self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            if not os.access(self.root, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    def our_files(self, split: str) -> list[str]:
        with _explained("list", self.root / split):
            try:
                return sorted(name for name in os.listdir(self.root / split) if is_our_name(_final_name(name)))
            except FileNotFoundError:
                return []

    def read(self, name: str) -> bytes | None:
        with _explained("read", self.root / name):
            try:
                return (self.root / name).read_bytes()
            except FileNotFoundError:
                return None

    def write(self, name: str, data: bytes) -> None:
        path = self.root / name
        temporary = path.with_name(f".{path.name}.tmp")
        with _explained("write", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with open(temporary, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            _sync_folder(path.parent)  # or a power cut may undo the rename

    def delete(self, names: Sequence[str]) -> None:
        for name in names:
            with _explained("delete", self.root / name):
                (self.root / name).unlink(missing_ok=True)


@contextlib.contextmanager
def _explained(verb: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        hint = ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            hint = ". Free some space or choose another --out; a dataset takes as much room as its images"
        raise OutputError(f"cannot {verb} {path}: {error.strerror}{hint}") from error


def _final_name(name: str) -> str:
    """The name a temporary file was to have; other names unchanged."""
    return name[1:-4] if name.startswith(".") and name.endswith(".tmp") else name


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
