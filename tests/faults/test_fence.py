"""Two runs that would save to one folder: one has it, and the other ends with its name."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from imagestream.storage.local import LocalPlace
from imagestream.storage.places import open_place
from imagestream.storage.protocol import Place
from tests.faults.conftest import SHORT
from tests.integration.problem import command, metrics_of, record_of, what_must_match
from tests.processes import Run, run, start
from train.record.metrics_csv import METRICS_NAME
from train.resume.checkpoints import list_checkpoints
from train.resume.fence import OWNER_NAME, read_owner

pytestmark = pytest.mark.slow

SECONDS_TO_HAPPEN = 120


def until(ready: Callable[[], Any], *runs: Run) -> None:
    deadline = time.monotonic() + SECONDS_TO_HAPPEN
    while not ready():
        assert time.monotonic() < deadline, "\n".join(run.output()[-2000:] for run in runs)
        time.sleep(0.02)


def owner_pid(folder: Place) -> int | None:
    return (read_owner(folder) or {}).get("pid")


def signal_all(run: Run, number: signal.Signals) -> None:
    for rank in run.ranks:
        assert rank.pid
        os.killpg(rank.pid, number)


@pytest.mark.parametrize("place", ["disk", pytest.param("s3", marks=[pytest.mark.s3, pytest.mark.exhaustive])])
def test_of_two_runs_started_at_once_in_one_folder_one_ends_as_if_alone_and_the_other_with_its_name(
    shards: Path, tmp_path: Path, request: pytest.FixtureRequest, place: str
) -> None:
    env = dict[str, str]()
    location = str(tmp_path / "shared")
    if place == "s3":
        location, env = request.getfixturevalue("s3_folder"), request.getfixturevalue("s3_server").env
    more = [*SHORT, "checkpoint.save_interval=2ba"]
    both = [
        start(
            command(shards, location, *more, f"seed={seed}", f"run_name=seed{seed}"), tmp_path / f"log{seed}", env=env
        )
        for seed in (1, 2)
    ]
    folder = open_place(location)
    until(lambda: read_owner(folder), *both)
    winner = [started.ranks[0].pid for started in both].index(owner_pid(folder))
    signal_all(both[winner], signal.SIGSTOP)  # so that it is still there when the other has waited for its end
    code = both[1 - winner].wait()
    signal_all(both[winner], signal.SIGCONT)
    assert (code, both[winner].wait()) == (2, 0), "\n".join(started.output() for started in both)
    pid = both[winner].ranks[0].pid
    output = both[1 - winner].output()
    assert f"{location} is in use by run seed{winner + 1} (process {pid} on {os.uname().nodename}" in output
    assert "Traceback" not in output
    assert OWNER_NAME not in folder.names()

    alone = tmp_path / "alone"
    argv = command(shards, alone, *more, f"seed={winner + 1}", f"run_name=seed{winner + 1}")
    code, output = run(argv, tmp_path / "log", env=env)
    assert code == 0, output
    record = json.loads(folder.read("run.json"))
    assert record["config"]["seed"] == winner + 1
    assert what_must_match(record) == what_must_match(record_of(alone))
    assert list_checkpoints(folder) == list_checkpoints(LocalPlace(alone))


@pytest.mark.exhaustive
def test_a_run_that_was_suspended_while_another_took_over_ends_and_changes_nothing(
    shards: Path, calm: Callable[[int], dict[str, Any]], tmp_path: Path
) -> None:
    """As after a machine that was cut off, whose job was started again elsewhere, comes back."""
    folder = LocalPlace(tmp_path / "run")
    argv = command(shards, folder.path, *SHORT, "checkpoint.save_interval=2ba")
    lost = start([*argv, "run_name=lost"], tmp_path / "lost", ranks=2)
    until(lambda: "ep0-ba2.pt" in list_checkpoints(folder), lost)
    signal_all(lost, signal.SIGSTOP)
    owner = read_owner(folder)
    assert owner and owner["pid"] == lost.ranks[0].pid
    folder.write(OWNER_NAME, json.dumps(owner | {"boot_id": "another machine's"}).encode())

    table = folder.path / METRICS_NAME
    lost_ones = table.stat().st_ino
    second = start([*argv, "run_name=second"], tmp_path / "second", ranks=2)
    until(lambda: owner_pid(folder) == second.ranks[0].pid and table.stat().st_ino != lost_ones, second)
    signal_all(second, signal.SIGSTOP)  # so that what is there can be compared
    before = contents(folder)
    signal_all(lost, signal.SIGCONT)
    until(lambda: not any(rank.is_alive() for rank in lost.ranks), lost)
    assert [rank.exitcode for rank in lost.ranks] == [2, 2], lost.output()  # Slurm does not queue it again
    output = lost.output()
    assert f"has been taken over by run second (process {second.ranks[0].pid} on {os.uname().nodename}" in output
    assert "Nothing of that run was touched" in output
    assert "Traceback" not in output + lost.output(1)
    assert contents(folder) == before

    signal_all(second, signal.SIGCONT)
    assert second.wait() == 0, second.output()
    assert f"is taken over from run lost (process {lost.ranks[0].pid} on" in second.output()
    assert what_must_match(record_of(folder.path)) == calm(2)
    assert list(metrics_of(folder.path)) == list(range(1, record_of(folder.path)["batches"] + 1))
    assert OWNER_NAME not in folder.names()


def contents(folder: LocalPlace) -> dict[str, bytes]:
    """Every file but those of a save under way, which bear a name that no other run uses."""
    return {name: folder.read(name) for name in folder.sizes() if not name.startswith(".part-")}


@pytest.mark.exhaustive  # tests/unit/test_fence.py shows it of other processes in less time
def test_a_killed_run_s_folder_is_taken_over_at_once_by_the_same_command(shards: Path, tmp_path: Path) -> None:
    folder = LocalPlace(tmp_path / "run")
    argv = command(shards, folder.path, "max_duration=4ba")
    started = start(argv, tmp_path / "killed")
    started.kill_when(lambda: owner_pid(folder) is not None)
    code, output = run(argv, tmp_path / "again")
    assert code == 0, output
    assert f"is taken over from run tiny (process {started.ranks[0].pid} on" in output and "which is dead" in output
    assert "waiting" not in output
    assert OWNER_NAME not in folder.names()
