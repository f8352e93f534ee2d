"""How many processor cores a process may use, and how its threads wait for each other.

Imports neither torch nor Composer: OpenMP reads how to wait once, when torch is imported.
"""

import math
import os
from collections.abc import MutableMapping
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")


def available_cores() -> int:
    """Return the cores that this process may use: by its affinity and, in a container, by its CPU quota; at least 1.

    `docker run --cpus=2` leaves the affinity at all cores of the machine, and stops the process for the rest of each
    tenth of a second once it has used up its share.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(cores, cpu_quota(OWN_CGROUP, CGROUPS))))


def cpu_quota(own: Path, root: Path) -> float:
    """Return the cores that the cgroups of this process allow, or infinity; the smallest limit on the way up counts.

    Args:
        own: /proc/self/cgroup. "0::/a/b" is cgroup v2's line, "4:cpu,cpuacct:/a/b" one of v1's.
        root: where the cgroups are mounted. In a container the process's own group may be mounted there itself.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return math.inf
    limits = [math.inf]
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mounted = root / controllers if controllers else root
        group = mounted / path.strip("/")
        folders = [group, *group.parents]
        limits += [_limit_of(folder) for folder in folders[: folders.index(mounted) + 1]]
    return min(limits)


def _limit_of(group: Path) -> float:
    """Return the limit of one cgroup, in cores."""
    try:
        if (group / "cpu.max").exists():  # v2: "200000 100000" or "max 100000", in microseconds
            quota, period = (group / "cpu.max").read_text().split()
        else:  # v1: -1 is no limit
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        return math.inf if quota in ("max", "-1") else int(quota) / int(period)
    except (OSError, ValueError):
        return math.inf


def threads_per_rank(local_ranks: int) -> int:
    """Return the threads with which a rank on a CPU computes: OMP_NUM_THREADS, or the cores shared among the ranks."""
    return wanted_threads() or max(1, available_cores() // local_ranks)


def wanted_threads() -> int | None:
    """Return OMP_NUM_THREADS where it is a whole number from 1. ("4,2", for nested regions, means 4.)"""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) else None


def wait_passively(environment: MutableMapping[str, str] = os.environ) -> None:
    """Have OpenMP's threads sleep while they wait for each other, unless the user has chosen how they wait.

    By default they spin, for up to some seconds. Where anything else wants a core (the loader's workers do, and other
    ranks) a spinning thread keeps it from the one that is waited for.
    """
    if not environment.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"}:
        environment["OMP_WAIT_POLICY"] = "passive"
