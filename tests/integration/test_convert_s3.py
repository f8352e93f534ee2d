"""Conversion into a bucket of a real S3 server."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.fault_proxy import FaultProxy, Request, during
from tests.integration.converter import SMALL_SHARDS, bucket_tree, convert, run, start, tree, wait_for_end_of_group
from tests.s3_server import S3Server, running_s3_server


@pytest.mark.s3
def test_s3_output_is_identical_to_local_output(source: Path, converted: Path, tmp_path: Path, s3_server: Any) -> None:
    prefix = f"convert-{tmp_path.name}"
    url = f"s3://{s3_server.bucket}/{prefix}"
    convert(source, url, "--workers", 2, env=s3_server.env)
    assert bucket_tree(s3_server, prefix) == tree(converted)

    refused = run("--source", source, "--out", url, *SMALL_SHARDS, "--seed", 1, env=s3_server.env)
    assert refused.returncode == 2 and "--seed: 0 there, 1 now" in refused.stderr
    assert "train: complete" in convert(source, url, env=s3_server.env)
    convert(source, url, "--overwrite", "--seed", 1, env=s3_server.env)
    convert(source, tmp_path / "seed1", "--seed", 1)
    assert bucket_tree(s3_server, prefix) == tree(tmp_path / "seed1")


@pytest.mark.s3
def test_a_failed_conversion_leaves_no_index_in_s3_and_goes_on(source: Path, tmp_path: Path, s3_server: Any) -> None:
    prefix = f"failed-{tmp_path.name}"
    (source / "val/n01/empty.JPEG").touch()
    url = f"s3://{s3_server.bucket}/{prefix}"
    done = run("--source", source, "--out", url, *SMALL_SHARDS, env=s3_server.env)
    assert done.returncode == 1 and "val/n01/empty.JPEG" in done.stderr
    assert not [name for name in bucket_tree(s3_server, prefix) if name.endswith(("index.json", "manifest.json"))]
    assert "written before" in convert(source, url, "--on-bad", "skip", env=s3_server.env)
    convert(source, tmp_path / "out", "--on-bad", "skip")
    assert bucket_tree(s3_server, prefix) == tree(tmp_path / "out")


@pytest.mark.s3
@pytest.mark.parametrize(
    ("bucket", "change", "message"),
    [
        ("no-such-bucket-here", {}, "Create the bucket first"),
        ("", {"AWS_SECRET_ACCESS_KEY": "wrong"}, "Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        ("", {"AWS_ACCESS_KEY_ID": "wrong"}, "Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        ("", {"S3_ENDPOINT_URL": "http://127.0.0.1:9"}, "Check S3_ENDPOINT_URL and the network"),
        ("", {"S3_ENDPOINT_URL": "not a url"}, "not a url"),
    ],
)
def test_an_unreachable_bucket_is_explained_before_any_work(
    source: Path, s3_server: Any, bucket: str, change: dict[str, str], message: str
) -> None:
    url = f"s3://{bucket or s3_server.bucket}/x"
    done = run("--source", source, "--out", url, env=s3_server.env | change)
    assert done.returncode == 1
    assert message in done.stderr
    assert "shards with" not in done.stderr


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[S3Server]:
    """A server that the test may kill."""
    (tmp_path / "s3").mkdir()
    with running_s3_server(tmp_path / "s3") as server:
        yield server


@pytest.mark.exhaustive
@pytest.mark.s3
def test_ten_seconds_of_500_are_ridden_out(source: Path, tmp_path: Path, s3_server: S3Server) -> None:
    prefix = f"storm-{tmp_path.name}"
    proxy = FaultProxy(s3_server.port)
    shards_only = during(10, "500")
    proxy.choose = lambda request: shards_only(request) if "/train/shard." in request.path else ""
    with proxy.running():
        env = s3_server.env_through(proxy.endpoint_url)
        convert(source, f"s3://{s3_server.bucket}/{prefix}", "--workers", 2, env=env)
    assert proxy.faults_given > 3
    convert(source, tmp_path / "out")
    assert bucket_tree(s3_server, prefix) == tree(tmp_path / "out")


@pytest.mark.s3
@pytest.mark.parametrize("fault", ["503", "reset", pytest.param("silence:1", marks=pytest.mark.exhaustive)])
def test_faults_now_and_then_change_nothing(
    source: Path, converted: Path, tmp_path: Path, s3_server: S3Server, fault: str
) -> None:
    prefix = f"faults-{tmp_path.name}"
    proxy = FaultProxy(s3_server.port)

    def every_fifth(request: Request) -> str:
        return fault if request.number % 5 == 4 else ""

    proxy.choose = every_fifth
    with proxy.running():
        env = s3_server.env_through(proxy.endpoint_url)
        convert(source, f"s3://{s3_server.bucket}/{prefix}", "--workers", 2, env=env)
    assert proxy.faults_given > 10
    assert bucket_tree(s3_server, prefix) == tree(converted)


@pytest.mark.exhaustive
@pytest.mark.s3
def test_a_server_killed_and_started_in_mid_upload_costs_at_most_a_repeat(
    large_source: Path, tmp_path: Path, own_server: S3Server
) -> None:
    url = f"s3://{own_server.bucket}/restart"
    args = ("--source", large_source, "--out", url, "--workers", 2, "--size-limit", "60kb")
    process = start(*args, env=own_server.env, start_new_session=True)
    deadline = time.monotonic() + 60
    while len(bucket_tree(own_server, "restart")) < 12:
        assert process.poll() is None and time.monotonic() < deadline
    own_server.kill()
    time.sleep(2)
    own_server.start()
    _, stderr = process.communicate(timeout=200)
    assert "Traceback" not in stderr, stderr
    assert process.returncode in (0, 1), stderr
    if process.returncode == 1:
        assert f" {url}/" in stderr and "Could not connect" in stderr, stderr
    convert(large_source, url, "--size-limit", "60kb", env=own_server.env)
    convert(large_source, tmp_path / "fresh", "--size-limit", "60kb")
    assert bucket_tree(own_server, "restart") == tree(tmp_path / "fresh")


@pytest.mark.s3
def test_killed_while_it_uploads_parts_it_leaves_none_behind(tmp_path: Path, s3_server: S3Server) -> None:
    source, prefix = tmp_path / "source", f"parts-{tmp_path.name}"
    make_large_images(source / "train/a", 8)
    url = f"s3://{s3_server.bucket}/{prefix}"
    proxy = FaultProxy(s3_server.port)
    proxy.choose = lambda request: "silence:60" if "partNumber=2" in request.path else ""
    args = ("--source", source, "--out", url, "--workers", 1)
    with proxy.running():
        process = start(*args, env=s3_server.env_through(proxy.endpoint_url), start_new_session=True)
        deadline = time.monotonic() + 60
        while not proxy.faults_given:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.kill()
        process.communicate()
        wait_for_end_of_group(process.pid)
    unfinished = s3_server.client.list_multipart_uploads(Bucket=s3_server.bucket, Prefix=prefix)
    assert len(unfinished["Uploads"]) == 1
    done = run(*args, env=s3_server.env)
    assert done.returncode == 0 and "ended 1 upload that an earlier run had left unfinished" in done.stderr
    unfinished = s3_server.client.list_multipart_uploads(Bucket=s3_server.bucket, Prefix=prefix)
    assert "Uploads" not in unfinished
    assert run("--source", source, "--out", tmp_path / "out", "--workers", 1).returncode == 0
    assert bucket_tree(s3_server, prefix) == tree(tmp_path / "out")


def make_large_images(folder: Path, count: int) -> None:
    """Noise of 3 MB a file: a shard of them is uploaded in parts."""
    folder.mkdir(parents=True)
    for n in range(count):
        Image.effect_noise((2400, 1600), 90 + n).save(folder / f"{n}.JPEG", quality=95)
