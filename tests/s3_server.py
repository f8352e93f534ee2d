"""A real S3 server (SeaweedFS) that tests start on free loopback ports, kill, and start again."""

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
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

SECONDS_TO_START = 60
STARTS = 3


class StartError(RuntimeError):
    """The server has ended at once, or stores nothing."""


class S3Server:
    """The server of one folder, and what a program needs to reach it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.access_key, self.secret_key = uuid.uuid4().hex[:20], uuid.uuid4().hex
        self.bucket = "test-bucket"
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._command = self._write_command()

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def env(self) -> dict[str, str]:
        return self.env_through(self.endpoint_url)

    def env_through(self, endpoint_url: str) -> dict[str, str]:
        """The environment of a program that reaches the server by another address."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            "S3_ENDPOINT_URL": endpoint_url,
            "AWS_ENDPOINT_URL": endpoint_url,
        }

    @property
    def client(self) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint_url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
            config=Config(retries={"max_attempts": 0}, connect_timeout=2, read_timeout=10),
        )

    def start(self) -> None:
        """Start it and wait until it can store: its port answers 403 long before."""
        with open(self.folder / "log", "ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + SECONDS_TO_START
        problem: Exception | None = None
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                with suppress(
                    self.client.exceptions.BucketAlreadyExists, self.client.exceptions.BucketAlreadyOwnedByYou
                ):
                    self.client.create_bucket(Bucket=self.bucket)
                self.client.put_object(Bucket=self.bucket, Key="ready", Body=b"1")
                self.client.delete_object(Bucket=self.bucket, Key="ready")
                return
            except (BotoCoreError, ClientError) as error:
                problem = error
                time.sleep(0.3)
        self.kill()
        log_end = (self.folder / "log").read_text(errors="replace")[-2000:]
        raise StartError(f"the S3 server did not start: {problem}\n{log_end}")

    def change_keys(self) -> None:
        """Start again with other keys: those of before are unknown from then on."""
        self.kill()
        self.access_key, self.secret_key = uuid.uuid4().hex[:20], uuid.uuid4().hex
        self._write_keys()
        self.start()

    def kill(self) -> None:
        """kill -9; what it had acknowledged is still there after the next start."""
        if self._process:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(timeout=10)
            self._process = None

    def _write_keys(self) -> Path:
        keys = self.folder / "keys.json"
        credentials = {"accessKey": self.access_key, "secretKey": self.secret_key}
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        identity = {"name": "test", "credentials": [credentials], "actions": actions}
        keys.write_text(json.dumps({"identities": [identity]}))
        return keys

    def _write_command(self) -> list[str]:
        weed = shutil.which("weed") or str(Path(sys.executable).parent / "weed")
        if not os.path.exists(weed):
            pytest.fail("the S3 server is missing; install requirements-dev.txt (make setup-dev)")
        keys = self._write_keys()
        command = [weed, "server", f"-dir={self.folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
        command += ["-volume.max=200", "-s3", f"-s3.port={self.port}", f"-s3.config={keys}"]
        for name in ("master", "volume", "filer"):
            command.append(f"-{name}.port={free_port()}")
        # The gRPC ports are the others plus 10000 unless given, which may lie past 65535.
        for name in ("master", "volume", "filer", "s3"):
            command.append(f"-{name}.port.grpc={free_port()}")
        # Servers of other protocols have fixed ports, which a second test process would find taken.
        return [*command, "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"]


@contextmanager
def running_s3_server(folder: Path) -> Iterator[S3Server]:
    """A server of this folder's own, killed at the end.

    A port that was free may be taken once the server asks for it: then it is tried with others.
    """
    for attempt in range(1, STARTS + 1):
        server = S3Server(folder)
        try:
            server.start()
            break
        except StartError as error:
            if attempt == STARTS or "address already in use" not in str(error):
                pytest.fail(str(error))
    try:
        yield server
    finally:
        server.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
