"""A worker process ends with its parent, however that one ends."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from convert.pool import end_with_pool
from imagestream.data import worker
from tests.conftest import REPOSITORY

SECONDS_TO_END = 20


def wait_for_the_end(pid_file: str, has_prctl: bool) -> None:
    """A worker that has nothing to do."""
    if not has_prctl:
        worker._libc = SimpleNamespace()  # type: ignore[assignment]  # as on macOS
    end_with_pool()
    Path(pid_file).write_text(str(os.getpid()))
    time.sleep(120)


def start_one(pid_file: str, has_prctl: bool) -> None:
    """A parent, which is killed while it waits for its worker."""
    child = multiprocessing.get_context("spawn").Process(target=wait_for_the_end, args=(pid_file, has_prctl))
    child.start()
    child.join()


@pytest.mark.parametrize("has_prctl", [True, False])
def test_a_worker_ends_with_its_killed_parent(tmp_path: Path, has_prctl: bool) -> None:
    code = f"from tests.unit.test_worker import start_one; start_one({str(tmp_path / 'pid')!r}, {has_prctl})"
    pid, until = 0, time.monotonic() + 60
    with subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY) as parent:
        while not pid:
            assert parent.poll() is None and time.monotonic() < until
            with contextlib.suppress(FileNotFoundError, ValueError):
                pid = int((tmp_path / "pid").read_text())
            time.sleep(0.05)
        parent.send_signal(signal.SIGKILL)
    until = time.monotonic() + SECONDS_TO_END
    while is_running(pid):
        assert time.monotonic() < until, "the worker outlived its parent"
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
