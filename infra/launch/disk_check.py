"""Whether the disk that will hold the cache can be written, and how fast."""

import errno
import os
import tempfile
import time
from pathlib import Path

from infra.launch.gpu_checks import NOTE, OK, UNFIT, Finding

MOST_BYTES, BLOCK_BYTES, MOST_SECONDS = 1 << 30, 16 << 20, 5.0
LEAST_MB_PER_SEC = 100.0  # below it a first epoch waits for the disk: a local NVMe disk writes ten times as much
BROKEN = (errno.EIO, errno.EROFS, errno.EUCLEAN, errno.ENODEV, errno.ENXIO)


def look_at_disk(folder: Path | None) -> Finding:
    """Write a gigabyte, or for five seconds, in the nearest folder there is of `folder` (the temporary one by default).

    The file has no name once it is open, so nothing of it stays however this ends.
    """
    where = nearest(folder or Path(tempfile.gettempdir()))
    try:
        speed = write_speed(where)
    except OSError as error:
        if error.errno in BROKEN:
            return Finding(UNFIT, "disk", f"{where} cannot be written: {error.strerror}", "take another machine")
        return Finding(NOTE, "disk", f"{where} cannot be written: {error.strerror}; data.local has to be where it can")
    seen = f"{speed / 1e6:,.0f} MB/s written to {where}"
    if speed < LEAST_MB_PER_SEC * 1e6:
        return Finding(NOTE, "disk", f"SLOW: {seen}, at least {LEAST_MB_PER_SEC:g} expected of a local disk")
    return Finding(OK, "disk", seen)


def nearest(folder: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    return next(path for path in [folder.absolute(), *folder.absolute().parents] if path.is_dir())


def write_speed(folder: Path) -> float:
    """Bytes a second, on the disk itself (fsync).

    Raises:
        OSError: it cannot be written.
    """
    block, written, began = os.urandom(BLOCK_BYTES), 0, time.monotonic()
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        while written < MOST_BYTES and time.monotonic() - began < MOST_SECONDS:
            written += file.write(block)
            os.fsync(file.fileno())
        return written / (time.monotonic() - began)
