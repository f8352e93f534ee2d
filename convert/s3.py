"""The output in an S3 bucket, on AWS or any other server of that protocol."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from convert.outputs import OutputError
from convert.shards import is_our_name

# Uploads ride out several minutes of throttling (botocore's standard mode waits up to 20 s between attempts),
# but the first look at the bucket says within seconds that an endpoint is dead or a key is wrong.
UPLOAD_ATTEMPTS = 10
FIRST_LOOK_ATTEMPTS = 2
CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 60


@dataclass(frozen=True, slots=True)
class S3Output:
    """A prefix of an S3 bucket. A put is atomic by itself, so there are no temporary names.

    S3_ENDPOINT_URL, the variable that streaming and composer use, selects another server than AWS; else
    boto3's own settings apply (AWS_ENDPOINT_URL, profiles, roles).
    """

    bucket: str
    prefix: str

    def check(self) -> None:
        with self._explained("reach", ""):
            _s3_client(FIRST_LOOK_ATTEMPTS).list_objects_v2(Bucket=self.bucket, Prefix=self._key(""), MaxKeys=1)

    def our_files(self, split: str) -> list[str]:
        folder = self._key(f"{split}/")
        with self._explained("list", split):
            pages = _s3_client().get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=folder)
            keys = [item["Key"] for page in pages for item in page.get("Contents", [])]
        return sorted(name for name in (key.removeprefix(folder) for key in keys) if is_our_name(name))

    def read(self, name: str) -> bytes | None:
        with self._explained("read", name):
            try:
                content: bytes = _s3_client().get_object(Bucket=self.bucket, Key=self._key(name))["Body"].read()
                return content
            except ClientError as error:
                if error.response["Error"]["Code"] == "NoSuchKey":
                    return None
                raise

    def write(self, name: str, data: bytes) -> None:
        with self._explained("write", name):  # boto3 sends a checksum along, which the server verifies
            _s3_client().put_object(Bucket=self.bucket, Key=self._key(name), Body=data)

    def delete(self, names: Sequence[str]) -> None:
        for start in range(0, len(names), 1000):  # the most that one request may name
            objects = [{"Key": self._key(name)} for name in names[start : start + 1000]]
            with self._explained("delete", names[start]):
                answer = _s3_client().delete_objects(Bucket=self.bucket, Delete={"Objects": objects, "Quiet": True})
            for failed in answer.get("Errors", []):
                raise OutputError(f"cannot delete s3://{self.bucket}/{failed['Key']}: {failed.get('Message')}")

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name

    @contextlib.contextmanager
    def _explained(self, verb: str, name: str) -> Iterator[None]:
        try:
            yield
        except (BotoCoreError, ClientError, ValueError) as error:  # ValueError: a malformed endpoint
            place = os.environ.get("S3_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT_URL") or "AWS"
            raise OutputError(
                f"cannot {verb} s3://{self.bucket}/{self._key(name)} at {place}: {error}{_s3_hint(error)}"
            ) from error


@lru_cache(maxsize=2)
def _s3_client(attempts: int = UPLOAD_ATTEMPTS) -> Any:
    """A client of this process's own: boto3's do not survive a fork or a pickle."""
    config = Config(
        retries={"max_attempts": attempts, "mode": "standard"},
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
    )
    return boto3.client("s3", endpoint_url=os.environ.get("S3_ENDPOINT_URL") or None, config=config)


def _s3_hint(error: Exception) -> str:
    code = getattr(error, "response", {}).get("Error", {}).get("Code", type(error).__name__)
    key_hint = ". Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the profile or role in use"
    hints = {
        "NoSuchBucket": ". Create the bucket first, or correct --out",
        "InvalidAccessKeyId": key_hint,
        "SignatureDoesNotMatch": key_hint,
        "AccessDenied": ". The key needs s3:ListBucket, s3:GetObject, s3:PutObject and s3:DeleteObject here",
        "NoCredentialsError": key_hint,
        "EndpointConnectionError": ". Check S3_ENDPOINT_URL and the network",
        "ConnectTimeoutError": ". Check S3_ENDPOINT_URL and the network",
    }
    return hints.get(code, "")
