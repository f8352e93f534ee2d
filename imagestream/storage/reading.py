"""A file of a place, open for reading: what is not read is not fetched, but for some read ahead."""

import errno
import io
from typing import Any, BinaryIO

from imagestream.storage.protocol import Place

READ_AHEAD_BYTES = 64 * 1024
# To read the headers in a tar of images of 110 KB costs as many requests as there are images, or all of the bytes in
# larger pieces; the pieces take a fraction of the time, and bytes cost nothing within a region.
READ_MUCH_AHEAD_BYTES = 4 * 1024 * 1024


def open_file(place: Place, name: str, *, most_of_it: bool = False) -> BinaryIO:
    """Return a file for reading with `seek`.

    Args:
        most_of_it: it will be read from end to end with few gaps, so that reading ahead by much pays.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if place.path is not None:
        return open(place.path / name, "rb")
    seen = place.stat(name)
    if seen is None:
        raise FileNotFoundError(errno.ENOENT, "no such object", f"{place}/{name}")
    read_ahead_bytes = READ_MUCH_AHEAD_BYTES if most_of_it else READ_AHEAD_BYTES
    return io.BufferedReader(_RangeReader(place, name, seen.size_bytes), read_ahead_bytes)


class _RangeReader(io.RawIOBase):
    """A file in a bucket, each read of which is a request."""

    def __init__(self, place: Place, name: str, size_bytes: int) -> None:
        self._place, self._name, self._size_bytes, self._at = place, name, size_bytes, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size_bytes}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self._size_bytes - self._at)
        if wanted <= 0:
            return 0
        buffer[:wanted] = self._place.read(self._name, self._at, wanted)
        self._at += wanted
        return wanted
