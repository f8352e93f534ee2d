"""Faults that pass: the run ends with the ledger, the weights and the figures of one that nothing disturbed."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fault_proxy import FaultProxy, Request, during
from tests.faults.conftest import Trial, on_shards
from tests.s3_server import running_s3_server

pytestmark = [pytest.mark.s3, pytest.mark.slow]
Calm = Callable[[int], dict[str, Any]]
exhaustive = pytest.mark.exhaustive


@exhaustive
@pytest.mark.parametrize(("workers", "ranks"), [(2, 1), (0, 1), (0, 2), (2, 2)])
@pytest.mark.parametrize(("fault", "every"), [("503", 5), ("reset", 3), ("truncate", 3), ("flip", 4)])
def test_single_faulty_answers_change_nothing(
    trial: Trial, proxy: FaultProxy, calm: Calm, fault: str, every: int, workers: int, ranks: int
) -> None:
    proxy.choose = on_shards(fault, every=every)
    done = trial.run(proxy.endpoint_url, f"data.num_workers={workers}", ranks=ranks)
    assert done.code == 0, done.output
    assert proxy.faults_given >= 2
    assert done.record == calm(ranks)
    assert list(trial.cache.rglob("*.part")) == []
    if fault == "flip":
        assert "arrived damaged: its xxh64 is " in done.output


def test_all_kinds_of_faulty_answers_in_turn_change_nothing(trial: Trial, proxy: FaultProxy, calm: Calm) -> None:
    kinds = ["500", "503", "reset", "truncate", "flip"]
    asked: list[Request] = []

    def choose(request: Request) -> str:
        if "/train/shard" not in request.path:
            return ""
        asked.append(request)
        return kinds[len(asked) // 2 % len(kinds)] if len(asked) % 2 else ""

    proxy.choose = choose
    done = trial.run(proxy.endpoint_url, "data.num_workers=2")
    assert done.code == 0, done.output
    assert {fault for _, fault in proxy.seen} == {"", *kinds}
    assert done.record == calm(1)
    assert list(trial.cache.rglob("*.part")) == []
    assert "arrived damaged: its xxh64 is " in done.output


@pytest.mark.parametrize(
    ("workers", "ranks"), [pytest.param(0, 1, marks=exhaustive), (2, 1), pytest.param(0, 2, marks=exhaustive)]
)
def test_ten_seconds_of_errors_are_waited_out_and_told_of_once_by_each_process(
    trial: Trial, proxy: FaultProxy, calm: Calm, workers: int, ranks: int
) -> None:
    proxy.choose = only_shards(during(10, "500"))
    done = trial.run(proxy.endpoint_url, f"data.num_workers={workers}", ranks=ranks)
    assert done.code == 0, done.output
    assert done.record == calm(ranks)
    told = [line for line in done.output.splitlines() if "has not come for" in line]
    assert "shard." in told[0] and "InternalError" in told[0] and "s more" in told[0]
    assert len(told) == done.output.count(" attempts\n") <= max(1, workers) * ranks * 2  # two threads each


@exhaustive
@pytest.mark.parametrize("workers", [0, 2])
def test_thirty_seconds_of_silence_are_waited_out(trial: Trial, proxy: FaultProxy, calm: Calm, workers: int) -> None:
    proxy.choose = only_shards(during(1, "silence:30"))
    done = trial.run(proxy.endpoint_url, f"data.num_workers={workers}")
    assert done.code == 0, done.output
    assert done.seconds > 29
    assert done.record == calm(1)


@exhaustive
@pytest.mark.parametrize("workers", [0, 2])
def test_a_server_that_is_killed_and_started_again_changes_nothing(
    shards: Path, calm: Calm, tmp_path: Path, workers: int
) -> None:
    (tmp_path / "s3").mkdir()
    with running_s3_server(tmp_path / "s3") as server:
        for path in sorted(path for path in shards.rglob("*") if path.is_file()):
            key = f"mds/{path.relative_to(shards)}"
            server.client.put_object(Bucket=server.bucket, Key=key, Body=path.read_bytes())
        trial = Trial(server, f"s3://{server.bucket}/mds", tmp_path)
        with FaultProxy(server.port).running() as proxy:
            asked = threading.Event()
            proxy.choose = only_shards(lambda request: asked.set() or "")  # type: ignore[func-returns-value]  # None, so ""
            began = time.monotonic()
            started = trial.start(proxy.endpoint_url, f"data.num_workers={workers}")
            assert asked.wait(60), started.output()
            server.kill()
            time.sleep(5)
            server.start()
            code = started.wait(120)
            done = trial.outcome(started, code, time.monotonic() - began)
    assert done.code == 0, done.output
    assert done.record == calm(1)


def only_shards(choose: Callable[[Request], str]) -> Callable[[Request], str]:
    return lambda request: choose(request) if "/train/shard" in request.path else ""
