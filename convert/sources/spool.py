"""A local folder for what cannot be read in place: files in it appear under their names when they are whole."""

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from convert.sources.base import SourceError

_WRITING_FAILED = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)


def make_spool(spool: Path | None, *, what: str) -> Path:
    """The folder, made if need be.

    Raises:
        SourceError: none was given, or it cannot be made; `what` says what it is needed for.
    """
    if spool is None:
        raise SourceError(f"{what} cannot be read in place; name a local folder to unpack it into with --spool DIR")
    try:
        spool.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SourceError(f"cannot make the folder --spool {spool}: {error.strerror}") from error
    return spool


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes its name, synced to the disk, at the end; on an exception it is removed.

    Raises:
        SourceError: the disk is full or read-only.
    """
    with scratch_file(path.parent) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
        os.chmod(file.name, 0o666 & ~_umask())  # a temporary file is for its owner alone
        os.replace(file.name, path)


@contextlib.contextmanager
def scratch_file(folder: Path) -> Iterator[BinaryIO]:
    """A temporary file in the spool, to be removed at the end. Raises SourceError as `whole_file` does."""
    file = None
    try:
        file = tempfile.NamedTemporaryFile("w+b", dir=folder, prefix=".", suffix=".tmp", delete=False)  # noqa: SIM115  # closed below
        yield file.file  # type: ignore[misc]  # its `name` is the path
    except OSError as error:
        if error.errno not in _WRITING_FAILED:
            raise
        raise SourceError(
            f"cannot write to --spool {folder}: {error.strerror}. It takes as much room as the images of the source, "
            "about 150 GB for all of ImageNet; name a larger disk, or convert one split at a time with --splits"
        ) from error
    finally:
        if file is not None:
            with contextlib.suppress(OSError):  # on a full disk closing fails once more
                file.close()
            with contextlib.suppress(FileNotFoundError):  # it has its own name by now
                os.unlink(file.name)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
