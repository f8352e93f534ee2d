"""The cluster, through `pcluster`, and its head node, through Session Manager: no open port, no key."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from infra.aws.spending import RefusedError
from infra.aws.waiting import Waiting

ROOT = Path(__file__).resolve().parents[2]
SECONDS_FOR_A_COMMAND, SECONDS_BETWEEN_LOOKS = 3600.0, 2.0  # the first one with an image brings 6 GB
SECONDS_FOR_A_CLUSTER = 3600.0


DRY_RUN_SUCCEEDED = "DryRun flag is set"  # in the message of what pcluster refuses to call a success
NO_CHANGES = "No changes found"


class HeadError(RuntimeError):
    """A command failed on the head node, or pcluster did; the message has its output.

    Attributes:
        answer: what pcluster said, as it said it; empty for a command on the head node.
    """

    def __init__(self, message: str, answer: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.answer = answer or {}


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
        said = "\n  ".join([str(answer.get("message", "")), *_faults(answer)])
        raise HeadError(f"pcluster {arguments[0]}: {said} {done.stderr.strip()[-500:]}".strip(), answer)
    return answer


def _faults(answer: Mapping[str, Any]) -> list[str]:
    """What pcluster found wrong with a configuration or a change of it, a line each."""
    faults = [
        f"{entry.get('type', '')}: {entry.get('message', '')}"
        for entry in answer.get("configurationValidationErrors") or []
        if entry.get("level") == "ERROR"
    ]
    return faults + [
        f"{entry['parameter']} from {entry['currentValue']} to {entry['requestedValue']}: {entry['message']}"
        for entry in answer.get("updateValidationErrors") or []
    ]


def cluster_state(name: str, region: str) -> str:
    """ParallelCluster's word for the cluster's state; '' when there is none."""
    try:
        found = pcluster("describe-cluster", "--cluster-name", name, "--region", region)
    except HeadError as error:
        if "does not exist" in str(error):
            return ""
        raise
    return str(found["clusterStatus"])


def dry_run(name: str, region: str, config: Path, *, update: bool = False) -> list[str]:
    """Have pcluster check a configuration; return what an update would change, a line each.

    Raises:
        HeadError: it would refuse; its message names each fault.
    """
    verb = "update-cluster" if update else "create-cluster"
    arguments = (verb, "--cluster-name", name, "--region", region, "--cluster-configuration", str(config))
    try:
        pcluster(*arguments, "--dryrun", "true")
    except HeadError as error:
        if update and NO_CHANGES in str(error):
            return []
        if DRY_RUN_SUCCEEDED not in str(error):
            raise
        return [
            f"{entry['parameter']} from {entry['currentValue']} to {entry['requestedValue']}"
            for entry in error.answer.get("changeSet") or []
        ]
    raise HeadError(f"pcluster {verb} --dryrun gave no answer")


def make_cluster(name: str, region: str, config: Path, agreed: Callable[[Sequence[str]], None]) -> str:
    """Make the cluster, or bring the one there is up to date; return its state.

    One that an interrupted call has begun is waited for. One that failed is removed and made anew.

    Args:
        name: of the cluster.
        region: where.
        config: what cluster.write() wrote.
        agreed: gets the changes to a cluster that is there, before they are made; it raises to prevent them.

    Raises:
        HeadError: pcluster refuses it, or it does not come about.
    """
    found = _wait(name, region)
    if found in ("CREATE_FAILED", "DELETE_FAILED"):
        print(f"cluster {name} is {found}: it is removed and made anew")
        remove_cluster(name, region)
        found = ""
    common = ("--cluster-name", name, "--region", region, "--cluster-configuration", str(config))
    if not found:
        dry_run(name, region, config)
        pcluster("create-cluster", *common, "--rollback-on-failure", "true")
    else:
        changes = dry_run(name, region, config, update=True)
        if not changes:
            return found
        agreed(changes)
        pcluster("update-cluster", *common)
    found = _wait(name, region)
    if found not in ("CREATE_COMPLETE", "UPDATE_COMPLETE"):
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
    with Waiting(f"cluster {name}") as waiting:
        while (found := cluster_state(name, region)).endswith("_IN_PROGRESS"):
            if time.monotonic() > deadline:
                raise HeadError(f"cluster {name} is still {found} after an hour")
            waiting.is_at(found)
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
    with Waiting("the head node's answer") as waiting:
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
            waiting.is_at(found["Status"])
            time.sleep(SECONDS_BETWEEN_LOOKS)  # bounded above


def run_in_view(command: Sequence[str]) -> None:
    """Run a command that takes minutes in this repository; what it prints is seen at once.

    Raises:
        HeadError: it fails, as it has said itself.
        RefusedError: it is not installed.
    """
    done = _run(command, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise HeadError(f"{command[0]} {command[1]} ended with exit status {done.returncode}")


def run_here(command: Sequence[str], text: str | None = None) -> str:
    """Run a command in this repository; return what it prints.

    Raises:
        HeadError: it fails.
        RefusedError: it is not installed.
    """
    done = _run(command, input=text, capture_output=True)
    if done.returncode != 0:
        raise HeadError(f"{command[0]} {command[1]}: {done.stderr.strip()[-1000:]}")
    return done.stdout


def _run(command: Sequence[str], **options: Any) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(command, cwd=ROOT, text=True, check=False, **options)
    except FileNotFoundError:
        raise RefusedError(f"{command[0]} is not installed here") from None
