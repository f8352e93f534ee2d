"""The output in an S3 bucket, on AWS or any other server of that protocol."""

import contextlib
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any

from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.exceptions import BotoCoreError, ClientError

from imagestream.storage.errors import OutputError
from imagestream.storage.s3_client import all_pages, ask_s3, s3_client

FIRST_LOOK_ATTEMPTS = 3  # so that a dead endpoint or a wrong key shows within seconds
# Google's storage lacks it; older servers want an MD5 for it (MissingContentMD5), where boto3 now sends a CRC.
BULK_DELETE_REFUSED = {400, 403, 405, 411, 501}
PART_BYTES = 16 * 1024**2
_IN_PARTS = TransferConfig(multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=4)


@dataclass(frozen=True, slots=True)
class S3Output:
    """A prefix of an S3 bucket. An upload is atomic by itself, so there are no temporary names."""

    bucket: str
    prefix: str

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def check(self) -> None:
        with self._explained("reach", ""):
            s3_client(FIRST_LOOK_ATTEMPTS).list_objects_v2(Bucket=self.bucket, Prefix=self._key(""), MaxKeys=1)

    def sizes(self, folder: str) -> dict[str, int]:
        start = self._key(f"{folder}/" if folder else "")
        found: dict[str, int] = {}
        with self._explained("list", folder):
            for page in all_pages("list_objects_v2", Bucket=self.bucket, Prefix=start, Delimiter="/"):
                found |= {item["Key"].removeprefix(start): item["Size"] for item in page.get("Contents", [])}
        found.pop("", None)  # a mark for the folder itself
        return dict(sorted(found.items()))

    def read(self, name: str) -> bytes | None:
        with self._explained("read", name):
            try:
                content: bytes = ask_s3(
                    lambda client: client.get_object(Bucket=self.bucket, Key=self._key(name))["Body"].read()
                )
                return content
            except ClientError as error:
                if error.response["Error"]["Code"] == "NoSuchKey":
                    return None
                raise

    def write(self, name: str, data: bytes) -> str:
        # In parts above 16 MiB; each part carries a checksum, which the server verifies.
        with self._explained("write", name):
            ask_s3(
                lambda client: client.upload_fileobj(io.BytesIO(data), self.bucket, self._key(name), Config=_IN_PARTS)
            )
            answer = ask_s3(
                lambda client: client.head_object(Bucket=self.bucket, Key=self._key(name)), missing_passes=True
            )
        if answer["ContentLength"] != len(data):
            raise OutputError(
                f"{self._url(name)} has {answer['ContentLength']:,} bytes after the upload of {len(data):,}"
            )
        return str(answer["ETag"])

    def holds(self, name: str, size_bytes: int, receipt: str) -> bool:
        with self._explained("look at", name):
            answer = self._head(name)
        return answer is not None and (answer["ContentLength"], answer["ETag"]) == (size_bytes, receipt)

    def create(self, name: str, data: bytes) -> bool:
        with self._explained("write", name):
            try:
                ask_s3(
                    lambda client: client.put_object(
                        Bucket=self.bucket, Key=self._key(name), Body=data, IfNoneMatch="*"
                    )
                )
            except ClientError as error:
                status = error.response["ResponseMetadata"]["HTTPStatusCode"]
                if status not in (412, 501):
                    raise
                # A server that does not know conditional puts (501) is looked at, written to and read back. Two that do
                # this at one moment can both be told that there was none, and the later one's stays.
                if status == 501 and self.read(name) is None:
                    self.write(name, data)
                return self.read(name) == data  # it is there: by an attempt whose answer was lost, or by another
        return True

    def age_s(self, name: str) -> float | None:
        with self._explained("look at", name):
            answer = self._head(name)
        if answer is None:
            return None
        now = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
        return float((now - answer["LastModified"]).total_seconds())

    def abort_uploads(self) -> int:
        with self._explained("list the uploads of", ""):
            pages = all_pages("list_multipart_uploads", Bucket=self.bucket, Prefix=self._key(""))
            uploads = [(item["Key"], item["UploadId"]) for page in pages for item in page.get("Uploads", [])]
            for key, upload_id in uploads:
                upload = {"Bucket": self.bucket, "Key": key, "UploadId": upload_id}
                ask_s3(partial(_call, "abort_multipart_upload", upload))
        return len(uploads)

    def delete(self, names: Sequence[str]) -> None:
        for start in range(0, len(names), 1000):  # the most that one request may name
            objects = [{"Key": self._key(name)} for name in names[start : start + 1000]]
            with self._explained("delete", names[start]):
                failures = self._delete_at_once(objects)
            for failed in failures:
                raise OutputError(f"cannot delete s3://{self.bucket}/{failed['Key']}: {failed.get('Message')}")

    def _delete_at_once(self, objects: Sequence[dict[str, str]]) -> list[dict[str, Any]]:
        """Return what could not be deleted by one request; one by one where a server does not know that request."""
        request = {"Bucket": self.bucket, "Delete": {"Objects": objects, "Quiet": True}}
        try:
            return list(ask_s3(partial(_call, "delete_objects", request)).get("Errors", []))
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] not in BULK_DELETE_REFUSED:
                raise
        for each in objects:  # in order: the index of a split goes before its shards
            ask_s3(partial(_call, "delete_object", {"Bucket": self.bucket, **each}))
        return []

    def _head(self, name: str) -> dict[str, Any] | None:
        try:
            answer: dict[str, Any] = ask_s3(lambda client: client.head_object(Bucket=self.bucket, Key=self._key(name)))
            return answer
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                return None
            raise

    def _url(self, name: str) -> str:
        return f"s3://{self.bucket}/{self._key(name)}"

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name

    @contextlib.contextmanager
    def _explained(self, verb: str, name: str) -> Iterator[None]:
        try:
            yield
        except (BotoCoreError, Boto3Error, ClientError, ValueError) as error:  # ValueError: a malformed endpoint
            place = os.environ.get("S3_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT_URL") or "AWS"
            raise OutputError(f"cannot {verb} {self._url(name)} at {place}: {error}{s3_hint(error)}") from error


def _call(operation: str, arguments: dict[str, Any], client: Any) -> Any:
    return getattr(client, operation)(**arguments)


def s3_hint(error: Exception) -> str:
    """What to do about an error, to follow its text; empty where nothing is known."""
    code = getattr(error, "response", {}).get("Error", {}).get("Code", type(error).__name__)
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
