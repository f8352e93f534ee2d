"""The one way to a client of S3: which server, how often it tries, and what becomes of it when keys are renewed.

S3_ENDPOINT_URL, the variable that Streaming and Composer use, selects another server than AWS; else boto3's own
settings apply (AWS_ENDPOINT_URL, profiles, roles).
"""

import functools
import os
from collections.abc import Callable
from typing import Any

import boto3
from botocore.config import Config

from imagestream.storage.s3_checksums import T
from imagestream.storage.s3_patience import patiently

# Uploads ride out minutes of throttling and about a minute of other errors: botocore's pauses grow to 20 s, from 1 s
# or, where it isn't throttling, from 50 ms.
ATTEMPTS = 16
CONNECT_S, SILENCE_S = 10.0, 60.0
CONNECTIONS = 32  # several reads and parts at once; of boto3's own ten they would be thrown away and made anew


def s3_client(attempts: int = ATTEMPTS, *, connect_s: float = CONNECT_S, silence_s: float = SILENCE_S) -> Any:
    """Return this process's client by the environment's settings of this moment.

    It takes a tenth of a second to make, so all that ask alike share it. A forked process gets one of its own: its
    parent's connections are no use to it.

    Args:
        attempts: of each request, the first one included.
        connect_s: seconds until a connection has to stand.
        silence_s: seconds without a byte before an attempt counts as failed.
    """
    settings = frozenset((name, value) for name, value in os.environ.items() if name.startswith(("AWS_", "S3_")))
    return _client(settings, os.getpid(), attempts, connect_s, silence_s)


@functools.cache
def _client(
    settings: frozenset[tuple[str, str]], process: int, attempts: int, connect_s: float, silence_s: float
) -> Any:
    config = Config(
        retries={"total_max_attempts": attempts, "mode": "standard"},
        connect_timeout=connect_s,
        read_timeout=silence_s,
        max_pool_connections=CONNECTIONS,
    )
    # A session of its own: boto3's default one keeps the keys that it has once read.
    return boto3.Session().client("s3", endpoint_url=dict(settings).get("S3_ENDPOINT_URL") or None, config=config)


def renew_clients() -> None:
    """Have each further request use a new client, which reads keys and settings afresh."""
    _client.cache_clear()


def ask_s3(request: Callable[[Any], T], *, attempts: int = ATTEMPTS, missing_passes: bool = False) -> T:
    """Return what a request, given a client, returns; with patience for keys that are being renewed."""
    return patiently(lambda: request(s3_client(attempts)), renew=renew_clients, missing_passes=missing_passes)


def all_pages(operation: str, *, attempts: int = ATTEMPTS, **arguments: Any) -> list[dict[str, Any]]:
    """Return every page of a listing."""
    return ask_s3(lambda client: list(client.get_paginator(operation).paginate(**arguments)), attempts=attempts)
