"""Which machine of infra/plan/machines.yaml this is, and whether it is one with GPUs."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from infra.launch.metadata import is_ec2, metadata
from infra.plan.machines import Machine, UnknownMachineError, machine


def this_machine(env: Mapping[str, str]) -> Machine | None:
    """This machine's type in the table, by $INSTANCE_TYPE or by EC2's own word; None where neither is known."""
    name = env.get("INSTANCE_TYPE") or (metadata("instance-type") if is_ec2() else "")
    try:
        return machine(name) if name else None
    except UnknownMachineError:
        return None


def preflight_is_wanted(env: Mapping[str, str]) -> bool:
    """Whether infra/launch/preflight.py is to look at this machine: its module's text, PREFLIGHT."""
    wish = env.get("PREFLIGHT", "")
    if wish in ("0", "1"):
        return wish == "1"
    if env.get("CUDA_VISIBLE_DEVICES") == "":
        return False
    return shutil.which("nvidia-smi") is not None or Path("/dev/nvidia0").exists() or this_machine(env) is not None
