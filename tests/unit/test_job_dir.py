"""Shared memory of dead jobs goes; that of live ones stays."""

import multiprocessing
import os
import tempfile
from multiprocessing.connection import Listener
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from train import job_dir


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders that stand for /dev/shm and the temporary directory."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(job_dir, "SHARED_MEMORY", tmp_path / "shm")
    (tmp_path / "tmp").mkdir()
    (tmp_path / "shm").mkdir()
    return tmp_path


def leave_behind(machine: Path, prefix: str, owner: str) -> list[Path]:
    """Write what a job leaves that reaches its data through its own link, as Streaming lays it out."""
    link = machine / "tmp" / f"mds-jobs-{os.getuid()}" / owner / "data"
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(machine)
    text = f"{link}/train\0{int(prefix)}".encode()
    left = [machine / "shm" / f"{prefix}_{name}" for name in ("locals", "barrier", "next_epoch", "resume")]
    left += [machine / "tmp" / f"{prefix}_{name}" for name in ("barrier_filelock", "cache_filelock")]
    for path in left:
        path.write_bytes(b"")
    left[0].write_bytes(np.int32(4 + len(text)).tobytes() + text + bytes(100))
    return [*left, link]


def dead_pid() -> int:
    process = multiprocessing.get_context("spawn").Process(target=int)
    process.start()
    process.join()
    assert process.pid
    return process.pid


def test_what_a_killed_job_left_is_removed_and_a_live_jobs_is_not(machine: Path) -> None:
    dead = leave_behind(machine, "000003", f"{dead_pid()}-123")
    reused_pid = leave_behind(machine, "000005", f"{os.getpid()}-1")  # this process started at another time
    live = leave_behind(machine, "000004", f"{os.getpid()}-{job_dir._start_time(os.getpid())}")
    foreign = machine / "shm" / "000006_locals"
    foreign.write_bytes(np.int32(4 + 9).tobytes() + b"/data/x\0" + b"6")
    assert job_dir.remove_what_dead_jobs_left() == 2
    assert [path for path in dead + reused_pid if path.exists()] == []
    assert [path for path in live if not path.exists()] == []
    assert foreign.exists()


def test_nothing_to_remove_is_no_error(machine: Path) -> None:
    assert job_dir.remove_what_dead_jobs_left() == 0


def test_temporary_files_of_a_killed_process_are_removed_and_a_live_ones_are_not(machine: Path) -> None:
    mine = job_dir.scratch_folder()
    dead = mine.parents[1] / f"{dead_pid()}-123" / "scratch"
    for folder in (mine, dead):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "ep0-ba4.pt").write_bytes(b"x")
    job_dir.remove_what_dead_jobs_left()
    assert (mine / "ep0-ba4.pt").exists() and not dead.parent.exists()


def test_two_nodes_of_a_job_on_one_machine_are_refused(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gathered(mine: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        return [mine, (1, *mine[1:])]

    monkeypatch.setattr(job_dir.dist, "all_gather_object", gathered)
    with pytest.raises(ValueError, match=r"nodes 0 and 1 are one machine, with one .*shm; start one launcher"):
        job_dir._check_machines()
    monkeypatch.setattr(job_dir.dist, "all_gather_object", lambda mine: [mine, (1, "another boot", *mine[2:])])
    job_dir._check_machines()


@pytest.mark.parametrize("too_long_by", [0, 1])
def test_a_temporary_folder_whose_name_leaves_no_room_for_a_sockets_is_refused(
    monkeypatch: pytest.MonkeyPatch, too_long_by: int
) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "x" * (job_dir.LONGEST_TMPDIR + too_long_by - len(scratch) - 1))
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        # multiprocessing names its sockets so, in a folder that it makes (multiprocessing.util.get_temp_dir)
        (folder / "pymp-12345678").mkdir(parents=True)
        place = str(folder / "pymp-12345678/listener-12345678")
        if too_long_by:
            with pytest.raises(OSError, match="path too long"):
                Listener(place)
            with pytest.raises(ValueError, match="has 76 bytes in its name, and loader workers can use one of 75"):
                job_dir._check_tmpdir()
        else:
            Listener(place).close()
            job_dir._check_tmpdir()
