"""A loader that stands still ends the run, which says where each of its processes was."""

import os
import signal
import time
from pathlib import Path

import pytest

from imagestream.data.watchdog import SECONDS_TO_END
from tests.conftest import REPOSITORY
from tests.fault_proxy import FaultProxy
from tests.faults.conftest import Trial, on_shards
from tests.processes import Run

pytestmark = [pytest.mark.s3, pytest.mark.slow]


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_for_two_children(started: Run) -> list[int]:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        pid = started.ranks[0].pid
        assert pid and started.ranks[0].is_alive(), started.output()
        if len(children := children_of(pid)) >= 2:
            return children
        time.sleep(0.05)
    raise AssertionError(started.output())


def test_a_worker_that_is_stopped_ends_the_run_with_every_stack(trial: Trial, proxy: FaultProxy) -> None:
    proxy.choose = on_shards("500")  # holds the workers until they are stopped
    started = trial.start(
        proxy.endpoint_url, "data.num_workers=2", "data.download_patience_s=4", "data.stall_limit_s=5"
    )
    workers = wait_for_two_children(started)
    time.sleep(0.5)  # until they are at their work
    os.kill(workers[0], signal.SIGSTOP)
    began = time.monotonic()
    code = started.wait(90)
    done = trial.outcome(started, code, time.monotonic() - began)
    assert done.code == 1
    assert done.seconds < 5 + 1 + SECONDS_TO_END
    assert "StalledLoaderError: rank 0 had no batch for 5 s (stall_limit_s); " in done.output
    assert f"of its loader workers ({workers[0]}, {workers[1]})" in done.output
    assert done.output.count("most recent call first") >= 2
    assert [worker for worker in workers if Path(f"/proc/{worker}").exists()] == []


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.exhaustive)])
def test_a_silent_server_ends_the_run_and_the_shard_is_named(trial: Trial, proxy: FaultProxy, workers: int) -> None:
    proxy.choose = on_shards("silence:100")
    done = trial.run(
        proxy.endpoint_url,
        f"data.num_workers={workers}",
        "data.download_patience_s=2",
        "data.stall_limit_s=4",
        "data.download_timeout_s=8",
    )
    assert done.code == 1
    assert done.seconds < 40 + 8 + 1
    assert "StalledLoaderError: rank 0 had no batch for 4 s" in done.output
    assert "its node is fetching shard." in done.output
    assert "_fetch_once" in done.output  # in the stack of the thread that waits


def test_a_worker_that_is_killed_ends_the_run(trial: Trial, proxy: FaultProxy) -> None:
    proxy.choose = on_shards("500")
    started = trial.start(proxy.endpoint_url, "data.num_workers=2")
    workers = wait_for_two_children(started)
    time.sleep(0.5)
    os.kill(workers[0], signal.SIGKILL)
    began = time.monotonic()
    assert started.wait(90) == 1
    assert time.monotonic() - began < 20
    assert f"DataLoader worker (pid {workers[0]}) is killed by signal: Killed" in " ".join(started.output().split())


def test_the_limits_must_leave_room_for_one_another(trial: Trial) -> None:
    done = trial.run("http://127.0.0.1:9", "data.stall_limit_s=200", "dist_timeout=100")
    assert done.code == 2
    assert "data.stall_limit_s: 200 must be above data.download_patience_s, which is 300" in done.output
    done = trial.run("http://127.0.0.1:9", "dist_timeout=100")
    assert "dist_timeout: 100 must be above data.stall_limit_s, which is 450" in done.output
    assert (REPOSITORY / "docs/reliability.md").read_text().count("450 s") >= 1
