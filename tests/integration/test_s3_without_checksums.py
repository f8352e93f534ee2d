"""Servers that refuse boto3's checksums, or to delete several objects at once, are used without."""

import json
import logging
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from boto3.s3.transfer import TransferConfig
from botocore.exceptions import ClientError

from imagestream.storage import s3, s3_checksums
from imagestream.storage.errors import PlaceError
from imagestream.storage.places import open_place
from imagestream.storage.s3 import S3Place, abort_uploads
from imagestream.storage.s3_checksums import REFUSALS, WITHOUT_CHECKSUMS, without_refused_checksums
from imagestream.storage.s3_client import renew_clients
from tests.fault_proxy import Fault, FaultProxy, Request
from tests.integration.converter import bucket_tree, convert, tree
from tests.integration.problem import command, what_must_match
from tests.integration.test_s3 import upload
from tests.processes import run, start
from tests.s3_server import S3Server
from train.resume.checkpoints import list_checkpoints

PART_BYTES = 5 << 20
SAID = "this S3 server refuses boto3's checksums"


def old_server(checksum: Fault, bulk_delete: Fault = "400:MissingContentMD5") -> Callable[[Request], Fault]:
    """What a server from before the checksums answers."""

    def choose(request: Request) -> Fault:
        if request.method == "POST" and request.path.endswith("?delete"):
            return bulk_delete
        return checksum if request.has_checksum else ""

    return choose


@pytest.fixture
def proxy(s3_server: S3Server) -> Iterator[FaultProxy]:
    with FaultProxy(s3_server.port).running() as proxy:
        yield proxy


@pytest.fixture
def through(s3_server: S3Server, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty folder, which this process reaches through the proxy with boto3's own settings."""
    for name, value in s3_server.env_through(proxy.endpoint_url).items():
        monkeypatch.setenv(name, value)
    for name in WITHOUT_CHECKSUMS:
        monkeypatch.setenv(name, "when_supported")
    monkeypatch.setattr(s3_checksums, "_told", False)
    renew_clients()
    yield f"s3://{s3_server.bucket}/{uuid.uuid4().hex}"
    renew_clients()


def stored_with_checksums(proxy: FaultProxy) -> list[bool]:
    """Of each upload that was let through, whether it had a checksum."""
    return [request.has_checksum for request, fault in proxy.seen if request.method == "PUT" and not fault]


@pytest.mark.s3
@pytest.mark.parametrize(
    "code",
    [
        "InvalidArgument",
        *(pytest.param(code, marks=pytest.mark.exhaustive) for code in sorted(REFUSALS - {"InvalidArgument"})),
    ],
)
def test_a_run_saves_to_a_server_that_refuses_checksums(
    proxy: FaultProxy,
    through: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    code: str,
) -> None:
    in_parts = TransferConfig(multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES)
    monkeypatch.setattr(s3, "TRANSFER", in_parts)
    proxy.choose = old_server(f"{'501' if code == 'NotImplemented' else '400'}:{code}")
    folder = open_place(through)
    folder.check_writable()
    assert [folder.create("owner", b"first"), folder.create("owner", b"second")] == [True, False]
    folder.write("run.json", b"{}")
    large = os.urandom(PART_BYTES + 1)
    for name, data in (("small.pt", b"small"), ("large.pt", large)):
        (tmp_path / name).write_bytes(data)
        folder.put(name, tmp_path / name)
        assert folder.get(name, tmp_path).read_bytes() == data
    folder.rename("small.pt", "damaged")
    folder.delete(["large.pt"])
    assert folder.names() == ["damaged", "owner", "run.json"]
    assert folder.read("owner") == b"first"
    assert [record.levelno for record in caplog.records if SAID in record.getMessage()] == [logging.WARNING]
    assert proxy.faults_given == 1 and not any(stored_with_checksums(proxy))


@pytest.mark.s3
@pytest.mark.parametrize(
    ("first", "bulk_delete"),
    [
        ("create", "501:NotImplemented"),
        pytest.param("write", "403:SignatureDoesNotMatch", marks=pytest.mark.exhaustive),
        pytest.param("write in parts", "400:MissingContentMD5", marks=pytest.mark.exhaustive),
    ],
)
def test_shards_go_to_a_server_that_refuses_checksums_and_to_delete_several_at_once(
    proxy: FaultProxy, through: str, caplog: pytest.LogCaptureFixture, first: str, bulk_delete: str
) -> None:
    proxy.choose = old_server("400:InvalidArgument", bulk_delete)
    bucket, _, prefix = through.removeprefix("s3://").partition("/")
    output, large = S3Place(bucket, prefix), os.urandom((16 << 20) + 1)
    works: dict[str, Callable[[], Any]] = {
        "create": lambda: output.create("lock", b"1"),
        "write": lambda: output.write("a", b"2"),
        "write in parts": lambda: output.write("b", large),
    }
    for name in sorted(works, key=lambda name: name != first):
        works[name]()
    assert output.read("b") == large and not output.create("lock", b"another")
    assert output.sizes("") == {"a": 1, "b": len(large), "lock": 1}
    output.delete(["a", "lock", "gone"])
    deleted = [request.path for request, _ in proxy.seen if request.method == "DELETE" and "?" not in request.path]
    assert [path.rpartition("/")[2] for path in deleted] == ["a", "lock", "gone"]
    assert output.sizes("") == {"b": len(large)} and abort_uploads(output) == 0
    assert sum(SAID in record.getMessage() for record in caplog.records) == 1
    assert not any(stored_with_checksums(proxy))


@pytest.mark.s3
@pytest.mark.parametrize("there", [False, True])
def test_a_converters_lock_needs_no_conditional_puts(proxy: FaultProxy, through: str, there: bool) -> None:
    bucket, _, prefix = through.removeprefix("s3://").partition("/")
    output = S3Place(bucket, prefix)
    if there:
        output.write("lock", b"first")
    proxy.choose = lambda request: "501" if "if-none-match" in request.headers or request.has_checksum else ""
    assert output.create("lock", b"second") is not there
    assert output.read("lock") == (b"first" if there else b"second")


@pytest.mark.s3
def test_objects_that_may_not_be_deleted_are_named_one_by_one_too(proxy: FaultProxy, through: str) -> None:
    bucket, _, prefix = through.removeprefix("s3://").partition("/")
    output = S3Place(bucket, prefix)
    output.write("a", b"1")
    proxy.choose = lambda request: "403:AccessDenied" if request.method in ("POST", "DELETE") else ""
    with pytest.raises(PlaceError, match=r"/a cannot be deleted: .*AccessDenied.*needs s3:ListBucket"):
        output.delete(["a"])


@pytest.mark.s3
def test_checksums_stay_where_something_else_was_refused(
    proxy: FaultProxy, through: str, caplog: pytest.LogCaptureFixture
) -> None:
    proxy.choose = lambda request: "501" if "if-none-match" in request.headers else ""
    assert open_place(through).create("owner", b"1")  # by writing and reading back
    proxy.choose = lambda request: "403:SignatureDoesNotMatch" if request.path.endswith("/wrong") else ""
    with pytest.raises(OSError, match="SignatureDoesNotMatch"):
        open_place(through).write("wrong", b"1")
    open_place(through).write("right", b"1")
    assert stored_with_checksums(proxy) == [True, True] and not caplog.records
    assert {os.environ[name] for name in WITHOUT_CHECKSUMS} == {"when_supported"}


def test_aws_is_never_asked_without_checksums() -> None:
    tries = []

    def request() -> None:
        tries.append(1)
        headers = {"server": "AmazonS3"}
        answer: Any = {"Error": {"Code": "InvalidArgument"}, "ResponseMetadata": {"HTTPHeaders": headers}}
        raise ClientError(answer, "PutObject")

    with pytest.raises(ClientError):
        without_refused_checksums(request, renew=lambda: None)
    assert len(tries) == 1


@pytest.mark.s3
def test_a_conversion_to_a_server_that_refuses_checksums_gives_identical_shards(
    source: Path, converted: Path, tmp_path: Path, s3_server: S3Server, proxy: FaultProxy
) -> None:
    proxy.choose = old_server("501:NotImplemented")
    prefix, env = f"old-{tmp_path.name}", s3_server.env_through(proxy.endpoint_url)
    said = convert(source, f"s3://{s3_server.bucket}/{prefix}", "--workers", 2, "--seed", 1, env=env)
    refused = [request for request, fault in proxy.seen if fault and request.method != "POST"]
    assert said.count(SAID) == 1 and len(refused) == 1  # its workers know
    convert(source, f"s3://{s3_server.bucket}/{prefix}", "--workers", 2, "--overwrite", env=env)
    assert bucket_tree(s3_server, prefix) == tree(converted)


@pytest.mark.exhaustive
@pytest.mark.s3
def test_a_run_from_and_to_a_server_that_refuses_checksums_resumes_after_kill_9_with_the_weights_of_a_local_run(
    shards: Path, undisturbed: dict[str, Any], s3_folder: str, s3_server: S3Server, proxy: FaultProxy, tmp_path: Path
) -> None:
    upload(shards, f"{s3_folder}/mds")
    proxy.choose = old_server("400:InvalidArgument")
    saved, env = open_place(f"{s3_folder}/run"), s3_server.env_through(proxy.endpoint_url)
    remote = f"data.remote={s3_folder}/mds"
    argv = command(tmp_path / "cache", f"{s3_folder}/run", remote, "data.num_workers=1", "checkpoint.keep=2")
    started = start(argv, tmp_path / "killed", env=env)
    started.kill_when(lambda: "ep0-ba4.pt" in list_checkpoints(saved))
    code, output = run(argv, tmp_path / "again", env=env)
    assert code == 0, output
    assert f"resume: from {s3_folder}/run/ep" in output and output.count(SAID) == 1
    record = json.loads(saved.read("run.json"))
    assert what_must_match(record) == what_must_match(undisturbed)
    assert len(list_checkpoints(saved)) == 2  # older ones were deleted
