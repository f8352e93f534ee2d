"""Servers that refuse the checksums boto3 sends since 1.36: their requests go without.

boto3 adds a CRC to each upload, as a header or, over https, behind the body (a "trailer"); AWS checks it. Older servers
of the same protocol refuse such a request, each in its own words, and take it without. boto3's own switch is a pair of
environment variables. They are set here once a request has shown that it is needed, so that they hold for every client
made from then on, in worker processes and in Streaming too.
"""

import logging
import os
from collections.abc import Callable
from typing import Any, TypeVar

from botocore.exceptions import ClientError

logger = logging.getLogger("imagestream.storage.s3_checksums")

WITHOUT_CHECKSUMS = {
    "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
    "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
}
# What servers say to a checksum. All have other causes as well, so a refusal counts only if the same request passes
# without checksums.
REFUSALS = {
    "NotImplemented",  # older Ceph and MinIO
    "InvalidArgument",  # Backblaze: unsupported header 'x-amz-checksum-...'; Alibaba, Ceph: aws-chunked
    "InvalidRequest",
    "MissingContentLength",  # the body's length is in x-amz-decoded-content-length
    "XAmzContentSHA256Mismatch",  # STREAMING-UNSIGNED-PAYLOAD-TRAILER is taken for a hash
    "SignatureDoesNotMatch",  # Google's storage
}
# To DeleteObjects S3 requires a checksum, so boto3 always sends one; `S3Place.delete` deletes one by one where it is
# refused.
HAVE_CHECKSUMS = {"PutObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload", "GetObject"}
AWS = "AmazonS3"  # what AWS calls itself in the header Server

T = TypeVar("T")
_told = False


def without_refused_checksums(request: Callable[[], T], *, renew: Callable[[], None]) -> T:
    """Return what a request to S3 returns; if the server refuses it for its checksums, what it returns without.

    Args:
        renew: has the next request use a new client, which reads boto3's settings afresh.
    """
    try:
        return request()
    except Exception as error:
        refusal = s3_answer(error)
        if not _may_be_about_checksums(refusal):
            raise
    before = {name: os.environ.get(name) for name in WITHOUT_CHECKSUMS}
    os.environ.update(WITHOUT_CHECKSUMS)
    renew()
    try:
        answer = request()
    except Exception:
        _restore(before)
        renew()
        raise
    if before != WITHOUT_CHECKSUMS:
        _tell(refusal)
    return answer


def s3_answer(error: BaseException) -> BaseException:
    """Return S3's own answer: boto3's `upload_file` makes a text of it, and raises that."""
    while not isinstance(error, ClientError) and error.__context__ is not None:
        error = error.__context__
    return error


def _may_be_about_checksums(error: BaseException) -> bool:
    if not isinstance(error, ClientError) or error.operation_name not in HAVE_CHECKSUMS:
        return False
    answer: Any = error.response
    server = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("server")
    return server != AWS and answer.get("Error", {}).get("Code") in REFUSALS


def _restore(before: dict[str, str | None]) -> None:
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _tell(refusal: BaseException) -> None:
    """Say it once; of a run's ranks, which all find it out, the first says it."""
    global _told
    if not _told and os.environ.get("RANK", "0") == "0":
        logger.warning(
            "warning: this S3 server refuses boto3's checksums (%s); from now on requests go without them, as with "
            "AWS_REQUEST_CHECKSUM_CALCULATION=when_required. Each is still signed over the SHA-256 of its body, and "
            "shards and checkpoints have hashes of their own",
            " ".join(str(refusal).split()),
        )
    _told = True
