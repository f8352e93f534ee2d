"""A real Slurm cluster on one machine: slurmctld here, and a slurmd in each of two network namespaces."""

import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.infra.hosts import Host, running_hosts
from tests.s3_server import free_port

CONFIGURATION = """
ClusterName=lab
SlurmctldHost={this}({gateway})
SlurmUser=root
SlurmctldPort={port}
SlurmdPort=16818
AuthType=auth/munge
# A job that is queued again has to wait for its old credential to expire, two minutes by default.
AuthInfo=socket={folder}/munge.socket,cred_expire=10
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/linear
PropagateResourceLimits=NONE
ReturnToService=2
SlurmdTimeout=10
KillWait=5
SchedulerParameters=sched_interval=2,batch_sched_delay=1
NodeName=n[1-2] NodeAddr={prefix}.[11-12] CPUs=1 State=UNKNOWN
PartitionName=main Nodes=n[1-2] Default=YES MaxTime=60 State=UP OverTimeLimit=5
"""

SECONDS_TO_START = 60
SECONDS_FOR_A_JOB = 280


class Cluster:
    """Submits jobs and looks at them; a node can be lost and come back."""

    def __init__(self, folder: Path, hosts: list[Host], gateway: str) -> None:
        self.folder, self.hosts, self.gateway = folder, hosts, gateway
        self.private = folder / "node-local"
        self.env = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
        self._daemons: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        for name in ("state", "spool-n1", "spool-n2", "node-local"):
            (self.folder / name).mkdir()
        prefix, this = self.gateway.rpartition(".")[0], socket.gethostname()
        text = CONFIGURATION.format(
            folder=self.folder, gateway=self.gateway, prefix=prefix, this=this, port=free_port()
        )
        (self.folder / "slurm.conf").write_text(text)
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        names = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        munged = [f"--{option}={self.folder}/munge.{ending}" for option, ending in names.items()]
        self._start(["munged", "--foreground", "--force", *munged])
        self._start(["slurmctld", "-D", "-f", f"{self.folder}/slurm.conf"])
        for host in self.hosts:
            self.boot(host)
        self.wait_until(lambda: "idle" in self._nodes(), SECONDS_TO_START, "the nodes to be idle")

    def boot(self, host: Host) -> None:
        slurmd = ["slurmd", "-D", "-N", host.name, "-f", f"{self.folder}/slurm.conf"]
        self._start(host.command(slurmd, self.private))

    def submit(self, argv: Sequence[str], env: dict[str, str], *options: str) -> int:
        """sbatch; returns the job's number."""
        log = f"--output={self.folder}/%j.log"
        script = "infra/launch/slurm/train.sbatch"
        printed = self._run(["sbatch", "--parsable", log, *options, script, *argv], env)
        return int(printed)

    def state(self, job: int) -> str:
        """Slurm's word for where a job is: PENDING, RUNNING, COMPLETED, FAILED, CANCELLED, ..."""
        return self._field(job, "JobState")

    def starts(self, job: int) -> int:
        return int(self._field(job, "Restarts")) + 1

    def output(self, job: int) -> str:
        path = self.folder / f"{job}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def signal(self, job: int, name: str) -> None:
        """To the batch script alone, as --signal=B:USR1 has it."""
        self._run(["scancel", "--batch", f"--signal={name}", str(job)], {})

    def signal_steps(self, job: int, name: str) -> None:
        """To each process of the job's steps, as at its time limit and at its preemption."""
        self._run(["scancel", f"--signal={name}", str(job)], {})

    def signal_all(self, job: int, name: str) -> None:
        """To the batch script, its children and the steps."""
        self._run(["scancel", "--full", f"--signal={name}", str(job)], {})

    def cancel(self, job: int) -> None:
        self._run(["scancel", str(job)], {})

    def wait_for_end(self, job: int) -> str:
        """The state in which a job has come to its end."""
        ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        self.wait_until(lambda: self.state(job) in ended, SECONDS_FOR_A_JOB, f"the end of job {job}", job)
        return self.state(job)

    def wait_until(self, ready: Callable[[], bool], seconds: float, what: str, job: int | None = None) -> None:
        deadline = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > deadline:
                said = self.output(job) if job else (self.folder / "slurmctld.log").read_text()
                pytest.fail(f"waited {seconds:g} s for {what}\n{said[-5000:]}")
            time.sleep(0.2)

    def stop(self) -> None:
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in self._daemons:
            with suppress(subprocess.TimeoutExpired):
                daemon.wait(10)
            daemon.kill()

    def _start(self, argv: Sequence[str]) -> None:
        with open(self.folder / "daemons.log", "ab") as log:
            self._daemons.append(subprocess.Popen(argv, stdout=log, stderr=log, env=self.env))
        time.sleep(0.5)

    def _nodes(self) -> str:
        """'idle' alone when both are."""
        done = subprocess.run(["sinfo", "-h", "-o", "%T"], env=self.env, capture_output=True, text=True, check=False)
        return "idle" if done.stdout.split() == ["idle"] else ""

    def _field(self, job: int, name: str) -> str:
        shown = self._run(["scontrol", "--oneliner", "show", "job", str(job)], {})
        match = re.search(rf"\b{name}=(\S+)", shown)
        assert match, shown
        return match[1]

    def _run(self, argv: Sequence[str], env: dict[str, str]) -> str:
        done = subprocess.run(
            argv, env=self.env | env, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, f"{argv}\n{done.stdout}{done.stderr}"
        return done.stdout.strip()


@contextmanager
def running_cluster(folder: Path) -> Iterator[Cluster]:
    """Two nodes, ready for jobs."""
    missing = [name for name in ("slurmctld", "slurmd", "sbatch", "munged") if shutil.which(name) is None]
    if missing:
        pytest.fail(f"{', '.join(missing)}: not found; apt-get install slurmctld slurmd slurm-client munge")
    with running_hosts(["n1", "n2"]) as (hosts, gateway):
        cluster = Cluster(folder, hosts, gateway)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()
