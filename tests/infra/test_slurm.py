"""`train.sbatch` on a real Slurm cluster of two nodes that stream from a real S3 server and save to it."""

import functools
import json
import os
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY
from tests.infra.hosts import forwarded
from tests.infra.slurm_cluster import Cluster, running_cluster
from tests.integration.problem import command, what_must_match
from tests.s3_server import S3Server

pytestmark = pytest.mark.machine


class Lab:
    """The cluster, the bucket as its nodes reach it, and the training problem."""

    def __init__(self, cluster: Cluster, server: S3Server, address: str) -> None:
        self.cluster, self.server = cluster, server
        self.env = server.env_through(f"http://{address}") | {
            "VENV": sys.prefix,
            "LOG_ROOT": str(cluster.folder / "logs"),
            "RANKS": "1",
            "WATCH_SPOT": "0",
            "CUDA_VISIBLE_DEVICES": "",
            "TMPDIR": str(cluster.private),  # with one /tmp, two nodes would take each other for jobs of one machine
        }

    def submit(self, run: str, *more: str, options: tuple[str, ...] = (), **env: str) -> int:
        cache = self.cluster.private / run  # a disk of each node's own
        bucket = f"s3://{self.server.bucket}"
        argv = command(cache, f"{bucket}/{run}", f"data.remote={bucket}/data", "max_duration=3ep", *more)
        return self.cluster.submit(argv, self.env | env, *options)

    def saved(self, run: str) -> list[int]:
        """The batches of a run's checkpoints."""
        listed = self.server.client.list_objects_v2(Bucket=self.server.bucket, Prefix=f"{run}/").get("Contents", [])
        names = [item["Key"].rpartition("/")[2] for item in listed]
        return sorted(int(name.partition("-ba")[2][:-3]) for name in names if name.endswith(".pt"))

    def record(self, run: str) -> dict[str, Any]:
        body = self.server.client.get_object(Bucket=self.server.bucket, Key=f"{run}/run.json")["Body"].read()
        record: dict[str, Any] = json.loads(body)
        return record

    def wait_for_checkpoint(self, job: int, run: str) -> None:
        self.cluster.wait_until(lambda: bool(self.saved(run)), 120, "a checkpoint", job)


@pytest.fixture(scope="module")
def lab(s3_server: S3Server, shards: Path) -> Iterator[Lab]:
    for path in sorted(path for path in shards.rglob("*") if path.is_file()):
        key = f"data/{path.relative_to(shards)}"
        s3_server.client.put_object(Bucket=s3_server.bucket, Key=key, Body=path.read_bytes())
    with (
        tempfile.TemporaryDirectory(prefix="slurm-") as folder,
        running_cluster(Path(folder)) as cluster,
        forwarded(cluster.gateway, s3_server.port) as address,
    ):
        yield Lab(cluster, s3_server, address)


@pytest.fixture(scope="module")
def undisturbed(lab: Lab) -> dict[str, Any]:
    job = lab.submit("undisturbed")
    assert lab.cluster.wait_for_end(job) == "COMPLETED", lab.cluster.output(job)
    assert lab.cluster.starts(job) == 1
    record = lab.record("undisturbed")
    assert record["hardware"]["world_size"] == 2
    return what_must_match(record)


def test_a_job_whose_node_is_lost_in_mid_epoch_is_queued_again_and_ends_the_same(
    lab: Lab, undisturbed: dict[str, Any]
) -> None:
    job = lab.submit("lost")
    lab.wait_for_checkpoint(job, "lost")
    node = lab.cluster.hosts[1]
    node.kill_everything()
    lab.cluster.wait_until(lambda: lab.cluster.state(job) != "RUNNING", 60, "Slurm to notice", job)
    lab.cluster.boot(node)
    assert lab.cluster.wait_for_end(job) == "COMPLETED", lab.cluster.output(job)
    assert lab.cluster.starts(job) == 2
    assert "resume: from s3://" in lab.cluster.output(job)
    assert what_must_match(lab.record("lost")) == undisturbed


def ahead_of_the_limit(cluster: Cluster, job: int) -> None:
    cluster.signal(job, "USR1")


def at_the_limit(cluster: Cluster, job: int) -> None:
    cluster.signal_steps(job, "TERM")


def to_everything(cluster: Cluster, job: int) -> None:
    cluster.signal_all(job, "USR1")


@pytest.mark.parametrize("warn", [ahead_of_the_limit, at_the_limit, to_everything])
def test_a_warning_saves_first_and_loses_no_step(
    lab: Lab, undisturbed: dict[str, Any], warn: Callable[[Cluster, int], None]
) -> None:
    run = f"warned-{warn.__name__}"
    job = lab.submit(run, "checkpoint.save_interval=1ep", "data.num_workers=2")
    beat = Path(lab.env["LOG_ROOT"]) / str(job) / "heartbeat-node0.json"
    lab.cluster.wait_until(lambda: beat.exists() and json.loads(beat.read_text())["batch"] >= 8, 120, "batch 8", job)
    warn(lab.cluster, job)
    assert lab.cluster.wait_for_end(job) == "COMPLETED", lab.cluster.output(job)
    output = lab.cluster.output(job)
    assert lab.cluster.starts(job) == 2
    stopped_at = int(output.partition(" after batch ")[2].partition(";")[0])
    assert f"-ba{stopped_at}.pt" in output.partition("resume: from")[2], output
    assert "a checkpoint is saved; queued again" in output
    assert what_must_match(lab.record(run)) == undisturbed


def test_scancel_ends_a_job_for_good(lab: Lab) -> None:
    job = lab.submit(f"cancelled-{uuid.uuid4().hex}", "max_duration=400ep")
    beat = Path(lab.env["LOG_ROOT"]) / str(job) / "heartbeat-node0.json"
    lab.cluster.wait_until(beat.exists, 120, "the first batch", job)
    lab.cluster.cancel(job)
    assert lab.cluster.wait_for_end(job) == "CANCELLED"
    lab.cluster.wait_until(lambda: not lab.cluster._field(job, "JobState").startswith("COMPL"), 30, "its end", job)
    assert lab.cluster.starts(job) == 1
    assert lab.cluster.state(job) == "CANCELLED"
    assert "queued again" not in lab.cluster.output(job)


def has_begun(lab: Lab, job: int) -> bool:
    return "train.sbatch" in lab.cluster.output(job)


def test_scancel_as_a_job_begins_is_not_undone(lab: Lab) -> None:
    """Its script may not have come to its traps yet; srun then fails, which would queue the job again."""
    for delay_s in (0.0, 0.1, 0.3):
        job = lab.submit(f"early-{delay_s:g}", "max_duration=400ep")
        lab.cluster.wait_until(functools.partial(has_begun, lab, job), 60, "its first line", job)
        time.sleep(delay_s)
        lab.cluster.cancel(job)
        assert lab.cluster.wait_for_end(job) == "CANCELLED"
        assert lab.cluster.starts(job) == 1
        assert "queued again\n" not in lab.cluster.output(job)


def test_what_is_refused_is_not_queued_again_and_a_failure_only_so_often(lab: Lab) -> None:
    refused = lab.submit("refused", "data.crop_size=33")
    failing = lab.submit("failing", "optimizer.lr=1e18", "scheduler.t_warmup=0ba", MAX_FAILURES="2")
    assert lab.cluster.wait_for_end(refused) == "FAILED"
    assert lab.cluster.starts(refused) == 1
    assert "must be a multiple of 16" in lab.cluster.output(refused)
    assert lab.cluster.wait_for_end(failing) == "FAILED", lab.cluster.output(failing)
    assert lab.cluster.starts(failing) == 2
    assert "not queued again" in lab.cluster.output(failing)


def test_a_job_runs_in_an_image(lab: Lab, undisturbed: dict[str, Any], tmp_path: Path) -> None:
    """With a stand-in for Pyxis, which Debian does not have: what it gets, and that the run is the same."""
    image, data = tmp_path / "image.sqsh", tmp_path / "scratch"
    image.write_text("squash")
    data.mkdir()
    env = stand_ins(tmp_path) | {"IMAGE": str(image), "MOUNTS": f"{data} /not/there", "VENV": "/not/there"}
    job = lab.submit("in-image", options=(), **env)
    assert lab.cluster.wait_for_end(job) == "COMPLETED", lab.cluster.output(job)
    assert what_must_match(lab.record("in-image")) == undisturbed
    assert f"stand-in: {data}, " in lab.cluster.output(job) and "/app/runs, /app\n" in lab.cluster.output(job)


def stand_ins(folder: Path) -> dict[str, str]:
    """Variables by which a job finds a `srun` that knows the options of containers."""
    real = shutil.which("srun")
    assert real
    (folder / "srun").symlink_to(REPOSITORY / "tests/infra/container_stand_in.py")
    return {"PATH": f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}", "REAL_SRUN": real}


def test_a_job_takes_as_many_nodes_as_there_are(lab: Lab, undisturbed: dict[str, Any]) -> None:
    """It loses one of two nodes, continues with one, and takes two again; each global batch has the same samples."""
    elastic = {"NODE_COUNTS": "1 2", "GROW_AFTER_S": "1", "NODE_USD_PER_HOUR": "1.5"}
    job = lab.submit("elastic", options=("--nodes=1-2",), **elastic)
    cluster, (_, node) = lab.cluster, lab.cluster.hosts
    lab.wait_for_checkpoint(job, "elastic")
    node.kill_everything()
    cluster.wait_until(lambda: cluster.state(job) != "RUNNING", 60, "Slurm to notice", job)
    saved = max(lab.saved("elastic"))
    cluster.wait_until(lambda: max(lab.saved("elastic")) > saved, 120, "a checkpoint of one node", job)
    cluster.boot(node)
    assert cluster.wait_for_end(job) == "COMPLETED", cluster.output(job)
    output = cluster.output(job)
    starts = [line.partition(" on ")[2] for line in output.splitlines() if "train.sbatch: job " in line]
    assert starts == ["n1 n2", "n1", "n1 n2"], output
    assert "1 more nodes are idle: the ranks are told to save, to continue with 2" in output
    record = lab.record("elastic")
    assert record["ledger"] == undisturbed["ledger"]
    assert record["hardware"]["world_size"] == 2
    assert record["time"]["usd_per_hour"] == 3.0


def test_nodes_that_do_not_divide_the_batch_are_given_back(lab: Lab) -> None:
    """Another job gets them while the first still trains."""
    long = lab.submit("smaller", "max_duration=400ep", options=("--nodes=1-2",), NODE_COUNTS="1 4")
    beat = Path(lab.env["LOG_ROOT"]) / str(long) / "heartbeat-node0.json"
    lab.cluster.wait_until(beat.exists, 120, "the first batch", long)
    short = lab.submit("beside", "max_duration=2ba", options=("--nodes=1",))
    assert lab.cluster.wait_for_end(short) == "COMPLETED", lab.cluster.output(short)
    assert lab.cluster.state(long) == "RUNNING"
    lab.cluster.signal(long, "USR1")
    again = "the batch divides by 1 of 2 nodes; the others are given back"
    lab.cluster.wait_until(
        lambda: lab.cluster.output(long).count(again) == 2, 120, "both nodes at the job's second start", long
    )
    lab.cluster.cancel(long)
    assert lab.cluster.wait_for_end(long) == "CANCELLED", lab.cluster.output(long)
