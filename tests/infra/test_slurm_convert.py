"""`convert.sbatch` on a real Slurm cluster of two nodes, one of which is lost, writing to a real S3 server."""

import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.infra.hosts import forwarded
from tests.infra.slurm_cluster import SECONDS_FOR_A_JOB, Cluster, running_cluster
from tests.integration.converter import SMALL_SHARDS, bucket_tree, convert, save_large_source, tree
from tests.s3_server import S3Server

pytestmark = pytest.mark.machine

SCRIPT = "infra/launch/slurm/convert.sbatch"
IMAGES = 2500


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder, running_cluster(Path(folder)) as cluster:
        yield cluster


def submit(cluster: Cluster, env: dict[str, str], *argv: str) -> int:
    """An array of three tasks; returns its number."""
    log = f"--output={cluster.folder}/%A_%a.log"
    argv = ("--workers", "1", *SMALL_SHARDS, *argv)
    return int(cluster._run(["sbatch", "--parsable", "--array=0-2", log, SCRIPT, *argv], env))


def log_of(cluster: Cluster, job: int, task: int) -> str:
    path = cluster.folder / f"{job}_{task}.log"
    return path.read_text(errors="replace") if path.exists() else ""


def states(cluster: Cluster, job: int) -> dict[int, str]:
    """Slurm's word for where each task of an array is."""
    shown = cluster._run(["scontrol", "--oneliner", "show", "job", str(job)], {}).splitlines()
    found: dict[int, str] = {}
    for line in shown:
        tasks, state = re.search(r"\bArrayTaskId=(\S+)", line), re.search(r"\bJobState=(\S+)", line)
        assert tasks and state, line
        first, _, last = tasks[1].partition("%")[0].partition("-")  # those that wait are one line: 1-2
        found |= {task: state[1] for task in range(int(first), int(last or first) + 1)}
    return found


def is_working(cluster: Cluster, job: int, task: int) -> bool:
    return "shards with 1 worker" in log_of(cluster, job, task)


def everything(cluster: Cluster, job: int) -> str:
    return "\n".join(f"== task {task}\n{log_of(cluster, job, task)[-1500:]}" for task in range(3))


def test_an_array_converts_though_a_node_is_lost_and_a_task_begins_when_all_is_done(
    cluster: Cluster, s3_server: S3Server, tmp_path: Path
) -> None:
    source = save_large_source(tmp_path / "source", IMAGES)
    with forwarded(cluster.gateway, s3_server.port) as address:
        env = s3_server.env_through(f"http://{address}") | {"VENV": sys.prefix}
        url = f"s3://{s3_server.bucket}/slurm"
        job = submit(cluster, env, "--source", str(source), "--out", url)
        node = cluster.hosts[1]
        cluster.wait_until(lambda: all(is_working(cluster, job, task) for task in (0, 1)), 120, "two tasks to work")
        assert "part 1/3 of a conversion by several machines, by SLURM_ARRAY_TASK_ID" in log_of(cluster, job, 1)
        node.kill_everything()
        cluster.wait_until(lambda: "n2" not in running_on(cluster, job), 60, "Slurm to notice")
        cluster.boot(node)
        ended = {task: "COMPLETED" for task in range(3)}
        cluster.wait_until(lambda: states(cluster, job) == ended, SECONDS_FOR_A_JOB, everything(cluster, job))
    logs = [log_of(cluster, job, task) for task in range(3)]
    assert sum("this machine completed the dataset" in log for log in logs) == 1, everything(cluster, job)
    assert sum("start 2, on" in log for log in logs) == 1, everything(cluster, job)
    convert(source, tmp_path / "alone")
    assert bucket_tree(s3_server, "slurm") == tree(tmp_path / "alone")


def running_on(cluster: Cluster, job: int) -> str:
    return cluster._run(["squeue", "-h", "-j", str(job), "-t", "RUNNING", "-o", "%N"], {})
