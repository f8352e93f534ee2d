"""Shared memory of dead jobs goes; that of live ones stays."""

import ctypes
import os
import signal
import tempfile
import time
import uuid
from multiprocessing.connection import Listener
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from streaming.base.constant import BARRIER, BARRIER_FILELOCK, LOCALS, SHM_TO_CLEAN
from streaming.base.shared import prefix

from imagestream import CenterCrop, Loader
from imagestream.data import job_dir
from imagestream.data.job_dir import SHARED_MEMORY
from tests.processes import _server, _start_server


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders that stand for /dev/shm and the temporary directory."""
    _start_server()  # whose socket is in the real one
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(job_dir, "SHARED_MEMORY", tmp_path / "shm")
    monkeypatch.setattr(job_dir, "_owned", None)
    (tmp_path / "tmp").mkdir()
    (tmp_path / "shm").mkdir()
    return tmp_path


def leave_behind(machine: Path, prefix: str, owner: str) -> list[Path]:
    """Write what a job leaves that reaches its data through its own link, as Streaming lays it out."""
    link = machine / "tmp" / f"mds-live-{os.getuid()}" / owner / "data"
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(machine)
    text = f"{link}/train\0{int(prefix)}".encode()
    left = [machine / "shm" / f"{prefix}_{name}" for name in ("locals", "barrier", "next_epoch", "resume")]
    left += [machine / "tmp" / f"{prefix}_{name}" for name in ("barrier_filelock", "cache_filelock")]
    for path in left:
        path.write_bytes(b"")
    left[0].write_bytes(np.int32(4 + len(text)).tobytes() + text + bytes(100))
    return [*left, link]


def own_folder_of_a_process(machine: Path) -> str:
    """The name of the folder of a process that has ended by SIGKILL."""
    receiver, sender = _server.Pipe(duplex=False)
    process = _server.Process(target=_own_and_die, args=(machine, sender))
    process.start()
    name: str = receiver.recv()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    return name


def _be_on(machine: Path) -> None:
    tempfile.tempdir = str(machine / "tmp")
    job_dir.SHARED_MEMORY = machine / "shm"


def _own_and_die(machine: Path, sender: Any) -> None:
    _be_on(machine)
    (job_dir.scratch_folder() / "ep0-ba4.pt").write_bytes(b"x")
    sender.send(job_dir._own_folder().name)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_what_a_killed_job_left_is_removed_and_a_live_jobs_is_not(machine: Path) -> None:
    name = own_folder_of_a_process(machine)
    dead = leave_behind(machine, "000003", name)
    live = leave_behind(machine, "000004", job_dir._own_folder().name)
    foreign = machine / "shm" / "000006_locals"
    foreign.write_bytes(np.int32(4 + 9).tobytes() + b"/data/x\0" + b"6")
    assert job_dir.remove_what_dead_jobs_left() == 1
    assert [path for path in dead if path.exists()] == []
    assert not (machine / "tmp" / f"mds-live-{os.getuid()}" / name).exists()  # with its temporary files
    assert [path for path in live if not path.exists()] == []
    assert foreign.exists()
    assert job_dir.scratch_folder().is_dir()


@pytest.mark.slow
def test_what_a_job_left_that_ended_by_itself_is_removed_and_a_live_jobs_is_not(machine: Path) -> None:
    dead = machine / "tmp" / f"mds-live-{os.getuid()}" / own_folder_of_a_process(machine)
    (dead / "prefix-000003").touch()
    job_dir.remember_prefix(4)
    locks = {
        number: [machine / "tmp" / f"{number:06}_{name}_filelock" for name in ("barrier", "cache")]
        for number in (3, 4, 5)
    }
    taken_since = machine / "shm" / "000003_locals"  # by a job with the same /dev/shm and another temporary folder
    for path in (*locks[3], *locks[4], *locks[5], taken_since):
        path.touch()
    assert job_dir.remove_what_dead_jobs_left() == 1
    assert [path for path in locks[3] if path.exists()] == []
    assert [path for path in (*locks[4], *locks[5], taken_since) if not path.exists()] == []


def test_loader_locks_are_noted(machine: Path, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_dir, "SHARED_MEMORY", SHARED_MEMORY)  # Streaming uses no other
    for split in ("train", "val"):
        next(iter(Loader(shards, split=split, batch_size=4, seed=1, crop=CenterCrop(32), num_workers=0)))
    notes = {path.name for path in job_dir._own_folder().glob("prefix-*")}
    assert notes == {f"prefix-{path.name[:6]}" for path in (machine / "tmp").glob("*_filelock")}
    assert len(notes) == 2


def test_a_folder_that_is_being_made_is_left_alone_for_an_hour(machine: Path) -> None:
    root = machine / "tmp" / f"mds-live-{os.getuid()}"
    new, unfinished = root / ".77-abc", root / "77-123"
    for folder in (new, unfinished):
        folder.mkdir(parents=True)
    (new / job_dir.ALIVE).touch()
    assert job_dir.remove_what_dead_jobs_left() == 0
    for folder in (new, unfinished):
        os.utime(folder, (0, 0))
    assert job_dir.remove_what_dead_jobs_left() == 2


def _live_in_a_container(machine: Path, sender: Any) -> None:
    """In a PID namespace with its own /proc, as a container that has the host's /tmp."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_pid, new_mounts, private = 0x20000000, 0x20000, 1 << 18 | 1 << 14
    if libc.unshare(new_pid | new_mounts) or libc.mount(b"none", b"/", None, private, None):
        sender.send("")
        return
    if os.fork() == 0:
        libc.mount(b"proc", b"/proc", b"proc", 0, None)
        _be_on(machine)
        sender.send(f"{os.getpid()} {job_dir.scratch_folder()}")
        time.sleep(60)
        os._exit(0)
    os.wait()


@pytest.mark.slow
def test_a_live_jobs_folder_in_another_containers_pid_namespace_stays(machine: Path) -> None:
    receiver, sender = _server.Pipe(duplex=False)
    process = _server.Process(target=_live_in_a_container, args=(machine, sender))
    process.start()
    try:
        pid, _, folder = receiver.recv().partition(" ")
        if not pid:
            pytest.skip("unshare: not permitted; run as root")
        assert pid == "1"
        assert job_dir.remove_what_dead_jobs_left() == 0
        assert Path(folder).is_dir()
    finally:
        for child in psutil.Process(process.pid).children():
            child.kill()
        process.join(10)
    assert job_dir.remove_what_dead_jobs_left() == 1
    assert not Path(folder).exists()


def _claim(machine: Path, tmpdir: str, begin: Any, sender: Any) -> None:
    _be_on(machine)
    tempfile.tempdir = str(machine / tmpdir)
    job_dir.LONGEST_TMPDIR = len(tempfile.tempdir)  # pytest's folders are long, and no socket is made here
    begin.wait(30)
    with job_dir.one_at_a_time():
        entered = time.monotonic()
        time.sleep(0.5)
        sender.send((entered, time.monotonic()))


@pytest.mark.slow
def test_jobs_with_other_temporary_folders_claim_shared_memory_one_after_the_other(machine: Path) -> None:
    """They share /dev/shm, as containers with the host's do."""
    begin, pipes, processes = _server.Barrier(2), [], []
    for tmpdir in ("one", "two"):
        (machine / tmpdir).mkdir()
        receiver, sender = _server.Pipe(duplex=False)
        processes.append(_server.Process(target=_claim, args=(machine, tmpdir, begin, sender)))
        pipes.append(receiver)
        processes[-1].start()
    (_, first_left), (second_entered, _) = sorted(pipe.recv() for pipe in pipes)
    assert first_left <= second_entered
    for process in processes:
        process.join(10)


def test_nothing_to_remove_is_no_error(machine: Path) -> None:
    assert job_dir.remove_what_dead_jobs_left() == 0


def test_two_nodes_of_a_job_on_one_machine_are_refused(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gathered(mine: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        return [mine, (1, *mine[1:])]

    monkeypatch.setattr("imagestream.data.job_dir.world.gathered", gathered)
    with pytest.raises(ValueError, match=r"nodes 0 and 1 are one machine, with one .*shm; start one launcher"):
        job_dir._check_machines()
    monkeypatch.setattr("imagestream.data.job_dir.world.gathered", lambda mine: [mine, (1, "another boot", *mine[2:])])
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


def test_the_number_of_a_running_job_is_not_taken_while_another_is_just_ending(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the ending job 0 one name is there, of the running job 1 another; Streaming's own search then finds 1."""
    apart = uuid.uuid4().hex[:8]  # from the shared memory of this machine's real jobs
    monkeypatch.setattr(prefix, "_get_path", lambda number, name: f"{apart}_{number:06}_{name}")
    for name in (f"000000_{BARRIER}", f"000001_{LOCALS}"):
        (machine / "shm" / name).write_bytes(bytes(8))
        (SHARED_MEMORY / f"{apart}_{name}").write_bytes(bytes(8))
    try:
        theirs = max(prefix._check_and_find(["x"], [None], name) for name in SHM_TO_CLEAN)
    finally:
        for path in SHARED_MEMORY.glob(f"{apart}_*"):
            path.unlink()
    assert theirs == 1, "Streaming has mended it: our own search may go"
    assert job_dir.first_free_number() == 2


def test_a_taken_number_is_seen_where_the_temporary_folder_is_the_shared_memory(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(machine / "shm"))
    (machine / "shm" / f"000000_{LOCALS}").write_bytes(bytes(8))
    (machine / "shm" / f"000001_{BARRIER_FILELOCK}").write_bytes(b"")
    assert job_dir.first_free_number() == 2
