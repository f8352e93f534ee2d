"""Training runs as real processes that start in a moment and can be killed.

`multiprocessing`'s fork server imports torch and Composer once; each run is forked from it, so that a test pays
neither the half minute of imports nor anything of this process's state. What runs is `train.main.main`, as started by
the `composer` launcher: one process a rank, told of the others by the launcher's environment variables.
"""

import contextlib
import ctypes
import functools
import hashlib
import importlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.s3_server import free_port

# Several runs share the processors here. Where one's threads wait for each other spinning, another's cannot work.
os.environ.setdefault("GOMP_SPINCOUNT", "0")
_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["tests.warm"])
KILL_LIBRARY = REPOSITORY / "tests/faults/kill_at.c"

SECONDS_FOR_A_RUN = 300
NODE_LOCAL = "node-local"
NODE_TMPDIR = Path(tempfile.gettempdir(), "resnet-streaming-node")  # short: sockets' names have at most 107 bytes


class Run:
    """A started run of one or more ranks; each rank's output goes to `<log>.<rank>`."""

    def __init__(self, ranks: list[BaseProcess], log: Path) -> None:
        self.ranks, self.log = ranks, log

    def output(self, rank: int = 0) -> str:
        path = Path(f"{self.log}.{rank}")
        return path.read_text() if path.exists() else ""

    def wait(self, seconds: float = SECONDS_FOR_A_RUN) -> int:
        """Return the first rank's exit code; end the others as the launcher would when one fails."""
        deadline = time.monotonic() + seconds
        while any(rank.is_alive() for rank in self.ranks):
            if any(rank.exitcode for rank in self.ranks) or time.monotonic() > deadline:
                time.sleep(1)
                self.kill()
            time.sleep(0.02)
        codes = [rank.exitcode or 0 for rank in self.ranks]
        return next((code for code in codes if code), 0)

    def kill(self) -> None:
        """SIGKILL each rank with its loader workers, as a lost machine would."""
        for rank in self.ranks:
            if rank.pid and rank.is_alive():
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(rank.pid, signal.SIGKILL)
        for rank in self.ranks:
            rank.join(10)

    def kill_when(self, ready: Callable[[], bool], seconds: float = SECONDS_FOR_A_RUN) -> None:
        """SIGKILL everything as soon as `ready`."""
        deadline = time.monotonic() + seconds
        while not ready():
            assert any(rank.is_alive() for rank in self.ranks), f"the run ended too early:\n{self.output()[-3000:]}"
            assert time.monotonic() < deadline, f"nothing to kill after {seconds} s:\n{self.output()[-3000:]}"
            time.sleep(0.01)
        self.kill()
        codes = [rank.exitcode for rank in self.ranks]
        assert -signal.SIGKILL in codes, (
            f"it had ended before it could be killed, with {codes}:\n{self.output()[-3000:]}"
        )


@functools.cache
def kill_library() -> Path | None:
    """Return the library of tests/faults/kill_at.c, built for this machine, or None where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    source = KILL_LIBRARY.read_bytes()
    built = REPOSITORY / f"build/tests/kill-at-{hashlib.sha256(source).hexdigest()[:16]}.so"
    if not built.exists():
        built.parent.mkdir(parents=True, exist_ok=True)
        part = built.with_suffix(f".{os.getpid()}")  # another process of these tests may be building it
        subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", part, KILL_LIBRARY, "-ldl"], check=True)
        part.replace(built)
    return built


@functools.cache
def _start_server() -> None:
    """Start the fork server with the kill library in it, which does nothing in a run that is not told to be killed."""
    library = kill_library()
    with pytest.MonkeyPatch.context() as patch:
        if library:
            patch.setenv("LD_PRELOAD", str(library))
        forkserver.ensure_running()


def start(
    argv: Sequence[str],
    log: Path,
    *,
    ranks: int = 1,
    nodes: int = 1,
    disks: Sequence[Path] = (),
    env: dict[str, str] | None = None,
    program: str = "train.main",
    real_network: bool = False,
) -> Run:
    """Start `program`'s `main(argv)` on a number of ranks, each on a node of its own if there are as many `nodes`.

    `disks` are what the nodes have as `NODE_LOCAL` beside the log, in the nodes' order; by default new ones. Networks
    are those of tests/small_network.py, unless the test asks for the `real_network`.
    """
    assert nodes in (1, ranks), "several ranks of a node would have to share its /dev/shm"
    _start_server()
    disks = disks or [Path(f"{log}.{node}.disk") for node in range(nodes)]
    local_ranks = ranks // nodes
    port = free_port()
    processes: list[BaseProcess] = []
    for rank in range(ranks):
        world = {
            "RANK": rank,
            "LOCAL_RANK": rank % local_ranks,
            "WORLD_SIZE": ranks,
            "LOCAL_WORLD_SIZE": local_ranks,
            "NODE_RANK": rank // local_ranks,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        variables = dict(os.environ) | {name: str(value) for name, value in world.items()} | (env or {})
        disk = disks[rank] if nodes > 1 else None
        args = (program, list(argv), f"{log}.{rank}", variables, disk, real_network)
        process = _server.Process(target=_rank_main, args=args)
        process.start()
        processes.append(process)
    return Run(processes, log)


def run(
    argv: Sequence[str],
    log: Path,
    *,
    ranks: int = 1,
    nodes: int = 1,
    disks: Sequence[Path] = (),
    env: dict[str, str] | None = None,
    program: str = "train.main",
    real_network: bool = False,
) -> tuple[int, str]:
    """Run to the end; return the exit code and rank 0's output."""
    started = start(
        argv, log, ranks=ranks, nodes=nodes, disks=disks, env=env, program=program, real_network=real_network
    )
    return started.wait(), started.output()


def run_program(
    module: str, argv: Sequence[object], *, env: dict[str, str] | None = None, seconds: float = 120
) -> "subprocess.CompletedProcess[str]":
    """Run `module`'s `main(argv)` from the repository's root, in a process with this one's environment and `env`.

    It is forked from the server, and so are the processes of its pool from it, which a command started by hand would
    start anew and have import everything again.
    """
    _start_server()
    with tempfile.TemporaryDirectory() as folder:
        outputs = Path(folder, "stdout"), Path(folder, "stderr")
        arguments = [str(argument) for argument in argv]
        process = _server.Process(
            target=_program_main, args=(module, arguments, *outputs, dict(os.environ) | (env or {}))
        )
        process.start()
        process.join(seconds)
        if process.is_alive():
            process.kill()
            process.join(10)
        stdout, stderr = (path.read_text() if path.exists() else "" for path in outputs)
        assert process.exitcode != -signal.SIGKILL, f"{module} took more than {seconds} s:\n{stdout}{stderr}"
        return subprocess.CompletedProcess(arguments, process.exitcode or 0, stdout, stderr)


def leave_this_machine(disk: Path) -> None:
    """Give this process a /dev/shm and a temporary folder that it shares with its children alone; needs root.

    `NODE_LOCAL`, a folder beside `disk`, becomes that one, for them alone.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    private, bind, tmpfs = 1 << 18 | 1 << 14, 1 << 12, b"tmpfs"  # MS_PRIVATE | MS_REC, MS_BIND
    local = disk.parent / NODE_LOCAL
    for folder in (local, disk, NODE_TMPDIR):
        folder.mkdir(exist_ok=True)
    steps: list[Callable[[], int]] = [
        lambda: libc.unshare(0x20000),  # CLONE_NEWNS
        lambda: libc.mount(b"none", b"/", None, private, None),
        lambda: libc.mount(tmpfs, b"/dev/shm", tmpfs, 0, None),
        lambda: libc.mount(tmpfs, bytes(NODE_TMPDIR), tmpfs, 0, None),
        lambda: libc.mount(bytes(disk), bytes(local), None, bind, None),
    ]
    for step in steps:
        if step() != 0:
            raise OSError(ctypes.get_errno(), "a mount namespace of its own, which a node of a test needs")
    os.environ["TMPDIR"] = tempfile.tempdir = str(NODE_TMPDIR)


def _program_main(module: str, argv: list[str], stdout: Path, stderr: Path, environment: dict[str, str]) -> None:
    os.chdir(REPOSITORY)
    os.environ.clear()
    os.environ.update(environment)
    for number, path in ((1, stdout), (2, stderr)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    context = multiprocessing.get_context("fork")
    multiprocessing.get_context = lambda method=None: context  # type: ignore[assignment]  # whatever it asks for
    sys.exit(importlib.import_module(module).main(argv))


def _rank_main(
    program: str, argv: list[str], log: str, variables: dict[str, str], disk: Path | None, real_network: bool
) -> None:
    os.setpgid(0, 0)
    os.environ.clear()  # the fork server's is that of the test which happened to start it
    os.environ.update(variables)
    if disk:
        leave_this_machine(disk)
    multiprocessing.set_start_method("fork", force=True)  # for its loader workers, as in a process started by hand
    os.chdir(REPOSITORY)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    if not real_network:
        from tests import small_network

        small_network.install()
    sys.exit(importlib.import_module(program).main(argv))
