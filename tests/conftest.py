"""Fixtures that more than one kind of test needs."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import boto3
import numpy as np
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

SECONDS_TO_START_S3 = 60


@dataclass(frozen=True)
class S3Server:
    """A running S3 server and what a program needs to reach it."""

    endpoint_url: str
    access_key: str
    secret_key: str
    bucket: str

    @property
    def env(self) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            "S3_ENDPOINT_URL": self.endpoint_url,
            "AWS_ENDPOINT_URL": self.endpoint_url,
        }

    @property
    def client(self):  # type: ignore[no-untyped-def]
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint_url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
            config=Config(retries={"max_attempts": 0}, connect_timeout=2, read_timeout=10),
        )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server (SeaweedFS) on free loopback ports, with one bucket."""
    weed = shutil.which("weed") or str(Path(sys.executable).parent / "weed")
    if not os.path.exists(weed):
        pytest.fail("the S3 server is missing; install requirements-dev.txt (make setup)")
    folder = tmp_path_factory.mktemp("s3")
    ports = {name: free_port() for name in ("master", "volume", "filer", "s3")}
    keys = folder / "keys.json"
    access, secret = uuid.uuid4().hex[:20], uuid.uuid4().hex
    credentials = {"accessKey": access, "secretKey": secret}
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    keys.write_text(json.dumps({"identities": [{"name": "test", "credentials": [credentials], "actions": actions}]}))
    command = [weed, "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-volume.max=200", "-s3"]
    command += [f"-master.port={ports['master']}", f"-volume.port={ports['volume']}", f"-filer.port={ports['filer']}"]
    # The gRPC ports are the others plus 10000 unless given, which may lie past 65535.
    for name in ("master", "volume", "filer", "s3"):
        command.append(f"-{name}.port.grpc={free_port()}")
    command += [f"-s3.port={ports['s3']}", f"-s3.config={keys}"]
    # Servers of other protocols have fixed ports, which a second test process would find taken.
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"]
    log = open(folder / "log", "wb")  # noqa: SIM115  # outlives this function's body
    process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    server = S3Server(f"http://127.0.0.1:{ports['s3']}", access, secret, "test-bucket")
    try:
        _wait_until_ready(server, process, folder / "log")
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):  # it did not start
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=10)
        log.close()


def _wait_until_ready(server: S3Server, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Wait for a bucket and an object to be made: the port answers 403 long before it can store anything."""
    deadline = time.monotonic() + SECONDS_TO_START_S3
    problem: Exception | None = None
    while time.monotonic() < deadline and process.poll() is None:
        try:
            server.client.create_bucket(Bucket=server.bucket)
            server.client.put_object(Bucket=server.bucket, Key="ready", Body=b"1")
            server.client.delete_object(Bucket=server.bucket, Key="ready")
            return
        except (BotoCoreError, ClientError) as error:
            problem = error
            time.sleep(0.3)
    pytest.fail(f"the S3 server did not start: {problem}\n{log.read_text(errors='replace')[-2000:]}")


@pytest.fixture
def s3_folder(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty s3:// folder of this test's own; this process can reach it too."""
    for name, value in s3_server.env.items():
        monkeypatch.setenv(name, value)
    return f"s3://{s3_server.bucket}/{uuid.uuid4().hex}"


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small MDS dataset: 100 train and 23 val images of 4 classes, in several shards; made by the converter."""
    from convert.imagenet_to_mds import main

    source, out = tmp_path_factory.mktemp("images"), tmp_path_factory.mktemp("shards") / "mds"
    make_images(source, {"train": 25, "val": 6}, classes=4, leave_out=1)
    code = main(["--source", str(source), "--out", str(out), "--workers", "1", "--size-limit", "20KB"])
    assert code == 0
    return out


def make_images(folder: Path, per_class: dict[str, int], *, classes: int, leave_out: int = 0) -> None:
    """Write small JPEGs whose colour tells their class, of various sizes; the last val class lacks `leave_out`."""
    rng = np.random.default_rng(0)
    for split, count in per_class.items():
        for label in range(classes):
            target = folder / split / f"class{label}"
            target.mkdir(parents=True)
            last_of_val = split == "val" and label == classes - 1
            for index in range(count - (leave_out if last_of_val else 0)):
                height, width = (int(edge) for edge in rng.integers(36, 72, size=2))
                noise = rng.integers(0, 120, size=(height, width, 3))
                noise[:, :, label % 3] += 60 + 25 * (label // 3)
                Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(target / f"{index:03}.jpg", quality=90)
