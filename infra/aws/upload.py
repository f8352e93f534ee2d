"""A dataset's way into the bucket: resumable, checked by hash, and whole only at the end."""

import base64
import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError
from tqdm import tqdm

from infra.aws.spending import RefusedError

THREADS = 8
# What says that a dataset is there; last, so that half of one is never taken for a whole one.
LAST = ("index.json", "manifest.json")


def files_of(folder: Path) -> list[Path]:
    """The dataset's files, its indexes last.

    Raises:
        RefusedError: it is not one.
    """
    if not list(folder.rglob("index.json")):
        raise RefusedError(f"{folder} holds no index.json; give the folder that convert/imagenet_to_mds.py wrote")
    found = [path for path in folder.rglob("*") if path.is_file() and ".convert" not in path.parts]
    return sorted(found, key=lambda path: (path.name in LAST, str(path)))


def upload(s3: Any, folder: Path, bucket: str, prefix: str) -> tuple[int, int]:
    """Bring the bucket's copy up to date, then compare all of it; return the files sent and those that were there.

    S3 checks each file against the MD5 sent along, and its ETag is that MD5 again (SSE-S3, one part).

    Raises:
        RefusedError: the bucket's copy is not the folder's after all.
    """
    files = files_of(folder)
    heads = [path for path in files if path.name not in LAST]
    sent = 0
    with ThreadPoolExecutor(THREADS) as pool:
        for part in (heads, files[len(heads) :]):
            was_sent = _each(pool, part, lambda path: _send(s3, path, bucket, _key(prefix, folder, path)), "upload")
            sent += sum(times for _, times in was_sent)
        compared = _each(pool, files, lambda path: _same(s3, path, bucket, prefix, folder), "compare")
        wrong = [path for path, is_same in compared if not is_same]
    if wrong:
        raise RefusedError(
            f"s3://{bucket}/{prefix} differs from {folder} after the upload: {', '.join(map(str, wrong[:5]))}"
        )
    foreign = sorted(set(_listed(s3, bucket, prefix)) - {_key(prefix, folder, path) for path in files})
    if foreign:
        raise RefusedError(
            f"s3://{bucket}/{prefix} also holds {len(foreign)} files that are not in {folder}, such as {foreign[0]}; "
            "remove them, or give another --prefix"
        )
    return sent, len(files) - sent


def _each(
    pool: ThreadPoolExecutor, files: Sequence[Path], work: Callable[[Path], int], words: str
) -> Iterator[tuple[Path, int]]:
    """Yield each file with what `work` returns of it; on a terminal, a bar shows the bytes that are done."""
    total = sum(path.stat().st_size for path in files)
    with tqdm(total=total, desc=words, unit="B", unit_scale=True, disable=None) as bar:  # None: off without a terminal
        for path, found in zip(files, pool.map(work, files), strict=True):
            bar.update(path.stat().st_size)
            yield path, found


def _send(s3: Any, path: Path, bucket: str, key: str) -> int:
    """Upload one file unless it is there; return how many were sent."""
    body = path.read_bytes()  # a shard is some 64 MB
    digest = hashlib.md5(body, usedforsecurity=False)
    if _etag(s3, bucket, key) == digest.hexdigest():
        return 0
    s3.put_object(Bucket=bucket, Key=key, Body=body, ContentMD5=base64.b64encode(digest.digest()).decode())
    return 1


def _same(s3: Any, path: Path, bucket: str, prefix: str, folder: Path) -> bool:
    digest = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    return _etag(s3, bucket, _key(prefix, folder, path)) == digest


def _etag(s3: Any, bucket: str, key: str) -> str:
    try:
        etag: str = s3.head_object(Bucket=bucket, Key=key)["ETag"]
    except ClientError as error:
        if error.response["Error"]["Code"] in ("404", "NoSuchKey"):
            return ""
        raise
    return etag.strip('"')


def _key(prefix: str, folder: Path, path: Path) -> str:
    return f"{prefix.strip('/')}/{path.relative_to(folder).as_posix()}"


def _listed(s3: Any, bucket: str, prefix: str) -> Iterator[str]:
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix.strip('/')}/"):
        for item in page.get("Contents", []):
            if not item["Key"].endswith("/"):
                yield item["Key"]
