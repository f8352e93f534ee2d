"""Which process this is, among those of all machines and containers, and whether one that left its name is gone."""

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def process_identity() -> dict[str, Any]:
    """Return what tells this process from all others, as plain data to be written down."""
    pid = os.getpid()
    return {
        "host": socket.gethostname(),
        "pid": pid,
        "start_ticks": _state_and_start(pid)[1],
        "pid_namespace": _pid_namespace(),
        "boot_id": boot_id(),
    }


def can_be_looked_up(process: Mapping[str, Any]) -> bool:
    """Return whether its number means something here: it is of this machine since it was booted, and of this container.

    A host's name is not enough: containers may have that of their machine, and machines may have the same.
    """
    return (process.get("boot_id"), process.get("pid_namespace")) == (boot_id(), _pid_namespace())


def is_gone(process: Mapping[str, Any]) -> bool:
    """Return whether a process that can be looked up is not there any more. A zombie is gone."""
    try:
        pid = int(process["pid"])
        os.kill(pid, 0)
    except PermissionError:  # another user's
        pass
    except (KeyError, TypeError, ValueError, OverflowError, ProcessLookupError):
        return True
    state, started = _state_and_start(pid)
    return state in ("Z", "X") or started != process.get("start_ticks")  # the number may be another process's by now


def boot_id() -> str:
    """Return what tells two running machines apart, however alike they are; the same in all containers of one."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def _state_and_start(pid: int) -> tuple[str, str]:
    """Return fields 3 and 22 of /proc/PID/stat: the state's letter, and clock ticks from boot to start; "" off Linux.

    A process that is dead and not yet waited for, in state Z, can still be signalled.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "", ""
    return fields[0], fields[19]


def _pid_namespace() -> str:
    """Return the kernel's name for what the numbers of processes belong to: each container has its own."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
