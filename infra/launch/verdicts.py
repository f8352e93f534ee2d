"""Which machines of a run have found themselves unfit: a file for each, in a folder that all of them share."""

import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from infra.launch.gpu_checks import Finding


def node_name(env: Mapping[str, str]) -> str:
    """By which Slurm knows this machine, or its own name."""
    return env.get("SLURMD_NODENAME") or socket.gethostname()


def unfit_nodes(env: Mapping[str, str]) -> list[str]:
    """Machines of a Slurm job that have said that they are unfit in this start of it.

    Without Slurm none: the folder may be a machine's own, or hold what an earlier run has left.
    """
    folder = _folder(env)
    if not env.get("SLURM_JOB_ID"):
        return []
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def forget_verdict(env: Mapping[str, str]) -> None:
    """Take back what this machine has said in an earlier run."""
    (_folder(env) / node_name(env)).unlink(missing_ok=True)


def write_verdict(env: Mapping[str, str], unfit: Sequence[Finding]) -> None:
    """Say that this machine is unfit; the first line is the reason by which train.sbatch drains it."""
    folder = _folder(env)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / node_name(env)
    temporary = folder.with_name(f".unfit-{path.name}.{os.getpid()}")
    temporary.write_text("".join(f"{finding.what}: {finding.seen}\n" for finding in unfit))
    temporary.replace(path)


def _folder(env: Mapping[str, str]) -> Path:
    return Path(env.get("LOG_DIR") or ".") / "unfit"
