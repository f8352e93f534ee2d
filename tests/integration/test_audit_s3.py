"""The audit of a dataset in S3, on a real server."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import boto3
import pytest

from convert.audit import main
from tests.conftest import REPOSITORY
from tests.processes import run_program

pytestmark = [pytest.mark.s3, pytest.mark.slow]


def client_and_place(s3_folder: str) -> tuple[Any, str, str]:
    bucket, _, prefix = s3_folder.removeprefix("s3://").partition("/")
    return boto3.client("s3", endpoint_url=os.environ["S3_ENDPOINT_URL"]), bucket, prefix


def upload(folder: Path, s3_folder: str) -> None:
    client, bucket, prefix = client_and_place(s3_folder)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        client.upload_file(str(path), bucket, f"{prefix}/{path.relative_to(folder)}")


def test_a_dataset_in_s3_passes_and_its_report_is_that_of_the_local_one(
    shards: Path, s3_folder: str, tmp_path: Path
) -> None:
    upload(shards, s3_folder)
    seen = {}
    for name, place in (("local", str(shards)), ("s3", s3_folder)):
        done = run_program("convert.audit", [place, "--workers", 2, "--report", tmp_path / name])
        assert done.returncode == 0, done.stderr
        *splits, _, summary = done.stdout.splitlines()
        files = {path.name: path.read_bytes() for path in (tmp_path / name / "pictures").iterdir()}
        page = (tmp_path / name / "index.html").read_text().replace(place, "PLACE")
        seen[name] = splits, files, page
        assert summary.startswith(f"{place}: 0 findings, 0 warnings; 123 images read, 123 decoded, in ")
    assert seen["s3"] == seen["local"]


def test_faults_of_a_dataset_in_s3_are_found(shards: Path, s3_folder: str) -> None:
    upload(shards, s3_folder)
    client, bucket, prefix = client_and_place(s3_folder)
    data = bytearray((shards / "train" / "shard.00001.mds").read_bytes())
    data[-1] ^= 1
    client.put_object(Bucket=bucket, Key=f"{prefix}/train/shard.00001.mds", Body=bytes(data))
    client.put_object(Bucket=bucket, Key=f"{prefix}/train/shard.00099.mds", Body=b"left over")
    client.delete_object(Bucket=bucket, Key=f"{prefix}/val/shard.00000.mds")
    done = run_program("convert.audit", [s3_folder, "--workers", 1])
    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "train/shard.00099.mds: looks like a shard, but train/index.json does not list it"
    assert lines[1].startswith("train/shard.00001.mds: sha256 is ")
    assert "val/shard.00000.mds: does not exist, though index.json lists it" in lines


def test_a_bucket_that_does_not_exist_is_a_usage_error(s3_folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["s3://no-such-bucket/imagenet"]) == 2
    assert "Create the bucket first, or correct its name" in capsys.readouterr().err
    assert main([f"{s3_folder}/nothing"]) == 2
    assert "has no index.json, at its root or one folder below; it holds nothing" in capsys.readouterr().err


def test_a_dead_server_is_a_usage_error_and_not_waited_for() -> None:
    dead = {"S3_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    command = [sys.executable, "convert/audit.py", "s3://bucket/imagenet"]
    done = subprocess.run(
        command, cwd=REPOSITORY, env={**os.environ, **dead}, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "Check S3_ENDPOINT_URL and the network" in done.stderr
