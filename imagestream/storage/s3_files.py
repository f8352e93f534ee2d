"""A source's files in an S3 bucket, on AWS or any other server of that protocol."""

import contextlib
import errno
import io
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any, BinaryIO, ClassVar

from botocore.exceptions import BotoCoreError, ClientError, ReadTimeoutError, ResponseStreamingError
from urllib3.exceptions import HTTPError

from imagestream.storage.errors import all_of
from imagestream.storage.s3 import s3_hint
from imagestream.storage.s3_client import all_pages, ask_s3

READ_ATTEMPTS = 8  # of one read; about a minute and a half in all
READ_AHEAD_BYTES = 64 * 1024
# To read the headers in a tar of images of 110 KB costs as many requests as there are images, or all of the bytes in
# larger pieces; the pieces take a fraction of the time, and bytes cost nothing within a region.
READ_MUCH_AHEAD_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class S3Files:
    """A prefix of a bucket; S3_ENDPOINT_URL selects another server than AWS."""

    bucket: str
    prefix: str
    concurrency: ClassVar[int] = 16  # a small read takes 10 to 50 ms, nearly all of it waiting

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def names(self, folder: str = "") -> list[str]:
        start = "".join(f"{part}/" for part in (self.prefix, folder.rstrip("/")) if part)
        found: list[str] = []
        with self._explained("list", folder):
            for page in all_pages("list_objects_v2", Bucket=self.bucket, Prefix=start, Delimiter="/"):
                found += [item["Prefix"] for item in page.get("CommonPrefixes", [])]
                found += [item["Key"] for item in page.get("Contents", []) if item["Key"] != start]
        return sorted(key.removeprefix(start) for key in found)

    def size(self, name: str) -> int | None:
        try:
            with self._explained("look at", name):
                answer = ask_s3(lambda client: client.head_object(Bucket=self.bucket, Key=self._key(name)))
                return int(answer["ContentLength"])
        except FileNotFoundError:
            return None

    def read(self, name: str, offset_bytes: int = 0, size_bytes: int | None = None) -> bytes:
        if size_bytes == 0:
            return b""
        end = "" if size_bytes is None else str(offset_bytes + size_bytes - 1)
        part = {"Range": f"bytes={offset_bytes}-{end}"} if offset_bytes or end else {}
        for attempt in count(1):
            try:
                with self._explained("read", name):
                    answer = ask_s3(lambda client: client.get_object(Bucket=self.bucket, Key=self._key(name), **part))
                    return all_of(answer["Body"].read(), size_bytes or answer["ContentLength"])
            except _ConnectionLost:  # boto3 repeats requests, but not the reading of an answer that breaks off
                if attempt == READ_ATTEMPTS:
                    raise
                time.sleep(random.uniform(0, 2 ** min(attempt, 4)))  # full jitter, 16 s at most
        raise AssertionError("not reached")

    def open(self, name: str, *, most_of_it: bool = False) -> BinaryIO:
        size_bytes = self.size(name)
        if size_bytes is None:
            raise FileNotFoundError(errno.ENOENT, "no such object", f"{self}/{name}")
        read_ahead_bytes = READ_MUCH_AHEAD_BYTES if most_of_it else READ_AHEAD_BYTES
        return io.BufferedReader(_RangeReader(self, name, size_bytes), read_ahead_bytes)

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name

    @contextlib.contextmanager
    def _explained(self, verb: str, name: str) -> Iterator[None]:
        try:
            yield
        except (BotoCoreError, ClientError, ValueError, HTTPError) as error:
            where = f"{self}/{name}".rstrip("/")
            if getattr(error, "response", {}).get("Error", {}).get("Code") in ("NoSuchKey", "404"):
                raise FileNotFoundError(errno.ENOENT, "no such object", where) from error
            lost = isinstance(error, (ResponseStreamingError, ReadTimeoutError, HTTPError))
            kind = _ConnectionLost if lost else OSError
            raise kind(errno.EIO, f"cannot {verb} it: {error}{s3_hint(error)}", where) from error


class _ConnectionLost(OSError):
    """The answer broke off; the same request may well succeed."""


class _RangeReader(io.RawIOBase):
    """A file in a bucket, each read of which is a request."""

    def __init__(self, files: S3Files, name: str, size_bytes: int) -> None:
        self._files, self._name, self._size_bytes, self._at = files, name, size_bytes, 0

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
        buffer[:wanted] = self._files.read(self._name, self._at, wanted)
        self._at += wanted
        return wanted
