"""A place in a bucket of S3, on AWS or any other server of that protocol. An upload is atomic by itself."""

import contextlib
import errno
import io
import posixpath
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.exceptions import BotoCoreError, ClientError, ReadTimeoutError, ResponseStreamingError
from urllib3.exceptions import HTTPError

from imagestream.storage.errors import PlaceError, all_of, has_changed
from imagestream.storage.protocol import Check, Place, Stat, read_if_there
from imagestream.storage.s3_checksums import T, s3_answer
from imagestream.storage.s3_client import ATTEMPTS, all_pages, ask_s3, s3_client
from imagestream.storage.s3_patience import has_worked

FIRST_LOOK_ATTEMPTS = 9  # what is stored is offered more often; a dead endpoint, met at the start, is told of sooner
REACH_ATTEMPTS = 3  # so that a dead endpoint or a wrong key shows within seconds
READ_ATTEMPTS = 8  # of one answer that breaks off; about a minute and a half in all
ANSWER_LOST = (ResponseStreamingError, ReadTimeoutError, HTTPError)
MISSING = ("NoSuchKey", "404")
# Google's storage lacks it; older servers want an MD5 for it (MissingContentMD5), where boto3 now sends a CRC.
BULK_DELETE_REFUSED = {400, 403, 405, 411, 501}
MOST_DELETED_AT_ONCE = 1000  # the most that one request may name
PART_BYTES = 16 << 20  # of `write`, whose data is in memory
IN_PARTS = TransferConfig(multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=4)
TRANSFER = TransferConfig(multipart_threshold=64 << 20, multipart_chunksize=64 << 20, max_concurrency=8)


SHOWN = {".html": "text/html; charset=utf-8", ".png": "image/png", ".json": "application/json"}
"""What a browser is to show where it lies, instead of downloading it, by the ending of its name."""


def kind_of(name: str) -> dict[str, str]:
    """Return what S3 is to say of a file's content."""
    return {"ContentType": kind} if (kind := SHOWN.get(posixpath.splitext(name)[1])) else {}


@dataclass(frozen=True, slots=True)
class S3Place:
    """A prefix of a bucket; S3_ENDPOINT_URL selects another server than AWS."""

    bucket: str
    prefix: str
    concurrency: ClassVar[int] = 16  # a small read takes 10 to 50 ms, nearly all of it waiting
    path: ClassVar[None] = None

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def names(self, folder: str = "") -> list[str]:
        start, pages = self._listed(folder)
        found = [item["Prefix"] for page in pages for item in page.get("CommonPrefixes", [])]
        found += [item["Key"] for page in pages for item in page.get("Contents", []) if item["Key"] != start]
        return sorted(key.removeprefix(start) for key in found)

    def sizes(self, folder: str = "") -> dict[str, int]:
        start, pages = self._listed(folder)
        found = {item["Key"].removeprefix(start): item["Size"] for page in pages for item in page.get("Contents", [])}
        found.pop("", None)  # a mark for the folder itself
        return dict(sorted(found.items()))

    def stat(self, name: str) -> Stat | None:
        try:
            return self._head("looked at", name)
        except PlaceError as error:
            if _is_missing(error):
                return None
            raise

    def read(
        self, name: str, offset_bytes: int = 0, size_bytes: int | None = None, *, seen: Stat | None = None
    ) -> bytes:
        if size_bytes == 0:
            return b""
        end = "" if size_bytes is None else str(offset_bytes + size_bytes - 1)
        part = {"Range": f"bytes={offset_bytes}-{end}"} if offset_bytes or end else {}
        part |= {"IfMatch": seen.tag} if seen is not None else {}
        for attempt in count(1):
            answer = self._answer(name, part)
            try:
                with self._named("read", name):
                    data = answer["Body"].read()
                return all_of(data, size_bytes or answer["ContentLength"], f"{self}/{name}")
            except PlaceError as error:  # boto3 repeats requests, but not the reading of an answer that breaks off
                if not isinstance(error.__cause__, ANSWER_LOST) or attempt == READ_ATTEMPTS:
                    raise
                time.sleep(random.uniform(0, 2 ** min(attempt, 4)))  # full jitter, 16 s at most
        raise AssertionError("not reached")

    def get(self, name: str, into: Path) -> Path:
        target = into / name

        def download(client: Any) -> None:
            client.download_file(self.bucket, self._key(name), str(target), Config=TRANSFER)

        self._ask("read", name, download, FIRST_LOOK_ATTEMPTS)
        return target

    def write(self, name: str, data: bytes) -> Stat:
        def upload(client: Any) -> None:
            client.upload_fileobj(io.BytesIO(data), self.bucket, self._key(name), kind_of(name), Config=IN_PARTS)

        self._ask("written", name, upload)
        return self._stored(name, len(data))

    def put(self, name: str, source: Path, *, check: Check | None = None) -> None:
        def upload(client: Any) -> None:
            with _checked_uploads(client, check):
                client.upload_file(str(source), self.bucket, self._key(name), kind_of(name), Config=TRANSFER)

        self._ask("written", name, upload)
        self._stored(name, source.stat().st_size)
        source.unlink()

    def create(self, name: str, data: bytes) -> bool:
        """As all do, by a conditional put.

        On a server that does not know it (501), the file is looked for, written and read back. Two that do this at one
        moment can both be told that there was none, and the later one's stays.
        """
        try:
            self._ask("written", name, lambda client: client.put_object(**self._at(name), Body=data, IfNoneMatch="*"))
        except PlaceError as error:
            status = _status_of(error)
            if status not in (412, 501):
                raise
            if status == 501:
                if self.stat(name) is not None:
                    return False
                self.write(name, data)
            return read_if_there(self, name) == data  # where the answer to an earlier attempt was lost, it is this one
        return True

    def rename(self, name: str, new: str) -> None:
        place = {"CopySource": self._at(name), **self._at(new)}
        self._ask("renamed", name, lambda client: client.copy(**place, Config=TRANSFER))
        self.delete([name])

    def delete(self, names: Sequence[str]) -> None:
        if len(names) == 1:
            self._ask("deleted", names[0], lambda client: client.delete_object(**self._at(names[0])))
            return
        for start in range(0, len(names), MOST_DELETED_AT_ONCE):
            self._delete_at_once(names[start : start + MOST_DELETED_AT_ONCE])

    def check_writable(self) -> None:
        def probe(client: Any) -> None:
            client.put_object(**self._at(".probe"), Body=b"x")
            client.delete_object(**self._at(".probe"))

        self._ask("written", "", probe, FIRST_LOOK_ATTEMPTS)

    def _listed(self, folder: str) -> tuple[str, list[dict[str, Any]]]:
        """Return what the keys of a folder begin with, and every page of their listing."""
        start = "".join(f"{part}/" for part in (self.prefix, folder.rstrip("/")) if part)
        where = {"Bucket": self.bucket, "Prefix": start, "Delimiter": "/"}
        with self._named("listed", folder):
            return start, all_pages(
                "list_objects_v2", attempts=ATTEMPTS if has_worked() else FIRST_LOOK_ATTEMPTS, **where
            )

    def _answer(self, name: str, part: dict[str, str]) -> dict[str, Any]:
        """Return S3's answer to a read, whose body is still to come."""
        try:
            return self._ask("read", name, lambda client: client.get_object(**self._at(name), **part))
        except PlaceError as error:
            if _is_missing(error):
                raise FileNotFoundError(errno.ENOENT, "no such object", f"{self}/{name}") from error
            if _status_of(error) == 412:
                raise has_changed(f"{self}/{name}") from error
            raise

    def _head(self, done: str, name: str, *, missing_passes: bool = False) -> Stat:
        answer = self._ask(
            done, name, lambda client: client.head_object(**self._at(name)), missing_passes=missing_passes
        )
        return Stat(int(answer["ContentLength"]), answer["LastModified"].timestamp(), str(answer["ETag"]))

    def _stored(self, name: str, size_bytes: int) -> Stat:
        """Return what the server says of a file that has just been uploaded, which must have all of its bytes."""
        stored = self._head("read after it was written", name, missing_passes=True)
        if stored.size_bytes != size_bytes:
            raise PlaceError(f"{self}/{name} has {stored.size_bytes:,} bytes after an upload of {size_bytes:,}")
        return stored

    def _delete_at_once(self, names: Sequence[str]) -> None:
        """Delete by one request; one by one where a server does not know that request."""
        request = {"Bucket": self.bucket, "Delete": {"Objects": [{"Key": self._key(n)} for n in names], "Quiet": True}}
        try:
            answer = self._ask("deleted", names[0], lambda client: client.delete_objects(**request))
        except PlaceError as error:
            if _status_of(error) not in BULK_DELETE_REFUSED:
                raise
            for name in names:  # in order: the index of a split goes before its shards
                self.delete([name])
            return
        for failed in answer.get("Errors", []):
            raise PlaceError(f"s3://{self.bucket}/{failed['Key']} cannot be deleted: {failed.get('Message')}")

    def _ask(
        self,
        done: str,
        name: str,
        request: Callable[[Any], T],
        attempts: int = ATTEMPTS,
        *,
        missing_passes: bool = False,
    ) -> T:
        """Return what a request, given a client, returns; with patience for keys that are being renewed."""
        with self._named(done, name):
            return ask_s3(request, attempts=attempts, missing_passes=missing_passes)

    @contextlib.contextmanager
    def _named(self, done: str, name: str) -> Iterator[None]:
        """Have an error name the file, and what could not be done with it."""
        try:
            yield
        except (BotoCoreError, ClientError, Boto3Error, HTTPError, ValueError) as error:  # of a malformed endpoint
            hint = "check the bucket's name, the credentials and S3_ENDPOINT_URL / AWS_ENDPOINT_URL"
            raise PlaceError(f"{self}/{name} cannot be {done}: {error}; {hint}{_hint(error)}") from error

    def _at(self, name: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self._key(name)}

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name


def reach(place: Place) -> None:
    """Raise PlaceError within seconds where a place in S3 cannot be reached; read nothing and write nothing."""
    assert isinstance(place, S3Place)
    with place._named("reached", ""):
        s3_client(REACH_ATTEMPTS).list_objects_v2(Bucket=place.bucket, Prefix=place._key(""), MaxKeys=1)


def abort_uploads(place: Place) -> int:
    """End uploads that killed writers have left unfinished, which cost money unseen; return how many."""
    assert isinstance(place, S3Place)
    with place._named("cleared of unfinished uploads", ""):
        pages = all_pages("list_multipart_uploads", Bucket=place.bucket, Prefix=place._key(""))
        uploads = [item for page in pages for item in page.get("Uploads", [])]
        for item in uploads:
            upload = {"Bucket": place.bucket, "Key": item["Key"], "UploadId": item["UploadId"]}
            ask_s3(partial(_abort, upload))
    return len(uploads)


def _abort(upload: dict[str, str], client: Any) -> None:
    client.abort_multipart_upload(**upload)


def _is_missing(error: PlaceError) -> bool:
    return isinstance(error.__cause__, ClientError) and error.__cause__.response["Error"]["Code"] in MISSING


def _status_of(error: PlaceError) -> int:
    """Return the HTTP status of S3's answer; 0 where there was none."""
    answer = error.__cause__
    return int(answer.response["ResponseMetadata"]["HTTPStatusCode"]) if isinstance(answer, ClientError) else 0


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


def _hint(error: Exception) -> str:
    """What to do about an error, to follow its text; empty where nothing is known."""
    answer = s3_answer(error)
    code = answer.response["Error"]["Code"] if isinstance(answer, ClientError) else type(error).__name__
    key_hint = ". Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the profile or role in use"
    hints = {
        "NoSuchBucket": ". Create the bucket first, or correct its name",
        "InvalidAccessKeyId": key_hint,
        "SignatureDoesNotMatch": key_hint,
        "AccessDenied": ". The key needs s3:ListBucket, s3:GetObject, s3:PutObject and s3:DeleteObject here",
        "NoCredentialsError": key_hint,
        "EndpointConnectionError": ". Check S3_ENDPOINT_URL and the network",
        "ConnectTimeoutError": ". Check S3_ENDPOINT_URL and the network",
    }
    return hints.get(code, "")
