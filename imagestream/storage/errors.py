"""What goes wrong at a place of files."""

import errno
import shutil
from pathlib import Path

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class PlaceError(OSError):
    """A folder, a bucket or one of its files cannot be read or written; the message names it.

    Attributes:
        is_full: whether a disk is full, or its quota.
    """

    is_full = False


def cannot_be_written(path: Path, error: OSError, *, needed_bytes: int, final: str | None = None) -> PlaceError:
    """Return the error for a file that the system would not take; of a full disk it says how full it is."""
    text = f"{final or path} cannot be written: {error.strerror or error}"
    if error.errno not in DISK_FULL:
        return PlaceError(text)
    place = next(folder for folder in path.absolute().parents if folder.exists())
    free = shutil.disk_usage(place).free
    full = PlaceError(f"{text}; {free:,} bytes are free in {place.resolve()}, {needed_bytes:,} are needed")
    full.is_full = True
    return full


def has_changed(where: object) -> PlaceError:
    """Return the error for a file that is not the one that was looked at before."""
    return PlaceError(f"{where} has changed since it was listed; give the command again once nothing writes there")


def all_of(data: bytes, size_bytes: int, where: object) -> bytes:
    """Return `data`, which must be `size_bytes` long; else a PlaceError."""
    if len(data) != size_bytes:
        raise PlaceError(
            f"{where} cannot be read: it ends after {len(data):,} of {size_bytes:,} bytes; has it changed meanwhile?"
        )
    return data
