"""Which place a location means: the one reading of `s3://bucket/key`, for the converter and the trainer alike.

A key is literal to its last character. `urllib.parse` cuts it at `#` and `?`, and takes `exp#1` and `exp#2` for one.
"""

from pathlib import Path

from imagestream.storage.errors import PlaceError
from imagestream.storage.local import LocalPlace
from imagestream.storage.protocol import Place


def open_place(location: str) -> Place:
    """Return the place at a local path or at `s3://bucket/prefix`.

    Raises:
        PlaceError: it is a URL of another kind, or names no bucket.
    """
    if not is_url(location):
        return LocalPlace(Path(location))
    try:
        bucket, prefix = bucket_and_key(location)
    except ValueError as error:
        raise PlaceError(str(error)) from None
    from imagestream.storage.s3 import S3Place  # here, since boto3 takes long to import for those who need no bucket

    return S3Place(bucket, prefix)


def is_url(location: str) -> bool:
    """Return whether a location is a URL of whatever kind, not a local path."""
    return "://" in location


def bucket_and_key(location: str) -> tuple[str, str]:
    """Return the bucket and the key, or prefix, of `s3://bucket/key`; slashes at the key's ends do not count.

    Raises:
        ValueError: it is a URL of another kind, or names no bucket.
    """
    scheme, _, rest = location.partition("://")
    bucket, _, key = rest.partition("/")
    if scheme != "s3" or not bucket:
        raise ValueError(f"{location} is neither a local folder nor s3://bucket/prefix")
    return bucket, key.strip("/")


def folder_and_name(location: str) -> tuple[str, str]:
    """Return the folder of a file, local or in a bucket, and the file's name."""
    folder, _, name = location.rpartition("/")
    return folder or ("/" if location.startswith("/") else "."), name
