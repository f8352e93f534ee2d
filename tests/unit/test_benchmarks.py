"""The benchmarks' programs: what they count, and that nothing of them outlives them."""

import argparse
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import loader, scaling
from infra.plan.plan import measured_gpu_rate
from tests.conftest import REPOSITORY


def record(ranks: int, rates: Sequence[float | None], *, batches_per_point: int = 1) -> dict[str, Any]:
    """A run.json with the speed of each interval; as a whole it was slower than after its warm-up."""
    curve = [
        {"batch": batches_per_point * number, "images_per_sec": rate, "data_wait_fraction": 0.9 if number == 1 else 0.1}
        for number, rate in enumerate(rates, start=1)
    ]
    return {
        "hardware": {"world_size": ranks, "device": "H100"},
        "config": {"model": {"name": "resnet50"}, "data": {"crop_size": 224}},
        "versions": {"torch": "2"},
        "throughput": {"images_per_sec": 300.0, "data_wait_fraction": 0.6},
        "curve": curve,
    }


def test_the_first_steps_of_a_run_do_not_count_in_its_speed(tmp_path: Path) -> None:
    one = record(1, [5.0] * scaling.WARM_UP + [1000.0] * 20)
    two = record(2, [5.0] * scaling.WARM_UP + [1000.0, 3000.0] * 10)  # as many images at each: 1,500 a second
    for name, found in (("one", one), ("two", two)):
        (tmp_path / name).write_text(json.dumps(found))
    out = tmp_path / "scaling.json"
    assert scaling.main(["--runs", str(tmp_path / "one"), str(tmp_path / "two"), "--json", str(out)]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [row["images_per_sec_rounds"] for row in rows] == [[pytest.approx(1000)], [pytest.approx(1500)]]
    assert [row["efficiency"] for row in rows] == [1, pytest.approx(0.75)]
    assert [row["data_wait_fraction"] for row in rows] == [pytest.approx(0.1)] * 2
    assert measured_gpu_rate(out) == pytest.approx(750)


def test_an_interval_counts_if_it_began_after_the_warm_up() -> None:
    assert scaling.speed(record(1, [5.0, 5.0, 100.0], batches_per_point=6))["images_per_sec"] == pytest.approx(100)
    assert scaling.speed(record(1, [5.0, 200.0]))["images_per_sec"] == pytest.approx(200)  # a run of two steps


@pytest.mark.parametrize("rates", [[], [100.0], [5.0, None]])
def test_a_run_that_shows_no_speed_after_its_warm_up_is_refused(rates: list[float | None]) -> None:
    with pytest.raises(SystemExit, match="give more --steps"):
        scaling.speed(record(1, rates))


@pytest.fixture
def launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A `composer` that starts a rank and waits for it; the rank notes its process id in the file that is yielded."""
    pid = tmp_path / "pid"
    (tmp_path / "composer").write_text(f"#!/bin/sh\nsleep 600 &\necho $! >{pid}\nwait\n")
    (tmp_path / "composer").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    yield pid
    if pid.exists() and is_alive(int(pid.read_text())):
        os.kill(int(pid.read_text()), signal.SIGKILL)


def is_alive(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and state.read_text().rpartition(")")[2].split()[0] not in "ZX"


@pytest.mark.slow
def test_a_run_that_takes_too_long_leaves_no_rank_alive(launcher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "SECONDS_FOR_A_RUN", 1)
    args = argparse.Namespace(data="x", images_a_rank=8, steps=2, overrides=[])
    with pytest.raises(SystemExit, match="2 ranks took over 1 s"):
        scaling.train(args, 2)
    assert not is_alive(int(launcher.read_text()))


CONTEST = loader.Contest("mosaicml", "original", 224, 1)
SILENT = """
import subprocess, sys, time
print(subprocess.Popen(["sleep", "600"]).pid, file=open({pid!r}, "w"), flush=True)
if {is_started}:
    print("{{}}", flush=True)
time.sleep(600)
"""


@pytest.mark.slow
@pytest.mark.parametrize("is_started", [False, True])
def test_a_loader_that_does_not_answer_ends_the_benchmark_with_all_its_processes(
    is_started: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = tmp_path / "pid"
    (tmp_path / "peer.py").write_text(SILENT.format(pid=str(pid), is_started=is_started))
    monkeypatch.setattr(loader, "PEERS_FILE", tmp_path / "peer.py")
    monkeypatch.setattr(loader, "ANSWER_LIMIT_S", 3.0, raising=False)
    with pytest.raises(SystemExit, match="mosaicml, original, 224 px, 1 cores gave no answer for 3 s"):
        loader.measure([CONTEST], {CONTEST: tmp_path}, {"mosaicml": sys.executable}, rounds=1)
    assert not is_alive(int(pid.read_text()))


def test_peers_environments_are_in_the_checkout_and_git_ignores_them() -> None:
    args = loader.parse(["--images", "DIR"])
    assert args.venvs.parent == REPOSITORY / "build"
    assert "/build/" in (REPOSITORY / ".gitignore").read_text().splitlines()


@pytest.mark.slow
def test_what_trains_from_our_loader_has_the_recipes_augmentations(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from composer.utils import get_device

    from benchmarks import training
    from train.data import train_loader

    given: dict[str, Any] = {}

    def noted(*args: Any, **kwargs: Any) -> Any:
        given.update(kwargs)
        return train_loader(*args, **kwargs)

    monkeypatch.setattr(training, "train_loader", noted)
    args = training.parse(["--images", "DIR", "--batch", "8", "algorithms=[{name: trivial_augment}, {name: blurpool}]"])
    cfg = training.config(args, shards)
    training.our_spec(cfg, 32, get_device("cpu"))
    assert [algorithm.name for algorithm in given["algorithms"]] == ["trivial_augment"]
    report = training.summary([], args, get_device("cpu"))
    (heading, _) = training.lines_of(report)
    assert "with blurpool; trivial_augment in our loader; " in heading
