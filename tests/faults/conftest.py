"""A small training run that streams from a real S3 server, through a proxy that can answer wrongly."""

import json
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.fault_proxy import Fault, FaultProxy, Request
from tests.integration.problem import command, record_of, what_must_match
from tests.processes import Run, run, start
from tests.s3_server import S3Server

SHORT = (
    "max_duration=1ep",
    "checkpoint.save_interval=1ep",
    "algorithms=[{name: mixup}]",
    "data.predownload=8",  # so that the downloads are spread over the run
    "loggers.file=false",
)


class Outcome(NamedTuple):
    code: int
    output: str  # of all ranks
    seconds: float
    record: dict[str, Any]  # empty when the run did not come to its end


class Trial:
    """Runs the problem on the dataset in S3, with a cache of its own."""

    def __init__(self, server: S3Server, remote: str, folder: Path) -> None:
        self.server, self.remote, self.folder = server, remote, folder
        self.cache = folder / "cache"
        self._count = 0

    def argv(self, *more: str) -> list[str]:
        self._count += 1
        return command(self.cache, self.folder / f"run{self._count}", *SHORT, f"data.remote={self.remote}", *more)

    def start(self, endpoint: str, *more: str, ranks: int = 1) -> Run:
        argv = self.argv(*more)
        return start(argv, self.folder / f"log{self._count}", ranks=ranks, env=self.server.env_through(endpoint))

    def run(self, endpoint: str, *more: str, ranks: int = 1, limit_s: float = 120) -> Outcome:
        began = time.monotonic()
        started = self.start(endpoint, *more, ranks=ranks)
        code = started.wait(limit_s)
        seconds = time.monotonic() - began
        assert seconds < limit_s, f"it hung:\n{started.output()[-3000:]}"
        return self.outcome(started, code, seconds, ranks)

    def outcome(self, started: Run, code: int, seconds: float, ranks: int = 1) -> Outcome:
        output = "".join(started.output(rank) for rank in range(ranks))
        folder = self.folder / f"run{self._count}"
        return Outcome(code, output, seconds, what_must_match(record_of(folder)) if code == 0 else {})


@pytest.fixture(scope="session")
def stored(s3_server: S3Server, shards: Path) -> str:
    """The dataset in the bucket."""
    prefix = uuid.uuid4().hex
    for path in sorted(path for path in shards.rglob("*") if path.is_file()):
        key = f"{prefix}/{path.relative_to(shards)}"
        s3_server.client.put_object(Bucket=s3_server.bucket, Key=key, Body=path.read_bytes())
    return f"s3://{s3_server.bucket}/{prefix}"


@pytest.fixture
def trial(s3_server: S3Server, stored: str, tmp_path: Path) -> Trial:
    return Trial(s3_server, stored, tmp_path)


@pytest.fixture
def proxy(s3_server: S3Server) -> Iterator[FaultProxy]:
    with FaultProxy(s3_server.port).running() as proxy:
        yield proxy


@pytest.fixture(scope="session")
def calm(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], dict[str, Any]]:
    """By the number of ranks: what a run that nothing disturbed ends with."""
    records: dict[int, dict[str, Any]] = {}

    def of(ranks: int) -> dict[str, Any]:
        if ranks not in records:
            folder = tmp_path_factory.mktemp("calm")
            code, output = run(command(shards, folder, *SHORT), folder / "log", ranks=ranks)
            assert code == 0, output
            records[ranks] = what_must_match(record_of(folder))
        return records[ranks]

    return of


@pytest.fixture(scope="session")
def shard_names(shards: Path) -> list[str]:
    """The training split's files, in the order of its index."""
    index = json.loads((shards / "train/index.json").read_text())
    return [shard["raw_data"]["basename"] for shard in index["shards"]]


def on_shards(fault: Fault, *, every: int = 1, name: str = ".mds") -> Callable[[Request], Fault]:
    """A fault for each `every`th request for a training shard, or for those of one shard."""
    seen: list[Request] = []

    def choose(request: Request) -> Fault:
        if "/train/" not in request.path or name not in request.path:
            return ""
        seen.append(request)
        return fault if len(seen) % every == 0 else ""

    return choose
