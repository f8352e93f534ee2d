"""A shard is fetched patiently, compared with the index, and only then there."""

import errno
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from botocore.exceptions import ClientError, EndpointConnectionError, FlexibleChecksumError, NoCredentialsError
from streaming.base.compression import compress
from streaming.base.format import FileInfo
from streaming.base.format.mds.reader import MDSReader

from imagestream.data import downloads
from imagestream.data.downloads import (
    Arrived,
    CheckedStream,
    DamagedShardError,
    DownloadError,
    StoppedError,
    least_cache_bytes,
)
from tests.fault_proxy import FaultProxy, Request
from tests.s3_server import S3Server

CONTENT = b"shard" * 1000
INFO = FileInfo("shard.00000.mds", len(CONTENT), {"xxh64": xxhash.xxh64(CONTENT).hexdigest()})


def stream(tmp_path: Path, *, remote: bool | str = True, **more: Any) -> CheckedStream:
    (tmp_path / "remote").mkdir(exist_ok=True)
    (tmp_path / "local").mkdir(exist_ok=True)
    (tmp_path / "remote" / INFO.basename).write_bytes(CONTENT)
    options: dict[str, Any] = {
        "remote": remote if isinstance(remote, str) else str(tmp_path / "remote") if remote else None,
        "local": str(tmp_path / "local"),
        "validate_hash": "xxh64",
        "download_timeout": 5.0,
        "keep_zip": False,
        "patience_s": 1.0,
        "hash_found": True,
        "empty_cache": False,
    }
    return CheckedStream(**options | more)


def test_a_shard_gets_its_name_once_it_is_whole(tmp_path: Path) -> None:
    ours = stream(tmp_path)
    assert ours._prepare_shard_part(INFO) == len(CONTENT)
    assert [path.name for path in (tmp_path / "local").iterdir()] == [INFO.basename]
    assert (tmp_path / "local" / INFO.basename).read_bytes() == CONTENT


@pytest.mark.parametrize("damaged", [CONTENT[:-1], CONTENT[:-1] + b"x", b""])
def test_a_shard_that_is_damaged_at_its_source_is_refused(tmp_path: Path, damaged: bytes) -> None:
    ours = stream(tmp_path)
    (tmp_path / "remote" / INFO.basename).write_bytes(damaged)
    with pytest.raises(DamagedShardError, match=r"shard.00000.mds is damaged: .*, in each of 3 downloads; copy or"):
        ours._prepare_shard_part(INFO)
    assert list((tmp_path / "local").iterdir()) == []


def test_a_found_shard_is_hashed_unless_told_otherwise_and_the_only_copy_is_never_deleted(tmp_path: Path) -> None:
    path = tmp_path / "local" / INFO.basename
    for hash_found in (True, False):
        ours = stream(tmp_path, hash_found=hash_found)
        path.write_bytes(CONTENT[:-1] + b"x")
        ours._prepare_shard_part(INFO)
        assert (path.read_bytes() == CONTENT) == hash_found
        path.write_bytes(CONTENT[:-1])  # a wrong size is noticed in any case
        ours._prepare_shard_part(INFO)
        assert path.read_bytes() == CONTENT
    ours = stream(tmp_path, remote=False)
    path.write_bytes(CONTENT[:-1] + b"x")
    with pytest.raises(DamagedShardError, match=r"its xxh64 is [0-9a-f]{16}, index.json says [0-9a-f]{16}; copy or"):
        ours._prepare_shard_part(INFO)
    assert path.exists()
    path.unlink()
    with pytest.raises(DownloadError, match=r"shard.00000.mds is missing, though index.json lists it"):
        ours._prepare_shard_part(INFO)


@pytest.mark.parametrize("compression", ["zstd", "gz", "bz2", "br", "snappy"])
def test_a_compressed_shard_is_unpacked_to_the_size_of_the_index_and_no_further(
    tmp_path: Path, compression: str
) -> None:
    for raw, whole in ((CONTENT, True), (bytes(1 << 24), False)):
        packed = compress(compression, raw)
        zipped = FileInfo(f"{INFO.basename}.{compression}", len(packed), {"xxh64": xxhash.xxh64(packed).hexdigest()})
        ours = stream(tmp_path)
        (tmp_path / "remote" / zipped.basename).write_bytes(packed)
        if whole:
            assert ours._prepare_shard_part(INFO, zipped, compression) == len(CONTENT)
            assert (tmp_path / "local" / INFO.basename).read_bytes() == CONTENT
            (tmp_path / "local" / INFO.basename).unlink()
        else:
            with pytest.raises(DamagedShardError, match=r"it unpacks to .* bytes, index.json says 5,000; convert it"):
                ours._prepare_shard_part(INFO, zipped, compression)
            assert not (tmp_path / "local" / INFO.basename).exists()


@pytest.mark.parametrize("empty_cache", [False, True])
def test_a_split_that_is_a_link_out_of_the_cache_is_refused_and_not_followed(tmp_path: Path, empty_cache: bool) -> None:
    precious = tmp_path / "precious" / INFO.basename
    precious.parent.mkdir()
    precious.write_bytes(b"mine")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/train").symlink_to(precious.parent)
    ours = stream(tmp_path, empty_cache=empty_cache, local=str(tmp_path / "cache"), split="train")
    shard = MDSReader(ours.local, "train", [], [], [], None, [], INFO, 1, None, None)
    with pytest.raises(
        DownloadError, match=r"cache/train is a link to .*/precious, outside of the cache .*/cache/train; remove the"
    ):
        ours.set_up_local([shard], np.zeros(1, np.int64))
        ours._prepare_shard_part(INFO)
    assert precious.read_bytes() == b"mine"


@pytest.mark.parametrize("empty_cache", [False, True])
def test_a_link_in_the_cache_that_leads_out_of_it_is_refused_and_not_followed(
    tmp_path: Path, empty_cache: bool
) -> None:
    precious = tmp_path / "precious" / INFO.basename
    precious.parent.mkdir()
    precious.write_bytes(b"mine")
    info = FileInfo(f"part0/{INFO.basename}", INFO.bytes, INFO.hashes)
    ours = stream(tmp_path, empty_cache=empty_cache)
    (tmp_path / "remote/part0").mkdir()
    (tmp_path / "remote" / info.basename).write_bytes(CONTENT)
    (tmp_path / "local/part0").symlink_to(precious.parent)
    shard = MDSReader(ours.local, "", [], [], [], None, [], info, 1, None, None)
    with pytest.raises(
        DownloadError, match=r"part0 is a link to .*/precious, outside of the cache .*; remove the link"
    ):
        ours.set_up_local([shard], np.zeros(1, np.int64))
        ours._prepare_shard_part(info)
    assert precious.read_bytes() == b"mine"
    (tmp_path / "local/part0").unlink()
    ours._prepare_shard_part(info)
    assert (tmp_path / "local" / info.basename).read_bytes() == CONTENT


def test_a_full_disk_is_named_with_what_is_free_and_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """/dev/full refuses every byte, as the kernel does on a full disk."""
    ours = stream(tmp_path, patience_s=100.0)
    name = uuid.uuid4()
    monkeypatch.setattr(uuid, "uuid4", lambda: name)
    (tmp_path / "local" / f".{INFO.basename}.{name.hex[:12]}.part").symlink_to("/dev/full")
    wanted = (
        rf"{INFO.basename} cannot be written: its disk is full \(No space left on device\): [\d,]+ bytes are free in "
        rf"{tmp_path}/local, 5,000 are needed; free some, put the cache on a "
        "larger disk, or set cache_limit_gb"
    )
    with pytest.raises(DownloadError, match=wanted):
        ours._prepare_shard_part(INFO)
    assert list((tmp_path / "local").iterdir()) == []


def client_error(code: str, status: int) -> ClientError:
    answer: Any = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(answer, "GetObject")


@pytest.mark.parametrize(
    ("error", "never"),
    [
        (client_error("AccessDenied", 403), True),
        (client_error("NoSuchKey", 404), True),
        (client_error("NoSuchBucket", 404), True),
        (client_error("PermanentRedirect", 301), True),
        (NoCredentialsError(), True),
        (FileNotFoundError(errno.ENOENT, "gone"), True),
        (client_error("SlowDown", 503), False),
        (client_error("InternalError", 500), False),
        (client_error("RequestTimeout", 400), False),
        (client_error("ExpiredToken", 400), False),
        (client_error("TooManyRequests", 429), False),
        (EndpointConnectionError(endpoint_url="x"), False),
        (OSError(errno.ESTALE, "stale"), False),
        (TimeoutError("slow"), False),
    ],
)
def test_only_what_can_heal_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, never: bool
) -> None:
    ours, tries = stream(tmp_path, patience_s=0.5), []

    def chunks(source: str, arrived: Arrived) -> Any:
        tries.append(source)
        raise error

    monkeypatch.setattr(ours, "_chunks", chunks)
    monkeypatch.setattr(downloads, "FIRST_PAUSE_S", 0.01)
    with pytest.raises(DownloadError, match="cannot be fetched: " if never else r"in \d s and \d+ attempts"):
        ours._prepare_shard_part(INFO)
    assert (len(tries) == 1) == never


def test_a_transfer_that_s3_itself_finds_damaged_is_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, answers = stream(tmp_path), [FlexibleChecksumError(error_msg="Expected checksum"), None]
    whole = ours._chunks

    def chunks(source: str, arrived: Arrived) -> Any:
        answer = answers.pop(0)
        if answer:
            raise answer
        return whole(source, arrived)

    monkeypatch.setattr(ours, "_chunks", chunks)
    ours._prepare_shard_part(INFO)
    assert answers == []


def test_a_slow_transfer_counts_as_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = stream(tmp_path, patience_s=0.1)
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr("imagestream.data.downloads.time.monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(downloads, "CHUNK_BYTES", 1000)
    with pytest.raises(DownloadError, match=r"bytes came in 1 s \(download_timeout_s\)"):
        ours._prepare_shard_part(INFO)


def test_a_file_that_is_complete_is_kept_though_its_last_byte_came_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, clock = stream(tmp_path), iter(range(0, 1000, 10))
    monkeypatch.setattr("imagestream.data.downloads.time.monotonic", lambda: float(next(clock)))
    ours._prepare_shard_part(INFO)
    assert (tmp_path / "local" / INFO.basename).read_bytes() == CONTENT


LARGE = bytes(range(256)) * 800  # 200 KB
LARGE_INFO = FileInfo("shard.00000.mds", len(LARGE), {"xxh64": xxhash.xxh64(LARGE).hexdigest()})


@pytest.fixture
def through_proxy(
    s3_server: S3Server, s3_folder: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[FaultProxy, str]]:
    """A proxy before the S3 server, and a folder in it with one large file."""
    put = s3_server.client.put_object
    put(Bucket=s3_server.bucket, Key=f"{s3_folder.split('/', 3)[3]}/{LARGE_INFO.basename}", Body=LARGE)
    with FaultProxy(s3_server.port).running() as proxy:
        for name, value in s3_server.env_through(proxy.endpoint_url).items():
            monkeypatch.setenv(name, value)
        yield proxy, s3_folder


def starts(proxy: FaultProxy) -> list[int]:
    """At which byte each request for a file began."""
    return [int(request.range.removeprefix("bytes=").removesuffix("-") or 0) for request, _ in proxy.seen]


def test_a_slow_but_steady_transfer_goes_on_where_it_was(
    tmp_path: Path, through_proxy: tuple[FaultProxy, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would take 4 s; an attempt may take one. The limit is looked at often enough for that."""
    proxy, folder = through_proxy
    proxy.choose = lambda request: "drip:50000"
    monkeypatch.setattr(downloads, "FIRST_PAUSE_S", 0.01)
    stream(tmp_path, remote=folder, patience_s=60.0, download_timeout=1.0)._prepare_shard_part(LARGE_INFO)
    assert (tmp_path / "local" / INFO.basename).read_bytes() == LARGE
    begun = starts(proxy)  # on a busy machine an attempt may end before its first byte
    assert len(set(begun)) >= 3 and begun[0] == 0 and begun == sorted(begun), begun


def test_a_drip_that_is_too_slow_ends_when_patience_does(
    tmp_path: Path, through_proxy: tuple[FaultProxy, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, folder = through_proxy
    proxy.choose = lambda request: "drip:40000"
    began = time.monotonic()
    with pytest.raises(DownloadError, match=r"bytes came in 1 s \(download_timeout_s\)"):
        stream(tmp_path, remote=folder, patience_s=3.0, download_timeout=1.0)._prepare_shard_part(LARGE_INFO)
    assert time.monotonic() - began < 3 + 2 * downloads.READ_BYTES / 40_000 + 10


def test_a_file_that_changes_between_two_attempts_is_fetched_from_its_beginning(
    tmp_path: Path, s3_server: S3Server, through_proxy: tuple[FaultProxy, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, folder = through_proxy
    key = f"{folder.split('/', 3)[3]}/{LARGE_INFO.basename}"
    s3_server.client.put_object(Bucket=s3_server.bucket, Key=key, Body=b"x" * len(LARGE))

    def choose(request: Request) -> str:
        if request.range:
            s3_server.client.put_object(Bucket=s3_server.bucket, Key=key, Body=LARGE)
        return "" if request.number else "truncate"

    proxy.choose = choose
    monkeypatch.setattr(downloads, "FIRST_PAUSE_S", 0.01)
    stream(tmp_path, remote=folder, patience_s=30.0)._prepare_shard_part(LARGE_INFO)
    assert (tmp_path / "local" / INFO.basename).read_bytes() == LARGE
    assert [bool(start) for start in starts(proxy)] == [False, True, False]


def test_a_run_that_is_ending_does_not_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = stream(tmp_path, patience_s=1000.0)
    ours.is_stopping = lambda: True
    monkeypatch.setattr(ours, "_chunks", lambda source, arrived: (_ for _ in ()).throw(TimeoutError("slow")))
    with pytest.raises(StoppedError):
        ours._prepare_shard_part(INFO)


def test_the_least_cache_is_what_is_read_from_by_turns() -> None:
    shards = [100] * 50
    for block, nodes, readers, expected in [(1, 1, 1, 400), (10, 1, 1, 500), (10, 2, 4, 1400), (10**6, 1, 1, 5000)]:
        given = least_cache_bytes(shards, samples=500, block_samples=block, canonical_nodes=nodes, readers=readers)
        assert given == expected
