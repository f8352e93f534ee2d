"""A name of its own for every job on a machine, so that Streaming's shared memory never collides.

StreamingDataset keeps its state in shared memory that it finds again by the dataset's local folder. After kill -9 that
memory stays, and the next job is refused ("Reused local directory") or, worse, picks up a stale resume point; two live
jobs on one folder are refused as well. `clean_stale_shared_memory()` removes live jobs' memory along with the dead's.

Here each job reaches its folder through a symbolic link in a folder of its owner. No two jobs share a path, so nothing
collides. The owner holds a lock on a file in its folder, which the kernel releases when it ends: what can be locked is
a dead job's, and is removed. That holds in containers too, which see no process of each other but may share /tmp.
"""

import contextlib
import fcntl
import itertools
import logging
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from streaming.base.constant import BARRIER_FILELOCK, CACHE_FILELOCK, SHM_TO_CLEAN
from streaming.base.shared import prefix

from imagestream import world
from imagestream.process_identity import boot_id

log = logging.getLogger(__name__)

T = TypeVar("T")

SHARED_MEMORY = Path("/dev/shm")
ALIVE = "alive"  # the file that an owner has locked
PREFIX_NOTE = "prefix-"  # begins the name of an empty file, which ends in the number of a job's shared memory
AGE_S = 3600.0  # a folder without it, that old, was never finished
LONGEST_TMPDIR = 107 - len("/pymp-12345678/listener-12345678")
"""Bytes. A loader worker hands a batch over through a Unix socket of such a name in TMPDIR, and Linux allows 107. With
a longer one the batch never arrives: the error is raised in a thread, and only printed."""

_numbers = itertools.count()  # of the links, for a job may open one folder twice
_owned: tuple[int, Path, int] | None = None  # by this process: its id, its folder and the locked file's descriptor


def link_for_this_job(target: str) -> str:
    """Return a new path to `target` that only this job uses; all ranks of one node get the same one.

    Collective: every rank calls it, after the process group exists.
    """
    job, number = _chosen_by_first_of_node((_own_folder().name, next(_numbers)))
    directory = _jobs_root() / job
    link = directory / f"{_link_name(target)}-{number}"
    if world.local_rank() == 0:
        directory.mkdir(parents=True, exist_ok=True)
        os.makedirs(target, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            link.symlink_to(os.path.abspath(target), target_is_directory=True)
    world.barrier()
    return str(link)


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Let one job at a time claim shared memory on this machine; what this user's dead jobs left is removed first.

    Streaming looks for a free name and then takes it, two steps that two starting jobs could interleave. Collective:
    the node's first rank holds the lock, and the others continue only once it does, since they look for names as well.

    Raises:
        ValueError: two nodes of this job are one machine; each would wait for the lock that the other holds. Or TMPDIR
            is too long for loader workers.
    """
    _check_machines()
    _check_tmpdir()
    if world.local_rank() != 0:
        world.barrier()
        with _numbers_that_are_free():
            yield
        return
    _jobs_root().mkdir(parents=True, exist_ok=True)
    # Shared memory's names may be shared by jobs that have another TMPDIR, as in containers with the host's /dev/shm.
    with _locked(_jobs_root() / "lock"), _locked(SHARED_MEMORY / "mds-live.lock"):
        remove_what_dead_jobs_left()
        world.barrier()
        with _numbers_that_are_free():
            yield


@contextlib.contextmanager
def _numbers_that_are_free() -> Iterator[None]:
    """Have Streaming take a number for its shared memory of which no name is taken, the same on all ranks of a node.

    Streaming 0.13 (`streaming/base/shared/prefix.py`, `get_shm_prefix`) looks for the first free number on each rank,
    name by name, and takes the highest. A job that is just ending has removed some of its names: the numbers found
    then differ, and the highest may be a running job's ("File exists"). What else Streaming looks for there, a job in
    the same folder, cannot be. Collective.
    """
    own, number = prefix._check_and_find, _chosen_by_first_of_node(first_free_number())
    prefix._check_and_find = lambda *_: number
    try:
        yield
    finally:
        prefix._check_and_find = own


def first_free_number() -> int:
    """Return the first number that no block of shared memory has, and no lock file of one."""
    temporary = Path(tempfile.gettempdir())
    places = [(SHARED_MEMORY, name) for name in SHM_TO_CLEAN]  # pairs, for TMPDIR may be /dev/shm itself
    places += [(temporary, name) for name in (BARRIER_FILELOCK, CACHE_FILELOCK)]
    return next(
        number
        for number in itertools.count()
        if not any(os.path.lexists(place / f"{number:06}_{name}") for place, name in places)
    )


def remember_prefix(number: int) -> None:
    """Note the number that Streaming has chosen for this job's shared memory; called inside `one_at_a_time`.

    When a job ends, Streaming removes the memory and leaves the two lock files of that number. No other job takes the
    number then, and each that starts passes over all of them, some 20 times: after 1,000 runs that took a second.
    """
    if world.local_rank() == 0:
        (_own_folder() / f"{PREFIX_NOTE}{number:06}").touch()


def scratch_folder() -> Path:
    """Return a folder for this process's temporary files; if it is killed, the next job on the machine removes it."""
    folder = _own_folder() / "scratch"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def remove_what_dead_jobs_left() -> int:
    """Delete shared memory, locks, links and temporary files of processes that are gone; return how many they were."""
    dead = {job.name for job in _jobs_root().glob("*-*") if _is_dead(job)}
    for number, job in _shared_memory_owners():
        if job in dead:
            _remove_prefix(number)
    for job in dead:
        for note in (_jobs_root() / job).glob(f"{PREFIX_NOTE}*"):
            _remove_locks(note.name.removeprefix(PREFIX_NOTE))
        shutil.rmtree(_jobs_root() / job, ignore_errors=True)
    if dead:
        log.info("removed what %d dead job(s) left in shared memory", len(dead))
    return len(dead)


def _check_machines() -> None:
    """Raise ValueError, on all ranks, where nodes share a machine's shared memory and temporary folder."""
    _jobs_root().mkdir(parents=True, exist_ok=True)
    places = [(SHARED_MEMORY, os.stat(SHARED_MEMORY)), (_jobs_root(), os.stat(_jobs_root()))]
    mine = (world.node_rank(), boot_id(), [(str(path), seen.st_dev, seen.st_ino) for path, seen in places])
    nodes: dict[tuple[Any, ...], int] = {}
    for node, boot, seen in world.gathered(mine):
        for place in seen:
            other = nodes.setdefault((boot, *place), node)
            if other != node:
                raise ValueError(
                    f"nodes {other} and {node} are one machine, with one {place[0]}; start one launcher for all GPUs "
                    "of a machine, or give each launcher a container, or a TMPDIR and a /dev/shm of its own"
                )


def _check_tmpdir() -> None:
    folder = tempfile.gettempdir()
    length = len(os.fsencode(folder))
    if length > LONGEST_TMPDIR:
        raise ValueError(
            f"the temporary folder {folder} has {length} bytes in its name, and loader workers can use one of "
            f"{LONGEST_TMPDIR} at most; set TMPDIR to a shorter one"
        )


def _jobs_root() -> Path:
    # Not mds-jobs-<uid>, the name of earlier versions, which would delete a folder that is not named as theirs are.
    return Path(tempfile.gettempdir()) / f"mds-live-{os.getuid()}"


def _chosen_by_first_of_node(mine: T) -> T:
    """Return what the node's first rank has given; collective."""
    chosen = {(node, local): given for node, local, given in world.gathered((*_place(), mine))}
    return chosen[(world.node_rank(), 0)]


def _place() -> tuple[int, int]:
    return world.node_rank(), world.local_rank()


def _own_folder() -> Path:
    """Return this process's folder, made at the first call; its lock is held until the process ends.

    It gets its name once it is locked. Forked loader workers hold the lock too, and end with their rank.
    """
    global _owned
    if _owned is None or _owned[0] != os.getpid():
        name = f"{os.getpid()}-{uuid.uuid4().hex[:12]}"
        new, final = _jobs_root() / f".{name}", _jobs_root() / name
        new.mkdir(parents=True)
        descriptor = os.open(new / ALIVE, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        new.rename(final)
        _owned = (os.getpid(), final, descriptor)
    return _owned[1]


def _is_dead(folder: Path) -> bool:
    """Whether the owner of a folder has ended, wherever it ran."""
    try:
        if folder.name.startswith("."):  # its owner is about to lock it, unless it was killed just then
            return time.time() - folder.stat().st_mtime > AGE_S
        with open(folder / ALIVE) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return folder.is_dir() and time.time() - folder.stat().st_mtime > AGE_S
    except OSError:  # BlockingIOError: it lives
        return False
    return True


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock that the kernel releases if this process dies; the file may be another user's."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        os.fchmod(descriptor, 0o666)
    except FileExistsError:
        descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _link_name(target: str) -> str:
    return os.path.abspath(target).strip("/").replace("/", "_")[-100:] or "root"


def _shared_memory_owners() -> Iterator[tuple[str, str]]:
    """Yield (prefix, job name) of each block that was registered through a job's link.

    Streaming writes a four-byte size and then the local folders, each ended by a NUL, into `<prefix>_locals`.
    """
    root = os.fsencode(_jobs_root()) + b"/"
    for block in sorted(SHARED_MEMORY.glob("[0-9]*_locals")):
        with contextlib.suppress(OSError):
            path = block.read_bytes()[4:]
            if path.startswith(root):
                yield block.name.partition("_")[0], os.fsdecode(path[len(root) :].partition(b"/")[0])


def _remove_prefix(number: str) -> None:
    for name in SHM_TO_CLEAN:
        (SHARED_MEMORY / f"{number}_{name}").unlink(missing_ok=True)
    _remove_locks(number)


def _remove_locks(number: str) -> None:
    for name in (BARRIER_FILELOCK, CACHE_FILELOCK):
        (Path(tempfile.gettempdir()) / f"{number}_{name}").unlink(missing_ok=True)
