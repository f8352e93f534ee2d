"""How much memory is in use where a rank is."""

from pathlib import Path

import torch

MEMINFO = Path("/proc/meminfo")


def host_memory_bytes() -> int | None:
    """Return what is in use on this machine, without its file cache; None where that is not known, as off Linux."""
    try:
        rows = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
        kilobytes = [int(rows[name].split()[0]) for name in ("MemTotal", "MemAvailable")]
    except (OSError, KeyError, ValueError):
        return None
    return (kilobytes[0] - kilobytes[1]) * 1024


def device_memory_bytes() -> int | None:
    """Return the most that this process has reserved on its GPU so far; None without one."""
    return torch.cuda.max_memory_reserved() if torch.cuda.is_available() else None
