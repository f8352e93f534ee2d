"""SIGTERM saves a checkpoint before a run exits; a run whose numbers are no longer finite ends before the step."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY
from tests.integration.problem import command, record_of, what_must_match
from tests.processes import Run, run, start

EXIT_STOPPED = 75


def stop(started: Run, number: int, ready: Path, *, rank: int) -> int:
    """Send a signal to one rank once a file is there; return the exit code."""
    deadline = time.monotonic() + 120
    while not ready.exists():
        assert time.monotonic() < deadline, started.output()[-2000:]
        time.sleep(0.01)
    pid = started.ranks[rank].pid
    assert pid
    os.kill(pid, number)
    return started.wait(60)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.exhaustive)])
def test_a_signal_saves_a_checkpoint_at_the_batch_and_nothing_is_lost(
    shards: Path, undisturbed: dict[str, Any], tmp_path: Path, number: signal.Signals
) -> None:
    argv = command(shards, tmp_path)
    started = start(argv, tmp_path / "log")
    assert stop(started, number, tmp_path / "ep0-ba2.pt", rank=0) == EXIT_STOPPED, started.output()
    assert f"stopped by {number.name} after batch" in started.output()
    assert "Traceback" not in started.output()
    stopped_at = int(started.output().partition("after batch ")[2].partition(";")[0])
    newest = max(int(path.stem.partition("-ba")[2]) for path in tmp_path.glob("ep*-ba*.pt"))
    assert newest == stopped_at
    code, output = run(argv, tmp_path / "again")
    assert code == 0, output
    assert f"-ba{stopped_at}.pt" in output
    assert what_must_match(record_of(tmp_path)) == what_must_match(undisturbed)


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_all_at_the_same_batch(shards: Path, tmp_path: Path) -> None:
    argv = command(shards, tmp_path, "algorithms=[{name: ema, half_life: 4ba}]")
    started = start(argv, tmp_path / "log", ranks=2)
    assert stop(started, signal.SIGUSR1, tmp_path / "ep0-ba2.pt", rank=1) == EXIT_STOPPED, started.output()
    assert "stopped by a signal to another rank after batch" in started.output()
    assert [rank.exitcode for rank in started.ranks] == [EXIT_STOPPED, EXIT_STOPPED]


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_sigterm_to_composers_launcher_saves_and_nothing_is_lost(shards: Path, tmp_path: Path) -> None:
    argv = command(shards, tmp_path / "run", "eval_interval=2ep")
    launcher = [str(Path(sys.executable).parent / "composer"), "-n", "2", "train/main.py", *argv]
    with open(tmp_path / "launched", "w") as log:
        process = subprocess.Popen(launcher, cwd=REPOSITORY, stdout=log, stderr=log, process_group=0)
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "run/ep0-ba2.pt").exists():
            assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "launched").read_text()[-2000:]
            time.sleep(0.01)
        process.terminate()
        code = process.wait(60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    said = (tmp_path / "launched").read_text()
    assert code == EXIT_STOPPED, said[-2000:]
    assert "stopped by SIGTERM after batch" in said
    stopped_at = int(said.partition("after batch ")[2].partition(";")[0])
    assert 2 <= stopped_at < 12
    code, output = run(argv, tmp_path / "again", ranks=2, real_network=True)
    assert code == 0, output
    assert f"-ba{stopped_at}.pt" in output
    calm = command(shards, tmp_path / "calm", "eval_interval=2ep")
    code, output = run(calm, tmp_path / "calm.log", ranks=2, real_network=True)
    assert code == 0, output
    assert what_must_match(record_of(tmp_path / "run")) == what_must_match(record_of(tmp_path / "calm"))


def test_gradients_that_are_not_finite_end_the_run_before_the_step(shards: Path, tmp_path: Path) -> None:
    argv = command(shards, tmp_path, "optimizer.lr=1e18", "scheduler.t_warmup=0ba", "algorithms=[]")
    code, output = run([*argv, "checkpoint.save_interval=1ba"], tmp_path / "log")
    assert code == 1
    assert "the gradients are not finite (loss" in output and "Traceback" not in output
    named = next(line for line in output.splitlines() if "gradients are not finite" in line)
    batch = int(named.split()[1])
    assert (tmp_path / f"ep0-ba{batch}.pt").exists(), sorted(path.name for path in tmp_path.iterdir())
    assert not (tmp_path / f"ep0-ba{batch + 1}.pt").exists()


def test_a_bad_batch_may_be_left_out_as_often_as_is_said(shards: Path, tmp_path: Path) -> None:
    spike = ("optimizer.lr=1e18", "scheduler.t_warmup=0ba", "algorithms=[]", "on_nonfinite=skip 2")
    code, output = run(command(shards, tmp_path, *spike), tmp_path / "log")
    assert code == 1
    assert "its step is left out (1 of 2)" in output and "its step is left out (2 of 2)" in output
    assert "after 2 skipped ones" in output
