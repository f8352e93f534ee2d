"""The same promises with the shards and the checkpoints in S3, on a real server."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import boto3
import pytest

from imagestream.storage.errors import PlaceError
from imagestream.storage.places import open_place
from imagestream.storage.protocol import read_if_there
from tests.integration.problem import command, what_must_match
from tests.processes import run, start
from tests.s3_server import S3Server
from train.resume.checkpoints import list_checkpoints

pytestmark = [pytest.mark.s3, pytest.mark.slow]


def upload(folder: Path, s3_folder: str) -> None:
    bucket, _, prefix = s3_folder.removeprefix("s3://").partition("/")
    client = boto3.client("s3", endpoint_url=os.environ["S3_ENDPOINT_URL"])
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        client.upload_file(str(path), bucket, f"{prefix}/{path.relative_to(folder)}")


@pytest.mark.exhaustive
def test_a_run_from_and_to_s3_resumes_after_kill_9_with_the_weights_of_a_local_run(
    shards: Path, undisturbed: dict[str, Any], s3_folder: str, s3_server: S3Server, tmp_path: Path
) -> None:
    upload(shards, f"{s3_folder}/mds")
    saved = open_place(f"{s3_folder}/run")
    argv = command(
        shards, f"{s3_folder}/run", f"data.remote={s3_folder}/mds", f"data.local={tmp_path / 'cache'}",
        "data.num_workers=2", "checkpoint.keep=2", "loggers.file=false",
    )  # fmt: skip
    started = start(argv, tmp_path / "killed", env=s3_server.env)
    started.kill_when(lambda: "ep0-ba4.pt" in list_checkpoints(saved))
    code, output = run(argv, tmp_path / "again", env=s3_server.env)
    assert code == 0, output
    assert f"resume: from {s3_folder}/run/ep" in output
    record = json.loads(open_place(f"{s3_folder}/run").read("run.json"))
    assert what_must_match(record) == what_must_match(undisturbed)
    assert len(list_checkpoints(saved)) == 2  # older ones were deleted
    record_files = ["metrics.csv", "report.html", "report.png", "run.json"]
    assert saved.names() == [*sorted(list_checkpoints(saved)), *record_files]


def test_a_corrupt_shard_stops_the_run_rather_than_shortening_the_epoch(
    shards: Path, s3_folder: str, s3_server: S3Server, tmp_path: Path
) -> None:
    upload(shards, f"{s3_folder}/mds")
    bucket, _, prefix = s3_folder.removeprefix("s3://").partition("/")
    index = json.loads((shards / "train/index.json").read_text())
    name = index["shards"][2]["raw_data"]["basename"]
    damaged = bytearray((shards / "train" / name).read_bytes())
    damaged[-100] ^= 1
    client = boto3.client("s3", endpoint_url=os.environ["S3_ENDPOINT_URL"])
    client.put_object(Bucket=bucket, Key=f"{prefix}/mds/train/{name}", Body=bytes(damaged))
    for workers in (0, 2):
        argv = command(
            shards, tmp_path / f"run{workers}", f"data.remote={s3_folder}/mds",
            f"data.local={tmp_path / f'cache{workers}'}", f"data.num_workers={workers}",
        )  # fmt: skip
        started = start(argv, tmp_path / f"log{workers}", env=s3_server.env)
        assert started.wait(120) != 0
        assert "its xxh64 is" in started.output()
        assert name in started.output()
        assert "ShortEpochError" in started.output()


def test_upstream_ends_the_epoch_early_and_says_nothing(shards: Path, tmp_path: Path) -> None:
    """Shows what the guard in imagestream/data/dataset.py is for; when this fails, upstream has been mended."""
    index = json.loads((shards / "train/index.json").read_text())
    name = index["shards"][2]["raw_data"]["basename"]
    remote = tmp_path / "remote"
    subprocess.run(["cp", "-r", str(shards / "train"), str(remote)], check=True)
    damaged = bytearray((remote / name).read_bytes())
    damaged[-100] ^= 1
    (remote / name).write_bytes(damaged)
    code, output = run([str(remote), str(tmp_path / "local")], tmp_path / "log", program="tests.upstream_epoch")
    assert code == 0, output
    assert "of 100 samples, no exception" in output
    assert "100 of 100" not in output


def test_a_save_folder_that_cannot_be_written_is_refused_before_training(
    shards: Path, s3_folder: str, s3_server: S3Server, tmp_path: Path
) -> None:
    wrong_key = s3_server.env | {"AWS_SECRET_ACCESS_KEY": "wrong"}
    code, output = run(command(shards, s3_folder), tmp_path / "log", env=wrong_key)
    assert code == 2
    assert f"{s3_folder}/ cannot be written" in output
    assert "check the bucket's name, the credentials and S3_ENDPOINT_URL" in output
    assert "Traceback" not in output


def test_an_s3_folder_holds_whole_files_and_tells_missing_from_forbidden(
    s3_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = open_place(s3_folder)
    assert folder.names() == []
    assert read_if_there(folder, "absent") is None
    source = tmp_path / "file"
    source.write_bytes(b"x" * 1000)
    folder.put("file", source)
    assert not source.exists()
    assert (folder.names(), folder.read("file")) == (["file"], b"x" * 1000)
    assert folder.get("file", tmp_path).read_bytes() == b"x" * 1000
    folder.delete(["file"])
    folder.delete(["file"])
    assert folder.names() == []
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(PlaceError, match=r"absent cannot be read: .*SignatureDoesNotMatch"):
        open_place(s3_folder).read("absent")
