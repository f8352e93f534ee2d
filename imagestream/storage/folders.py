"""A folder that is on a disk or in S3: the few things that a run does with the place it saves to."""

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.exceptions import BotoCoreError, ClientError

from imagestream.storage.places import bucket_and_key, is_url
from imagestream.storage.s3_checksums import T
from imagestream.storage.s3_client import ATTEMPTS, ask_s3, s3_client
from imagestream.storage.s3_patience import has_worked

FIRST_LOOK_ATTEMPTS = 9  # what is stored is offered more often; a dead endpoint, met at the start, is told of sooner
TRANSFER = TransferConfig(multipart_threshold=64 << 20, multipart_chunksize=64 << 20, max_concurrency=8)


Check = Callable[[], None]
PART = ".part-"
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)


class FolderError(OSError):
    """The folder, bucket or one of its files cannot be read or written; the message names it."""


def cannot_be_written(path: Path, error: OSError, *, needed_bytes: int, final: str | None = None) -> FolderError:
    """Return the error for a file that the system would not take; of a full disk it says how full it is."""
    text = f"{final or path} cannot be written: {error.strerror or error}"
    if error.errno not in DISK_FULL:
        return FolderError(text)
    place = next(folder for folder in path.absolute().parents if folder.exists())
    free = shutil.disk_usage(place).free
    return FolderError(f"{text}; {free:,} bytes are free in {place.resolve()}, {needed_bytes:,} are needed")


class Folder(Protocol):
    """Where a run's files are kept. Names are relative and flat."""

    @property
    def path(self) -> Path | None:
        """Where it is on a disk; None in S3."""

    def names(self) -> list[str]:
        """Return the names of the files, sorted."""

    def read(self, name: str) -> bytes | None:
        """Return a small file, or None when there is none."""

    def put(self, name: str, source: Path, *, check: Check | None = None) -> None:
        """Move a finished local file here under `name`: whole or not at all.

        `check` is called at the last moment before it appears; what it raises prevents it.
        """

    def create(self, name: str, data: bytes) -> bool:
        """Write a small file, whole or not at all, if there is none of that name; return whether there was none."""

    def replace(self, name: str, data: bytes) -> None:
        """Write a small file, whole or not at all, whatever is there."""

    def get(self, name: str, into: Path) -> Path:
        """Return a local path of a file; `into` is a folder to download to, where that is needed."""

    def rename(self, name: str, new: str) -> None:
        """Give a file another name."""

    def remove(self, name: str) -> None:
        """Delete a file; it is no error when there is none."""

    def check_writable(self) -> None:
        """Write and delete a probe, so that a wrong key or a full disk shows before hours are spent."""


def open_folder(location: str) -> Folder:
    """Return the folder at a local path or at `s3://bucket/path`."""
    if not is_url(location):
        return LocalFolder(location)
    try:
        return S3Folder(location)
    except ValueError as error:
        raise FolderError(str(error)) from None


class LocalFolder:
    """A directory; a file in it is replaced by renaming a finished copy, never written in place."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def names(self) -> list[str]:
        return sorted(p.name for p in self.path.iterdir() if p.is_file()) if self.path.is_dir() else []

    def __str__(self) -> str:
        return str(self.path)

    def read(self, name: str) -> bytes | None:
        try:
            return (self.path / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        except OSError as error:
            raise FolderError(f"{self.path / name} cannot be read: {error.strerror}") from error

    def put(self, name: str, source: Path, *, check: Check | None = None) -> None:
        part, size = self._part_of(name), 0
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            size = source.stat().st_size
            shutil.move(source, part)
            _flush(part)  # before the check, for it can take seconds
            if check:
                check()
            os.replace(part, self.path / name)
            _flush(self.path)
        except FolderError:  # of the check
            raise
        except OSError as error:
            raise cannot_be_written(self.path / name, error, needed_bytes=size) from error
        finally:
            part.unlink(missing_ok=True)

    def create(self, name: str, data: bytes) -> bool:
        part = self._part_of(name)
        try:
            self._write(part, data)
            try:
                os.link(part, self.path / name)  # fails where the name exists, on NFS and Lustre too
            except FileExistsError:
                return part.stat().st_nlink == 2  # over NFS the answer to a link that was made can be lost
            except OSError as error:
                if error.errno not in NO_HARD_LINKS:
                    raise
                return self._create_without_link(name, data)
            _flush(self.path)
        except OSError as error:
            raise cannot_be_written(self.path / name, error, needed_bytes=len(data)) from error
        finally:
            part.unlink(missing_ok=True)
        return True

    def replace(self, name: str, data: bytes) -> None:
        part = self._part_of(name)
        try:
            self._write(part, data)
            os.replace(part, self.path / name)
            _flush(self.path)
        except OSError as error:
            raise cannot_be_written(self.path / name, error, needed_bytes=len(data)) from error
        finally:
            part.unlink(missing_ok=True)

    def get(self, name: str, into: Path) -> Path:
        return self.path / name

    def rename(self, name: str, new: str) -> None:
        try:
            os.replace(self.path / name, self.path / new)
        except OSError as error:
            raise FolderError(f"{self.path / name} cannot be renamed to {new}: {error.strerror}") from error

    def remove(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)

    def _part_of(self, name: str) -> Path:
        """Return a name of this call's own, in this folder, since a rename is atomic within a file system only."""
        return self.path / f"{PART}{uuid.uuid4().hex[:8]}-{name}"

    def _write(self, part: Path, data: bytes) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        part.write_bytes(data)
        _flush(part)

    def _create_without_link(self, name: str, data: bytes) -> bool:
        try:
            with open(self.path / name, "xb") as file:
                file.write(data)
        except FileExistsError:
            return False
        return True

    def check_writable(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / ".probe"
            probe.write_bytes(b"x")
            probe.unlink(missing_ok=True)  # another rank may have been quicker
        except OSError as error:
            raise FolderError(f"{self.path} is not writable: {error.strerror}") from error


class S3Folder:
    """A prefix in a bucket."""

    path = None

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        self.bucket, self.prefix = bucket_and_key(uri)

    def __str__(self) -> str:
        return self.uri

    @property
    def client(self) -> Any:
        """This process's client for a first look."""
        return s3_client(FIRST_LOOK_ATTEMPTS)

    def names(self) -> list[str]:
        where = {"Bucket": self.bucket, "Prefix": f"{self.prefix}/" if self.prefix else "", "Delimiter": "/"}
        pages = self._ask(
            "listed",
            "",
            lambda client: list(client.get_paginator("list_objects_v2").paginate(**where)),
            ATTEMPTS if has_worked() else FIRST_LOOK_ATTEMPTS,
        )
        keys = [item["Key"] for page in pages for item in page.get("Contents", [])]
        return sorted(key.rpartition("/")[2] for key in keys if not key.endswith("/"))  # "x/" marks an empty folder

    def read(self, name: str) -> bytes | None:
        def content(client: Any) -> bytes | None:
            try:
                return client.get_object(**self._at(name))["Body"].read()
            except ClientError as error:
                if error.response["Error"]["Code"] in ("NoSuchKey", "404"):
                    return None
                raise

        return self._ask("read", name, content)

    def put(self, name: str, source: Path, *, check: Check | None = None) -> None:
        def upload(client: Any) -> None:
            with _checked_uploads(client, check):
                client.upload_file(str(source), self.bucket, self._key(name), Config=TRANSFER)

        def stored_bytes(client: Any) -> int:
            return client.head_object(**self._at(name))["ContentLength"]

        self._ask("written", name, upload)
        stored = self._ask("read after it was written", name, stored_bytes, missing_passes=True)
        if stored != source.stat().st_size:
            raise FolderError(f"{self.uri}/{name} holds {stored} bytes after an upload of {source.stat().st_size}")
        source.unlink()

    def create(self, name: str, data: bytes) -> bool:
        """As all do, by a conditional put.

        On a server that does not know it (501), the file is looked for, written and read back. Two that do this at one
        moment can both be told that there was none, and the later one's stays.
        """

        try:
            self._ask("written", name, lambda client: client.put_object(**self._at(name), Body=data, IfNoneMatch="*"))
        except FolderError as error:
            status = _status_of(error.__cause__)
            if status not in (412, 501):
                raise
            if status == 501:
                if self.read(name) is not None:
                    return False
                self.replace(name, data)
            return self.read(name) == data  # where the answer to an earlier attempt was lost, it is this one
        return True

    def replace(self, name: str, data: bytes) -> None:
        self._ask("written", name, lambda client: client.put_object(**self._at(name), Body=data))

    def get(self, name: str, into: Path) -> Path:
        target = into / name
        self._ask(
            "read",
            name,
            lambda client: client.download_file(self.bucket, self._key(name), str(target), Config=TRANSFER),
            FIRST_LOOK_ATTEMPTS,
        )
        return target

    def rename(self, name: str, new: str) -> None:
        place = {"CopySource": self._at(name), "Bucket": self.bucket, "Key": self._key(new)}
        self._ask("renamed", name, lambda client: client.copy(**place, Config=TRANSFER))
        self.remove(name)

    def remove(self, name: str) -> None:
        self._ask("deleted", name, lambda client: client.delete_object(**self._at(name)))

    def check_writable(self) -> None:
        def probe(client: Any) -> None:
            client.put_object(**self._at(".probe"), Body=b"x")
            client.delete_object(**self._at(".probe"))

        self._ask("written", "", probe, FIRST_LOOK_ATTEMPTS)

    def _ask(
        self,
        verb: str,
        name: str,
        request: Callable[[Any], T],
        attempts: int = ATTEMPTS,
        *,
        missing_passes: bool = False,
    ) -> T:
        """Return what a request, given a client, returns; with patience for keys that are being renewed."""
        try:
            return ask_s3(request, attempts=attempts, missing_passes=missing_passes)
        except (BotoCoreError, ClientError, Boto3Error) as error:
            hint = "check the bucket's name, the credentials and S3_ENDPOINT_URL / AWS_ENDPOINT_URL"
            raise FolderError(f"{self.uri}/{name} cannot be {verb}: {error}; {hint}") from error

    def _at(self, name: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self._key(name)}

    def _key(self, name: str) -> str:
        name = name.replace(os.sep, "/")
        return f"{self.prefix}/{name}" if self.prefix else name


def _status_of(error: BaseException | None) -> int:
    """Return the HTTP status of S3's answer; 0 where there was none."""
    return int(error.response["ResponseMetadata"]["HTTPStatusCode"]) if isinstance(error, ClientError) else 0


@contextlib.contextmanager
def _checked_uploads(client: Any, check: Check | None) -> Iterator[None]:
    """Have a client call `check` just before each request by which an uploaded file appears."""

    def on_request(**_: Any) -> None:
        assert check
        check()

    requests = ("PutObject", "CompleteMultipartUpload") if check else ()
    for request in requests:
        client.meta.events.register(f"before-send.s3.{request}", on_request)
    try:
        yield
    finally:
        for request in requests:
            client.meta.events.unregister(f"before-send.s3.{request}", on_request)


def _flush(path: Path) -> None:
    """Have a file's or folder's content on its disk, so that a crash leaves the old file or the new one, whole."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
