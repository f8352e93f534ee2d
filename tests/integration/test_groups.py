"""A signal to a whole process group, as `timeout`, Ctrl-C and schedulers send it, saves first and leaves no process.

Nor does a SIGKILL to the launcher or to a rank leave a process behind.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import REPOSITORY
from tests.integration.problem import command, record_of, what_must_match
from tests.processes import run, start

EXIT_STOPPED = 75
SECONDS_TO_GO = 15
COMPOSER = (str(Path(sys.executable).parent / "composer"), "-n", "2")
WITH_WORKERS = ("data.num_workers=2",)
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Started:
    """A command in a process group of its own; what is left of it is killed at the end."""

    def __init__(self, line: Sequence[str], log: Path) -> None:
        self.log = log
        with open(log, "w") as output:
            self.process = subprocess.Popen(line, cwd=REPOSITORY, stdout=output, stderr=output, process_group=0)

    def left(self) -> list[psutil.Process]:
        return members(self.process.pid)

    def said(self) -> str:
        return self.log.read_text()


def members(group: int) -> list[psutil.Process]:
    """The processes of a group that still run."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            pass
    return found


def wait_for(ready: Callable[[], object], seconds: float, said: Callable[[], str]) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, said()[-3000:]
        time.sleep(0.02)


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., Started]]:
    """Start a command, and wait for its second checkpoint."""
    started: list[Started] = []

    def begin(line: Sequence[str], folder: Path) -> Started:
        started.append(Started(line, tmp_path / "launched"))
        wait_for((folder / "ep0-ba2.pt").exists, 240, started[-1].said)
        return started[-1]

    yield begin
    for one in started:
        for process in one.left():
            process.kill()
        one.process.wait(10)


def stopped_batch(said: str) -> int:
    return int(said.partition("the checkpoint is saved")[0].rpartition("after batch ")[2].partition(";")[0])


def check_it_goes_on(
    argv: list[str], folder: Path, stopped_at: int, expected: dict[str, Any], ranks: int, *, real_network: bool
) -> None:
    assert 2 <= stopped_at < 12
    assert max(int(path.stem.partition("-ba")[2]) for path in folder.glob("ep*-ba*.pt")) == stopped_at
    code, output = run(argv, folder / "again", ranks=ranks, real_network=real_network)
    assert code == 0, output
    assert f"-ba{stopped_at}.pt" in output
    assert what_must_match(record_of(folder)) == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    "number", [signal.SIGTERM, *(pytest.param(number, marks=pytest.mark.exhaustive) for number in STOPS[1:])]
)
def test_a_signal_to_a_rank_and_its_workers_saves_first_and_nothing_is_lost(
    shards: Path, undisturbed: dict[str, Any], tmp_path: Path, number: signal.Signals
) -> None:
    argv = command(shards, tmp_path, *WITH_WORKERS)
    started = start(argv, tmp_path / "log")
    wait_for((tmp_path / "ep0-ba2.pt").exists, 120, started.output)
    group = started.ranks[0].pid
    assert group and len(members(group)) >= 3  # the rank and two workers, at least
    os.killpg(group, number)
    code = started.wait(60)
    said = started.output()
    assert code == EXIT_STOPPED, said
    assert f"{number.name}: saving after this batch" in said and "Traceback" not in said
    assert f"stopped by {number.name} after batch" in said
    wait_for(lambda: not members(group), SECONDS_TO_GO, lambda: str(members(group)))
    check_it_goes_on(argv, tmp_path, stopped_batch(said), what_must_match(undisturbed), 1, real_network=False)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_timeout_signals_the_group_and_the_run_saves_first(
    shards: Path, tmp_path: Path, launch: Callable[..., Started]
) -> None:
    calm = tmp_path / "calm"
    code, output = run(command(shards, calm, *WITH_WORKERS), tmp_path / "calm.log", real_network=True)
    assert code == 0, output
    argv = command(shards, tmp_path / "run", *WITH_WORKERS)
    started = launch(["timeout", "-s", "TERM", "1000", sys.executable, "train/main.py", *argv], tmp_path / "run")
    started.process.terminate()  # as when the time is up: it signals its group, itself left out
    assert started.process.wait(60) == EXIT_STOPPED, started.said()
    wait_for(lambda: not started.left(), SECONDS_TO_GO, lambda: str(started.left()))
    expected = what_must_match(record_of(calm))
    check_it_goes_on(argv, tmp_path / "run", stopped_batch(started.said()), expected, 1, real_network=True)


@pytest.fixture(scope="module")
def undisturbed_pair(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The record of a run of two ranks with the real network, which the launcher's ranks have."""
    folder = tmp_path_factory.mktemp("pair")
    argv = command(shards, folder, *WITH_WORKERS, "eval_interval=2ep")
    code, output = run(argv, folder / "log", ranks=2, real_network=True)
    assert code == 0, output
    return what_must_match(record_of(folder))


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("number", STOPS)
def test_a_signal_to_the_launcher_its_ranks_and_their_workers_saves_first(
    shards: Path,
    undisturbed_pair: dict[str, Any],
    tmp_path: Path,
    launch: Callable[..., Started],
    number: signal.Signals,
) -> None:
    """SIGUSR1 kills Composer's launcher, whose status that is; the ranks save all the same."""
    argv = command(shards, tmp_path / "run", *WITH_WORKERS, "eval_interval=2ep")
    started = launch([*COMPOSER, "train/main.py", *argv], tmp_path / "run")
    assert len(started.left()) >= 7  # the launcher, two ranks, and two workers of each
    os.killpg(started.process.pid, number)
    code = started.process.wait(60)
    wait_for(lambda: not started.left(), SECONDS_TO_GO, lambda: str(started.left()))
    assert code == (-signal.SIGUSR1 if number == signal.SIGUSR1 else EXIT_STOPPED), started.said()
    assert f"stopped by {number.name} after batch" in started.said()
    check_it_goes_on(argv, tmp_path / "run", stopped_batch(started.said()), undisturbed_pair, 2, real_network=True)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_launcher_that_is_killed_takes_ranks_and_workers_along(
    shards: Path, tmp_path: Path, launch: Callable[..., Started]
) -> None:
    argv = command(shards, tmp_path / "run", *WITH_WORKERS, "max_duration=400ep")
    started = launch([*COMPOSER, "train/main.py", *argv], tmp_path / "run")
    os.kill(started.process.pid, signal.SIGKILL)
    started.process.wait(5)
    wait_for(lambda: not started.left(), 5, lambda: f"{started.left()}\n{started.said()}")
    assert f"the launcher (process {started.process.pid}) is gone; rank 0 ends" in started.said()


@pytest.mark.slow
def test_a_rank_that_is_killed_takes_its_workers_along(shards: Path, tmp_path: Path) -> None:
    started = start(command(shards, tmp_path, *WITH_WORKERS, "max_duration=400ep"), tmp_path / "log")
    wait_for((tmp_path / "ep0-ba2.pt").exists, 120, started.output)
    group = started.ranks[0].pid
    assert group and len(members(group)) >= 3
    os.kill(group, signal.SIGKILL)
    wait_for(lambda: not members(group), 3, lambda: str(members(group)))
    started.wait(5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "second", "code"),
    [
        (signal.SIGINT, signal.SIGINT, 130),
        pytest.param(signal.SIGTERM, signal.SIGTERM, 143, marks=pytest.mark.exhaustive),  # waits for 5 s
    ],
)
def test_a_second_signal_ends_a_run_at_once_that_hangs(
    shards: Path, tmp_path: Path, first: signal.Signals, second: signal.Signals, code: int
) -> None:
    """The other rank is stopped, so the batch never ends."""
    started = start(command(shards, tmp_path, *WITH_WORKERS, "max_duration=400ep"), tmp_path / "log", ranks=2)
    wait_for((tmp_path / "ep0-ba2.pt").exists, 120, started.output)
    rank, other = (process.pid for process in started.ranks)
    assert rank and other
    os.kill(other, signal.SIGSTOP)
    try:
        os.kill(rank, first)
        if second == signal.SIGTERM:
            os.kill(rank, second)  # the launcher's, after one to the group
            time.sleep(6)
        else:
            time.sleep(0.5)
        assert started.ranks[0].is_alive()
        os.kill(rank, second)
        started.ranks[0].join(5)
        assert started.ranks[0].exitcode == code
    finally:
        os.kill(other, signal.SIGCONT)
        started.kill()
    assert "press Ctrl-C again to end at once" in started.output() or first != signal.SIGINT
