"""A real Slurm cluster drains a node that is not fit, and the job continues elsewhere; nvidia-smi is a stand-in."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gpu_stand_ins import kernel_log, nvidia_smi, program
from tests.infra.slurm_cluster import Cluster, running_cluster
from tests.integration.problem import command, record_of

pytestmark = pytest.mark.machine

GPUS = 4  # of a g5.12xlarge


class Lab:
    """The cluster, and how many GPUs each of its nodes shows."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.tools = cluster, cluster.folder / "tools"
        self.env = {
            "VENV": sys.prefix,
            "LOG_ROOT": str(cluster.folder / "logs"),
            "RANKS": "1",
            "WATCH_SPOT": "0",
            "CUDA_VISIBLE_DEVICES": "",
            "TMPDIR": str(cluster.private),  # with one /tmp, two nodes would take each other for jobs of one machine
            "PREFLIGHT": "1",
            "INSTANCE_TYPE": "g5.12xlarge",
            "GLOO_SOCKET_IFNAME": "eth0",
            "PATH": f"{self.tools}:/usr/sbin:/usr/bin:/sbin:/bin",
        }
        kernel_log(self.tools)
        program(self.tools, "nvidia-smi", f'#!/bin/sh\nexec {self.tools}/$SLURMD_NODENAME/nvidia-smi "$@"\n')

    def show(self, **gpus: int) -> None:
        """From now on n1 and n2 have so many."""
        for node, count in gpus.items():
            nvidia_smi(self.tools / node, count, python=sys.executable)

    def submit(self, argv: list[str], nodes: int, **env: str) -> int:
        return self.cluster.submit(argv, self.env | env, f"--nodes={nodes}")

    def node(self, name: str) -> str:
        """What Slurm says of a node."""
        shown = ["scontrol", "--oneliner", "show", "node", name]
        return subprocess.run(shown, env=self.cluster.env, capture_output=True, text=True, check=True).stdout

    def resume(self, *names: str) -> None:
        for name in names:
            change = ["scontrol", "update", f"nodename={name}", "state=RESUME"]
            subprocess.run(change, env=self.cluster.env, check=True, timeout=60)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder, running_cluster(Path(folder)) as cluster:
        yield cluster


@pytest.fixture
def lab(cluster: Cluster) -> Iterator[Lab]:
    lab = Lab(cluster)
    yield lab
    for name in ("n1", "n2"):
        if "DRAIN" in lab.node(name):
            lab.resume(name)


def test_a_node_without_one_of_its_gpus_is_drained_and_the_job_trains_on_another(
    lab: Lab, shards: Path, tmp_path: Path
) -> None:
    lab.show(n1=GPUS - 1, n2=GPUS)
    job = lab.submit(command(shards, tmp_path, "max_duration=2ba"), nodes=1)
    assert lab.cluster.wait_for_end(job) == "COMPLETED", lab.cluster.output(job)
    output = lab.cluster.output(job)
    assert f"n1 is not fit: GPUs: {GPUS - 1} of {GPUS} are there" in output
    assert "n1 is drained" in output and "on other nodes; queued again" in output
    assert lab.cluster.starts(job) == 2 and "start 2, on n2" in output
    assert "DRAIN" in lab.node("n1") and "preflight: GPUs: 3 of 4 are there" in lab.node("n1")
    assert "DRAIN" not in lab.node("n2")
    assert record_of(tmp_path)["status"] == "finished"
    assert not (Path(lab.env["LOG_ROOT"]) / str(job) / "failures").exists(), "it is no failure of the run"


def test_a_job_of_several_nodes_waits_until_the_drained_one_is_replaced(lab: Lab, shards: Path, tmp_path: Path) -> None:
    lab.show(n1=GPUS, n2=0)
    job = lab.submit(command(shards, tmp_path, "max_duration=2ba"), nodes=2)
    lab.cluster.wait_until(lambda: "DRAIN" in lab.node("n2"), 120, "n2 to be drained", job)
    lab.cluster.wait_until(lambda: lab.cluster.state(job) == "PENDING", 120, "the job to be queued", job)
    lab.show(n2=GPUS)
    lab.resume("n2")
    assert lab.cluster.wait_for_end(job) == "COMPLETED", lab.cluster.output(job)
    output = lab.cluster.output(job)
    assert "n2 is not fit: GPUs: 0 of 4 are there" in output and lab.cluster.starts(job) == 2
    assert "GB/s over all 2 ranks of 2 machines" in output
    assert record_of(tmp_path)["hardware"]["world_size"] == 2


@pytest.mark.parametrize(
    ("gpus", "nodes", "most", "words"),
    [
        ({"n1": 0, "n2": 0}, 2, "2", "all 2 nodes fail in the same way, so it is not the nodes"),
        ({"n1": 0, "n2": 0}, 1, "0", "0 nodes were drained before, and MAX_BAD_NODES is 0"),
    ],
)
def test_a_check_that_is_wrong_cannot_drain_a_cluster(
    lab: Lab, shards: Path, tmp_path: Path, gpus: dict[str, int], nodes: int, most: str, words: str
) -> None:
    lab.show(**gpus)
    job = lab.submit(command(shards, tmp_path), nodes=nodes, MAX_BAD_NODES=most)
    assert lab.cluster.wait_for_end(job) == "FAILED"
    assert words in lab.cluster.output(job) and lab.cluster.starts(job) == 1
    assert "DRAIN" not in lab.node("n1") + lab.node("n2")
    assert lab.cluster._field(job, "ExitCode") == "69:0"
