"""A real disk that is full when a test wants it to be: a small tmpfs."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


def _can_mount() -> bool:
    return os.geteuid() == 0 and subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode == 0


needs_small_disk = pytest.mark.skipif(not _can_mount(), reason="only root can mount a tmpfs")


class SmallDisk:
    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def free_bytes(self) -> int:
        stat = os.statvfs(self.path)
        return stat.f_bavail * stat.f_frsize

    def fill(self, *, leave_bytes: int = 0) -> None:
        """Take what is free, but for `leave_bytes` (in whole pages)."""
        with open(self.path / "filler", "ab", buffering=0) as filler, contextlib.suppress(OSError):
            while (left := self.free_bytes - leave_bytes) > 0:
                filler.write(bytes(min(left, 1 << 20)))

    def make_room(self) -> None:
        (self.path / "filler").unlink()


@contextlib.contextmanager
def small_disk(path: Path, *, size_bytes: int) -> Iterator[SmallDisk]:
    """Mount a tmpfs of that size at a new folder, and take it away at the end."""
    path.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(path)], check=True)
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)
