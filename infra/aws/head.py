"""The cluster, through `pcluster`, and its head node, through Session Manager: no open port, no key."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from infra.aws.spending import RefusedError

ROOT = Path(__file__).resolve().parents[2]
SECONDS_FOR_A_COMMAND, SECONDS_BETWEEN_LOOKS = 1800.0, 2.0
SECONDS_FOR_A_CLUSTER = 3600.0


class HeadError(RuntimeError):
    """A command failed on the head node, or pcluster did; the message has its output."""


def pcluster(*arguments: str) -> dict[str, Any]:
    """Run ParallelCluster's command and return its JSON.

    Raises:
        RefusedError: it is not installed.
        HeadError: it refused, with its message.
    """
    program = os.environ.get("PCLUSTER") or shutil.which("pcluster")
    beside = ROOT / "build/infra-tools/pcluster/bin/pcluster"
    if program is None and beside.exists():
        program = str(beside)
    if program is None:
        raise RefusedError("pcluster is not installed: `make infra-tools`, or pip install aws-parallelcluster")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    try:
        answer: dict[str, Any] = json.loads(done.stdout or "{}")
    except ValueError:
        answer = {"message": done.stdout.strip() or done.stderr.strip()}
    if done.returncode != 0:
        raise HeadError(f"pcluster {arguments[0]}: {answer.get('message', '')} {done.stderr.strip()[-500:]}".strip())
    return answer


def cluster_state(name: str, region: str) -> str:
    """ParallelCluster's word for the cluster's state; '' when there is none."""
    try:
        found = pcluster("describe-cluster", "--cluster-name", name, "--region", region)
    except HeadError as error:
        if "does not exist" in str(error):
            return ""
        raise
    return str(found["clusterStatus"])


def make_cluster(name: str, region: str, config: Path) -> str:
    """Make the cluster, or wait for the one that an interrupted call has begun; return its state."""
    found = cluster_state(name, region)
    if found in ("CREATE_FAILED", "DELETE_FAILED"):
        print(f"cluster {name} is {found}: it is removed and made anew")
        remove_cluster(name, region)
        found = ""
    if not found:
        pcluster(
            *("create-cluster", "--cluster-name", name, "--region", region),
            *("--cluster-configuration", str(config), "--rollback-on-failure", "true"),
        )
    found = _wait(name, region)
    if not found.endswith("_COMPLETE"):
        raise HeadError(f"cluster {name} is {found or 'gone'}: `pcluster get-cluster-stack-events` says why")
    return found


def remove_cluster(name: str, region: str) -> bool:
    """Remove the cluster; return whether there was one."""
    found = cluster_state(name, region)
    if not found:
        return False
    if found != "DELETE_IN_PROGRESS":
        pcluster("delete-cluster", "--cluster-name", name, "--region", region)
    found = _wait(name, region)
    if found:
        raise HeadError(f"cluster {name} is {found}; remove it in the console")
    return True


def _wait(name: str, region: str) -> str:
    deadline = time.monotonic() + SECONDS_FOR_A_CLUSTER
    while (found := cluster_state(name, region)).endswith("_IN_PROGRESS"):
        if time.monotonic() > deadline:
            raise HeadError(f"cluster {name} is still {found} after an hour")
        time.sleep(10 * SECONDS_BETWEEN_LOOKS)  # a cluster takes minutes; bounded above
    return found


def head_node(ec2: Any, name: str) -> str:
    """The head node's instance id.

    Raises:
        RefusedError: none is running.
    """
    wanted = {
        "tag:parallelcluster:cluster-name": name,
        "tag:parallelcluster:node-type": "HeadNode",
        "instance-state-name": "running",
    }
    filters = [{"Name": key, "Values": [value]} for key, value in wanted.items()]
    found = ec2.describe_instances(Filters=filters)["Reservations"]
    if not found:
        raise RefusedError(f"no head node of cluster {name} is running; run `up` first")
    instance: str = found[0]["Instances"][0]["InstanceId"]
    return instance


def on_head(ssm: Any, instance: str, lines: Sequence[str]) -> str:
    """Run shell lines on the head node as its user `ubuntu`; return what they print.

    Raises:
        HeadError: they failed.
    """
    script = ["set -euo pipefail", "cd /home/ubuntu", *lines]
    sent = ssm.send_command(
        InstanceIds=[instance],
        DocumentName="AWS-RunShellScript",
        Parameters={
            "commands": ["sudo -iu ubuntu bash -s <<'END_OF_SCRIPT'", *script, "END_OF_SCRIPT"],
            "executionTimeout": [str(int(SECONDS_FOR_A_COMMAND))],
        },
    )
    command = sent["Command"]["CommandId"]
    deadline = time.monotonic() + SECONDS_FOR_A_COMMAND
    while True:
        try:
            found = ssm.get_command_invocation(CommandId=command, InstanceId=instance)
        except ssm.exceptions.InvocationDoesNotExist:  # for a moment after it was sent
            found = {"Status": "Pending"}
        if found["Status"] == "Success":
            return str(found["StandardOutputContent"])
        if found["Status"] not in ("Pending", "InProgress", "Delayed") or time.monotonic() > deadline:
            said = (found.get("StandardOutputContent", "") + found.get("StandardErrorContent", ""))[-2000:]
            raise HeadError(f"on the head node ({found['Status']}): {said}")
        time.sleep(SECONDS_BETWEEN_LOOKS)  # bounded above
