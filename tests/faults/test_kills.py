"""One run, killed again and again wherever it happens to be, ends as one that nothing disturbed.

It saves as often as base.yaml says, once an epoch. KILL_SEED=N gives the moments again that a failed test has printed.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from imagestream.storage.places import open_place
from tests.conftest import REPOSITORY
from tests.fault_proxy import FaultProxy, Request
from tests.faults.conftest import Trial
from tests.integration.problem import command, what_must_match
from tests.integration.test_groups import members
from tests.processes import Run, start
from tests.traced import TRACE
from train.compare import compare

pytestmark = [pytest.mark.s3, pytest.mark.slow]

SECONDS_TO_ARRIVE = 240
SECONDS_TO_END = 60
SECONDS_UNDISTURBED = 900
EXIT_STOPPED = 75


class Moment(NamedTuple):
    """What the trace has said last."""

    batch: int
    event: str


Aim = Callable[[list[Moment]], bool]


class Place(NamedTuple):
    """Where to kill: once the trace says so, and up to `spread_s` later.

    Attributes:
        how: kill: SIGKILL to every rank with its workers. term: SIGTERM to them, which saves first. launcher: SIGKILL
            to Composer's launcher alone, whose ranks end with it.
    """

    name: str
    aim: Aim
    spread_s: float
    how: str = "kill"


def after_batches(count: int) -> Aim:
    return lambda trace: sum(moment.event == "batch_end" for moment in trace) >= count


def at(event: str, count: int = 1) -> Aim:
    return lambda trace: sum(moment.event == event for moment in trace) >= count


def anywhere(rng: random.Random) -> Place:
    """One of the places below, weighed so that most kills fall into the middle of an epoch."""
    return rng.choice(
        [
            Place("start", at("process start"), 4.0),
            Place("batch", after_batches(rng.randrange(1, 6)), 0.4),
            Place("batch", after_batches(rng.randrange(1, 6)), 0.4),
            Place("evaluation", at("eval_batch_start", rng.randrange(1, 4)), 0.05),
            Place("upload", at("upload", rng.randrange(1, 3)), 0.3),
            Place("save", at("save", rng.randrange(1, 3)), 0.1),
            Place("end of an epoch", at("epoch_end"), 0.03),
            Place("after a checkpoint", at("saved"), 0.05),
        ]
    )._replace(how=rng.choice(["kill"] * 6 + ["term"] * 3 + ["launcher"]))


EACH_ONCE = [
    Place("before the first checkpoint", at("batch_start"), 0.05),
    Place("evaluation", at("eval_batch_start", 2), 0.02),
    Place("upload", at("upload"), 0.1),
    Place("after a checkpoint", at("saved"), 0.05),
    Place("end of an epoch", at("epoch_end"), 0.02),
    Place("batch", after_batches(2), 0.1, "term"),
]


@pytest.mark.parametrize(
    ("kills", "ranks", "epochs", "saves_to"),
    [
        pytest.param(4, 1, 4, "s3", id="4"),
        pytest.param(30, 1, 30, "s3", id="30-1-s3", marks=pytest.mark.exhaustive),
        pytest.param(30, 2, 30, "disk", id="30-2-disk", marks=pytest.mark.exhaustive),
        pytest.param(30, 3, 30, "s3", id="30-3-s3", marks=pytest.mark.exhaustive),
        pytest.param(30, 4, 30, "disk", id="30-4-disk", marks=pytest.mark.exhaustive),
    ],
)
def test_a_run_killed_many_times_ends_with_the_weights_of_an_undisturbed_one(
    trial: Trial, proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    kills: int, ranks: int, epochs: int, saves_to: str,
) -> None:  # fmt: skip
    seed = int(os.environ.get("KILL_SEED") or random.randrange(2**32))
    rng = random.Random(seed)
    print(f"\nKILL_SEED={seed}")
    env = trial.server.env_through(proxy.endpoint_url)
    for name, value in trial.server.env.items():
        monkeypatch.setenv(name, value)
    proxy.choose = lambda request: f"delay:{rng.random() / 5:.3f}" if is_slow(request) else ""
    folder = f"{trial.remote}-run{kills}-{ranks}" if saves_to == "s3" else str(tmp_path / "killed")
    more = (
        f"max_duration={epochs}ep", "eval_interval=5ba", "checkpoint.save_interval=1ep", "data.num_workers=1",
        "global_batch_size=12", "data.eval_batch_size=12", f"data.remote={trial.remote}", "data.predownload=8",
        "loggers.file=false",
    )  # fmt: skip
    calm = command(tmp_path / "calm-cache", tmp_path / "calm", *more)
    undisturbed = start(calm, tmp_path / "calm.log", ranks=ranks, env=env)
    assert undisturbed.wait(SECONDS_UNDISTURBED) == 0, undisturbed.output()

    argv = command(trial.cache, folder, *more)
    places = [*EACH_ONCE, *(anywhere(rng) for _ in range(kills - len(EACH_ONCE)))]
    landed: Counter[str] = Counter()
    for number, place in enumerate(places):
        shutil.rmtree(trial.cache, ignore_errors=True)  # a machine of its own: there are always downloads to do
        trace = tmp_path / f"trace{number}"
        begin = launched if place.how == "launcher" else start_traced
        started = begin(argv, tmp_path / f"log{number}", ranks, env | {TRACE: str(trace)})
        try:
            wait_until_there(started, trace, place)
            time.sleep(rng.uniform(0, place.spread_s))
            end(started, place.how)
        finally:
            started.kill()
        where = where_it_was(trace)
        landed[where] += 1
        in_flight = len(list(trial.cache.rglob("*.part")))
        last = moments(trace)[-1]
        print(f"kill {number + 1:2} ({place.how}) aimed at {place.name}: landed in {where} (batch {last.batch}, "
              f"{last.event}), {in_flight} downloads in flight")  # fmt: skip
    last_run = start(argv, tmp_path / "last.log", ranks=ranks, env=env)
    assert last_run.wait(SECONDS_UNDISTURBED) == 0, last_run.output()
    print("landed:", dict(landed))

    assert {"batch", "evaluation", "saving", "end of an epoch"} <= landed.keys()
    records = [json.loads(open_place(where).read("run.json")) for where in (str(tmp_path / "calm"), folder)]
    assert what_must_match(records[0]) == what_must_match(records[1])
    assert compare(str(tmp_path / "calm"), folder)[-1].startswith("the same, up to ")
    left = [name for name in open_place(folder).names() if name.endswith(".pt")]
    assert len(left) == 3, left


class Launched:
    """A run that Composer's launcher has started, in a process group of its own."""

    def __init__(self, argv: list[str], log: Path, ranks: int, env: dict[str, str]) -> None:
        self.log = log
        composer = [str(Path(sys.executable).parent / "composer"), "-n", str(ranks), "-m", "tests.traced", *argv]
        with open(log, "w") as file:
            self.process = subprocess.Popen(
                composer, cwd=REPOSITORY, stdout=file, stderr=file, process_group=0, env=os.environ | env
            )

    def is_alive(self) -> bool:
        return self.process.poll() is None

    def output(self) -> str:
        return self.log.read_text()

    def lose_launcher(self) -> None:
        """SIGKILL the launcher, and see its ranks and their workers end by themselves."""
        self.process.kill()
        self.process.wait(10)
        deadline = time.monotonic() + SECONDS_TO_END
        while left := members(self.process.pid):
            assert time.monotonic() < deadline, f"{left} live on without their launcher"
            time.sleep(0.1)

    def kill(self) -> None:
        """SIGKILL what is left of it."""
        for process in members(self.process.pid):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(10)


def launched(argv: list[str], log: Path, ranks: int, env: dict[str, str]) -> Launched:
    return Launched(argv, log, ranks, env)


def start_traced(argv: list[str], log: Path, ranks: int, env: dict[str, str]) -> Run:
    return start(argv, log, ranks=ranks, env=env, program="tests.traced")


def end(started: Run | Launched, how: str) -> None:
    if isinstance(started, Launched):
        started.lose_launcher()
    elif how == "term":
        for rank in started.ranks:
            if rank.pid and rank.is_alive():
                try:
                    os.killpg(rank.pid, signal.SIGTERM)
                except ProcessLookupError:  # it has not even made its group yet
                    os.kill(rank.pid, signal.SIGTERM)
        code = started.wait(SECONDS_TO_END)
        # Before training begins there is nothing to save: 143, or a signal's own end where nobody listened yet.
        assert code in (EXIT_STOPPED, 128 + signal.SIGTERM, -signal.SIGTERM), started.output()
    else:
        started.kill()


def is_slow(request: Request) -> bool:
    return (request.method == "GET" and "/shard" in request.path) or (request.method == "PUT" and "/ep" in request.path)


def wait_until_there(started: Run | Launched, trace: Path, place: Place) -> None:
    deadline = time.monotonic() + SECONDS_TO_ARRIVE
    while not place.aim(moments(trace)):
        lives = started.is_alive() if isinstance(started, Launched) else all(r.is_alive() for r in started.ranks)
        assert lives, f"it ended too soon:\n{started.output()[-3000:]}"
        assert time.monotonic() < deadline, f"never at '{place.name}':\n{started.output()[-3000:]}"
        time.sleep(0.005)


def moments(trace: Path) -> list[Moment]:
    lines = trace.read_text().splitlines() if trace.exists() else []
    words = [line.split(" ", 2) for line in lines]
    return [Moment(int(word[1]), word[2]) for word in words if len(word) == 3]


def where_it_was(trace: Path) -> str:
    """The part of a run that the last line of a trace lies in."""
    seen = [moment.event for moment in moments(trace)]
    last = seen[-1]
    if last.startswith("eval"):
        return "evaluation"
    if last in ("save", "upload"):
        return "saving"
    if last in ("epoch_end", "epoch_checkpoint", "epoch_start") or (
        last == "saved" and "epoch_checkpoint" in seen[-4:]
    ):
        return "end of an epoch"
    return "batch" if "batch_start" in seen else "start"
