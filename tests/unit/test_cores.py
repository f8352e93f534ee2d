"""The cores that a container really has, and threads that sleep while they wait."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from imagestream.cores import available_cores, cpu_quota, threads_per_rank, wait_passively
from tests.conftest import REPOSITORY


def write(root: Path, files: dict[str, str]) -> tuple[Path, Path]:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root / "self", root / "cgroup"


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        pytest.param({"self": "0::/\n", "cgroup/cpu.max": "150000 100000\n"}, 1.5, id="in-a-container"),
        pytest.param({"self": "0::/a/b\n", "cgroup/a/b/cpu.max": "max 100000\n"}, math.inf, id="no-limit"),
        pytest.param(
            {"self": "0::/a/b\n", "cgroup/a/b/cpu.max": "400000 100000", "cgroup/a/cpu.max": "200000 100000"},
            2.0,
            id="of-the-group-above",
        ),
        pytest.param(
            {
                "self": "12:memory:/m\n4:cpu,cpuacct:/job\n0::/\n",
                "cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": "50000\n",
                "cgroup/cpu,cpuacct/job/cpu.cfs_period_us": "100000\n",
                "cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
                "cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            0.5,
            id="v1",
        ),
        pytest.param({"self": "0::/a\n", "cgroup/a/cpu.max": "nonsense\n"}, math.inf, id="unreadable"),
        pytest.param({}, math.inf, id="no-cgroups"),
    ],
)
def test_a_quota_is_found_in_either_version_and_on_the_way_up(
    tmp_path: Path, files: dict[str, str], cores: float
) -> None:
    assert cpu_quota(*write(tmp_path, files)) == cores


def test_cores_are_those_of_the_affinity_and_the_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)))
    own, root = write(tmp_path, {"self": "0::/\n", "cgroup/cpu.max": "250000 100000\n"})
    monkeypatch.setattr("imagestream.cores.OWN_CGROUP", own)
    monkeypatch.setattr("imagestream.cores.CGROUPS", root)
    assert available_cores() == 3
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [threads_per_rank(ranks) for ranks in (1, 2, 3, 8)] == [3, 1, 1, 1]
    (root / "cpu.max").write_text("max 100000\n")
    assert available_cores() == 64


@pytest.mark.parametrize(("wanted", "threads"), [("3", 3), ("5,2", 5), ("", 4), ("0", 4), ("many", 4)])
def test_omp_num_threads_is_obeyed(monkeypatch: pytest.MonkeyPatch, wanted: str, threads: int) -> None:
    monkeypatch.setattr("imagestream.cores.available_cores", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", wanted)
    assert threads_per_rank(2) == threads


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"])
def test_who_has_chosen_how_threads_wait_keeps_that(name: str) -> None:
    environment = {name: "active"}
    wait_passively(environment)
    assert environment == {name: "active"}
    nothing: dict[str, str] = {}
    wait_passively(nothing)
    assert nothing == {"OMP_WAIT_POLICY": "passive"}


@pytest.mark.parametrize("command", ["main", "evaluate"])
def test_the_commands_choose_before_torch_is_imported(command: str) -> None:
    """OpenMP reads its environment when its library is loaded; setting it later has no effect."""
    script = (
        "import os, sys\n"
        "class Look:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch':\n"
        "            print('policy', os.environ.get('OMP_WAIT_POLICY')); sys.stdout.flush(); os._exit(0)\n"
        "sys.meta_path.insert(0, Look())\n"
        f"import train.{command} as command\n"
        "command.main(['yamls/tiny.yaml', 'data.local=yamls'])\n"
    )
    environment = {
        name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    }
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "policy passive\n", done.stderr
