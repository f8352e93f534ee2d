"""What S3 refuses today and takes a moment later, above all because credentials have been renewed meanwhile.

boto3 reads keys from a file or the environment once for each client, so a client outlives the keys that it was made
with: those of a role are good for an hour. And botocore tries throttling and server errors again, but no answer of the
kinds below.
"""

import random
import threading
import time
from collections.abc import Callable
from typing import Any

from botocore.exceptions import (
    ClientError,
    ConfigParseError,
    CredentialRetrievalError,
    MetadataRetrievalError,
    NoCredentialsError,
    PartialCredentialsError,
)

from imagestream.storage.s3_checksums import T, s3_answer, without_refused_checksums

PATIENCE_S = 60.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 10.0  # bounds of the pauses, doubled each time, of which a random part is slept

KEY_CODES = {
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidToken",
    "TokenRefreshRequired",
    "InvalidAccessKeyId",
    "RequestTimeTooSkewed",
}
KEY_ERRORS = (  # a file that is just being written, or a service for a role's keys that does not answer
    NoCredentialsError,
    PartialCredentialsError,
    CredentialRetrievalError,
    MetadataRetrievalError,
    ConfigParseError,
)
PASSING_STATUSES = {307, 409}  # a redirect of a new bucket's name; another request is at work on the same object
_jitter = random.SystemRandom()
_worked = threading.Event()  # once a request of this process has succeeded: before, keys are wrong rather than old


def patiently(
    request: Callable[[], T],
    *,
    renew: Callable[[], None],
    missing_passes: bool = False,
) -> T:
    """Return what a request to S3 returns, after several attempts within PATIENCE_S if need be.

    A server that refuses checksums gets the request without them.

    Args:
        renew: called before each further attempt; has the request use a new client, which reads the keys afresh.
        missing_passes: whether 404 is tried again too: the request is for what has just been written.
    """
    until, pause = time.monotonic() + PATIENCE_S, FIRST_PAUSE_S
    while True:
        try:
            answer = without_refused_checksums(request, renew=renew)
        except Exception as error:
            passes = _passes(s3_answer(error), missing_passes=missing_passes)
            if not passes or time.monotonic() + pause > until:
                raise
            time.sleep(_jitter.uniform(pause / 2, pause))
            pause = min(2 * pause, LONGEST_PAUSE_S)
            renew()
        else:
            _worked.set()
            return answer


def has_worked() -> bool:
    """Return whether S3 has answered a request of this process as it should: address and keys are right then."""
    return _worked.is_set()


def _passes(error: BaseException, *, missing_passes: bool) -> bool:
    if isinstance(error, KEY_ERRORS):
        return has_worked()
    if not isinstance(error, ClientError):
        return False
    answer: Any = error.response
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
    if answer.get("Error", {}).get("Code") in KEY_CODES or _is_about_keys_without_words(error, status):
        return has_worked()
    return status in PASSING_STATUSES or (missing_passes and status == 404)


def _is_about_keys_without_words(error: ClientError, status: int | None) -> bool:
    """An answer to HEAD has no body, so it cannot say which of the codes it is about."""
    return error.operation_name.startswith("Head") and status in (400, 403)
