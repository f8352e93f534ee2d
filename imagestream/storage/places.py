"""Which bucket and key a place means: the one reading of `s3://bucket/key`, for the converter and the trainer alike.

A key is literal to its last character. `urllib.parse` cuts it at `#` and `?`, and takes `exp#1` and `exp#2` for one.
"""


def is_url(place: str) -> bool:
    """Return whether a place is a URL of whatever kind, not a local path."""
    return "://" in place


def bucket_and_key(place: str) -> tuple[str, str]:
    """Return the bucket and the key, or prefix, of `s3://bucket/key`; slashes at the key's ends do not count.

    Raises:
        ValueError: it is a URL of another kind, or names no bucket.
    """
    scheme, _, rest = place.partition("://")
    bucket, _, key = rest.partition("/")
    if scheme != "s3" or not bucket:
        raise ValueError(f"{place} is neither a local folder nor s3://bucket/prefix")
    return bucket, key.strip("/")


def folder_and_name(place: str) -> tuple[str, str]:
    """Return the folder of a file, local or in a bucket, and the file's name."""
    folder, _, name = place.rpartition("/")
    return folder or ("/" if place.startswith("/") else "."), name
