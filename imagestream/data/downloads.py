"""Shards that arrive whole or not at all: Streaming's `Stream` with patience, and with nothing taken on trust.

Streaming gives up after a few attempts, leaves a shard that failed its hash in the cache, and takes whatever a cache
already holds for good. Here a file is fetched to a name of its own, compared with the index, and only then renamed; a
file that is found is compared before its first use in a job. Two jobs can therefore share one cache.
"""

import errno
import hashlib
import logging
import math
import os
import random
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash
from botocore.exceptions import ClientError, FlexibleChecksumError, NoCredentialsError
from streaming import Stream
from streaming.base.format import FileInfo, Reader

from imagestream.mds.unpacking import UnpackError, unpacked
from imagestream.storage.places import bucket_and_key, is_url
from imagestream.storage.s3_checksums import without_refused_checksums
from imagestream.storage.s3_client import renew_clients, s3_client

log = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 20
READ_BYTES = (
    1 << 16
)  # from a network at once, and then a look at the clock; a quarter of it costs 1.6 ms of CPU a MB more
DAMAGED_TRIES = 3  # a damaged transfer is rare; what is damaged three times over is so at its source
CONNECT_S, SILENCE_S = 10.0, 30.0  # without an answer, or without a byte, before an attempt counts as failed
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 20.0  # bounds of the random pauses, doubled each time ("full jitter",
# aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter)
TELL_AFTER_S = 5.0  # S3 slows single requests down all the time; this long is an outage
PART_AGE_S = 3600.0  # an unfinished file untouched for this long is a dead job's
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
NEVER_HEALS = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR)
HEALS_THOUGH_4XX = (
    "RequestTimeout",
    "ExpiredToken",
    "ExpiredTokenException",
    "RequestTimeTooSkewed",
    "408",
    "412",
    "429",
)
_jitter = random.SystemRandom()  # leaves the run's own generators alone


class DownloadError(RuntimeError):
    """A shard cannot be had; the message says which, from where and why."""


class DamagedShardError(DownloadError):
    """A shard is not the one that the index lists."""


class StoppedError(RuntimeError):
    """A download was given up because the run is ending for another reason."""


@dataclass
class Arrived:
    """What has come of a file in the attempts so far.

    Attributes:
        bytes: in the part.
        etag: the object's version that they are of; '': unknown, the next attempt begins anew.
    """

    bytes: int = 0
    etag: str = ""


class CheckedStream(Stream):
    """A Stream whose files are compared with the index before they are used.

    Args:
        patience_s: seconds for which a failing download is tried again.
        hash_found: whether files that are found, rather than fetched, are hashed too; their size is always compared.
        empty_cache: whether files that are found in the cache are deleted, so that what it holds can be counted.
        kwargs: Stream's own; `download_timeout` is the limit of one attempt, `download_retry` is not used.
    """

    def __init__(self, *, patience_s: float, hash_found: bool, empty_cache: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.patience_s, self.hash_found, self.empty_cache = patience_s, hash_found, empty_cache
        self.is_stopping: Callable[[], bool] = _never

    def set_up_local(self, shards: list[Reader], cache_usage_per_shard: npt.NDArray[np.int64]) -> None:
        """Have every shard prepared at its first use, those that are there as well; called by one rank of a node.

        Upstream calls what is there ready for use, and deletes raw files whose compressed form is not there.
        """
        cache_usage_per_shard[:] = 0
        if self.remote is None:
            return
        folder = Path(self.local, self.split)
        for part in folder.rglob(".*.part"):
            with suppress(FileNotFoundError):
                if time.time() - part.stat().st_mtime > PART_AGE_S:
                    part.unlink()
        if self.empty_cache:
            for shard in shards:
                for info in filter(None, (shard.raw_data, shard.zip_data)):
                    self._refuse_other_places(info)
                shard.evict()

    def _prepare_shard_part(
        self, raw_info: FileInfo, zip_info: FileInfo | None = None, compression: str | None = None
    ) -> int:
        """Have a shard's file here, whole; return the bytes that it takes."""
        kept_zip_bytes = 0
        self._refuse_other_places(raw_info)
        if zip_info is not None:
            self._refuse_other_places(zip_info)
        if not self._is_here(raw_info):
            if zip_info is None:
                self._fetch(raw_info)
            else:
                if not self._is_here(zip_info):
                    self._fetch(zip_info)
                self._unpack(raw_info, zip_info, compression)
        if zip_info is not None:
            path = self._path(zip_info)
            if not self.safe_keep_zip:
                path.unlink(missing_ok=True)
            elif path.exists():
                kept_zip_bytes = zip_info.bytes
        return raw_info.bytes + kept_zip_bytes

    def _path(self, info: FileInfo) -> Path:
        return Path(self.local, self.split, info.basename)

    def _refuse_other_places(self, info: FileInfo) -> None:
        """Raise where a folder in the cache is a link that leads out of it: files there are deleted and written."""
        folder = Path(os.path.realpath(self.local), self.split)
        place = Path(folder, info.basename).parent
        where = os.path.realpath(place)
        if self.remote is not None and os.path.commonpath([folder, where]) != str(folder):
            raise DownloadError(f"{place} is a link to {where}, outside of the cache {folder}; remove the link")

    def _is_here(self, info: FileInfo) -> bool:
        """Return whether a file is there and whole; a damaged one is deleted if it can be fetched again.

        Raises:
            DamagedShardError: it is damaged, and the only copy.
        """
        path = self._path(info)
        if not path.exists():
            return False
        fault = fault_of(path, info, self.validate_hash if self.hash_found else None)
        if fault is None:
            return True
        if self.remote is None:
            raise DamagedShardError(f"{path.resolve()} is damaged: {fault}; copy or convert it again")
        log.warning("%s, found in the cache, is damaged: %s; it is fetched again", path.resolve(), fault)
        path.unlink(missing_ok=True)
        return False

    def _fetch(self, info: FileInfo) -> None:
        """Download a file; it gets its name once it is known to be whole."""
        final = self._path(info)
        if self.remote is None:
            raise DownloadError(f"{final.resolve()} is missing, though index.json lists it; copy or convert it again")
        source = os.path.join(self.remote, self.split, info.basename)
        for _ in range(DAMAGED_TRIES):
            with self._part_of(final, info.bytes) as part:
                try:
                    self._fetch_patiently(source, part, info.bytes)
                    fault = fault_of(part, info, self.validate_hash)
                except FlexibleChecksumError as error:  # S3's own, where the object was stored with one
                    fault = f"as S3 says, {_one_line(error)}"
                if fault is None:
                    os.replace(part, final)
                    return
            log.warning("%s arrived damaged: %s; it is fetched again", source, fault)
        raise DamagedShardError(
            f"{source} is damaged: {fault}, in each of {DAMAGED_TRIES} downloads; copy or convert it again"
        )

    def _unpack(self, raw_info: FileInfo, zip_info: FileInfo, compression: str | None) -> None:
        """Decompress a file that is here and whole."""
        zipped, final = self._path(zip_info), self._path(raw_info)
        with self._part_of(final, raw_info.bytes) as part:
            try:
                raw = unpacked(zipped.read_bytes(), str(compression), size_bytes=raw_info.bytes)
            except UnpackError as error:
                raise DamagedShardError(f"{zipped.resolve()} is damaged: {error}; convert it again") from error
            part.write_bytes(raw)
            fault = fault_of(part, raw_info, self.validate_hash)
            if fault is not None:
                raise DamagedShardError(f"{zipped.resolve()}, decompressed, is damaged: {fault}; convert it again")
            os.replace(part, final)

    @contextmanager
    def _part_of(self, final: Path, size: int) -> Iterator[Path]:
        """Give a name to write to that no other process uses, and that is gone afterwards."""
        part = final.with_name(f".{final.name}.{uuid.uuid4().hex[:12]}.part")
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            yield part
        except OSError as error:
            raise DownloadError(f"{final.resolve()} cannot be written: {_words_for(error, final, size)}") from error
        finally:
            part.unlink(missing_ok=True)

    def _fetch_patiently(self, source: str, part: Path, size: int) -> None:
        """Try until a file of `size` bytes is here, for `patience_s` at the most; an attempt resumes from the last one.

        Raises:
            DownloadError: it never came, or the failure is one that no patience mends.
            FlexibleChecksumError: it came, and is not what was stored.
            OSError: the cache's disk is full.
        """
        began, tries, told, arrived = time.monotonic(), 0, False, Arrived()
        while True:
            left = began + self.patience_s - time.monotonic()
            try:
                self._fetch_once(source, part, size, arrived, limit_s=max(1.0, min(self.download_timeout, left)))
                break
            except Exception as error:
                if isinstance(error, FlexibleChecksumError) or getattr(error, "errno", None) in DISK_FULL:
                    raise
                if never_heals(error):
                    raise DownloadError(f"{source} cannot be fetched: {_one_line(error)}") from error
                tries += 1
                renew_clients()
                waited = time.monotonic() - began
                left = self.patience_s - waited
                if left <= 0:
                    raise DownloadError(
                        f"{source} could not be fetched in {waited:.0f} s and {tries} attempts "
                        f"(download_patience_s: {self.patience_s:g}); the last failure: {_one_line(error)}"
                    ) from error
                pause = min(left, _jitter.uniform(0, min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**tries)))
                if not told and waited + pause >= TELL_AFTER_S:
                    log.warning(
                        "%s has not come for %.0f s; trying for %.0f s more: %s",
                        *(source, waited, left, _one_line(error)),
                    )
                    told = True
            self._pause(pause)
        if told:
            log.warning("%s came after %.0f s and %d attempts", source, time.monotonic() - began, tries + 1)

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self.is_stopping():
                raise StoppedError("the run is ending")
            time.sleep(min(left, 0.2))

    def _fetch_once(self, source: str, part: Path, size: int, arrived: Arrived, *, limit_s: float) -> None:
        """Write a file's bytes to `part`; raise whatever went wrong, TimeoutError after `limit_s`."""
        until = time.monotonic() + limit_s
        if arrived.bytes >= size > 0:
            return
        chunks = self._chunks(source, arrived)
        before = arrived.bytes
        with open(part, "ab" if before else "wb") as file:
            for chunk in chunks:
                file.write(chunk)
                file.flush()  # what has arrived is counted, and has to be there
                arrived.bytes += len(chunk)
                if time.monotonic() > until and arrived.bytes < size:
                    came = arrived.bytes - before
                    raise TimeoutError(f"{came:,} bytes came in {limit_s:.0f} s (download_timeout_s)")

    def _chunks(self, source: str, arrived: Arrived) -> Iterator[bytes]:
        """Return the bytes of a file: the rest of it, where it is still the one that has arrived in part, or all."""
        if not is_url(source):
            arrived.bytes = 0
            return _chunks_of_file(source)
        bucket, key = bucket_and_key(source)
        rest = {"Range": f"bytes={arrived.bytes}-", "IfMatch": arrived.etag} if arrived.bytes and arrived.etag else {}
        try:
            answer = without_refused_checksums(
                lambda: self._s3().get_object(Bucket=bucket, Key=key, **rest), renew=renew_clients
            )
        except ClientError:
            arrived.etag = "" if rest else arrived.etag  # it is another one now
            raise
        if "ContentRange" not in answer:
            arrived.bytes = 0
        arrived.etag = answer.get("ETag", "")
        chunks: Iterator[bytes] = answer["Body"].iter_chunks(READ_BYTES)
        return chunks

    def _s3(self) -> Any:
        """Return a client that tries once: upstream's tries 15 times, for the full timeout each."""
        silence = min(SILENCE_S, self.download_timeout)
        return s3_client(1, connect_s=min(CONNECT_S, silence), silence_s=silence)


def _chunks_of_file(source: str) -> Iterator[bytes]:
    with open(source, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def fault_of(path: Path, info: FileInfo, algorithm: str | None) -> str | None:
    """Return in which way a file is not the one of the index, or None if it is.

    Args:
        algorithm: hash to compare; None: only the size.
    """
    size = path.stat().st_size
    if size != info.bytes:
        return f"it has {size:,} bytes, index.json says {info.bytes:,}"
    if algorithm is None:
        return None
    expected = info.hashes.get(algorithm)
    if expected is None:
        return f"index.json has no {algorithm} for it, only {sorted(info.hashes)} (validate_hash)"
    seen = hash_of(path, algorithm)
    return None if seen == expected else f"its {algorithm} is {seen}, index.json says {expected}"


def hash_of(path: Path, algorithm: str) -> str:
    """Return a file's hash (hex), by xxhash or hashlib."""
    digest = getattr(xxhash, algorithm)() if algorithm in xxhash.algorithms_available else hashlib.new(algorithm)
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return str(digest.hexdigest())


def never_heals(error: Exception) -> bool:
    """Return whether an error stays the same however often the request is repeated."""
    if isinstance(error, ClientError):
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        return 300 <= status < 500 and not {code, str(status)} & set(HEALS_THOUGH_4XX)
    return isinstance(error, NoCredentialsError) or (isinstance(error, OSError) and error.errno in NEVER_HEALS)


def least_cache_bytes(
    shard_bytes: Sequence[int], *, samples: int, block_samples: int, canonical_nodes: int, readers: int
) -> int:
    """Return the bytes of the shards that a node reads from at a time; with a smaller cache each is fetched many times.

    Samples are shuffled within a block (streaming's py1e spreads them over up to 1.25 blocks), in each of the canonical
    nodes that this machine reads; and each reader fetches a shard ahead.

    Args:
        block_samples: shuffle_block_size, or 1 where nothing is shuffled.
        canonical_nodes: those of this machine.
        readers: loader processes of this machine.
    """
    a_block = math.ceil(1.25 * block_samples * len(shard_bytes) / samples) + 1
    return min(sum(shard_bytes), max(4, a_block * canonical_nodes + 2 * readers) * max(shard_bytes))


def _words_for(error: OSError, final: Path, size: int) -> str:
    if error.errno not in DISK_FULL:
        return f"{error.strerror or error}; choose another folder for the cache or correct its permissions"
    free = shutil.disk_usage(final.parent).free
    return (
        f"its disk is full ({error.strerror}): {free:,} bytes are free in {final.parent.resolve()}, {size:,} are "
        "needed; free some, put the cache on a larger disk, or set cache_limit_gb"
    )


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]


def _never() -> bool:
    return False
