"""Run a command with its output in a log file, watch how far it is, and kill all of it."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from tqdm import tqdm

LINES_SHOWN_OF_A_FAILURE = 30
SECONDS_BETWEEN_LOOKS = 0.05
SECONDS_BETWEEN_LINES = 15
SECONDS_TO_DIE = 30
ENDING_SIGNALS = (signal.SIGTERM, signal.SIGHUP)  # the second is a closed terminal's

TOTAL_STEPS = re.compile(r"train\.trainer: train: .* ([\d,]+) steps$", re.MULTILINE)
STEP_DONE = re.compile(r"train\.record\.progress: epoch .*, step ([\d,]+)/[\d,]+")


class DemoError(Exception):
    """The demo cannot continue, or did not show what it is there to show; the message says why."""


def exit_on_signals() -> None:
    """Have a signal that ends this process raise SystemExit, so that what it has started is killed on the way out."""
    for number in ENDING_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup leaves SIGHUP
            signal.signal(number, _exit)


def _exit(signum: int, frame: FrameType | None) -> NoReturn:
    for number in ENDING_SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # shells send a second one, which would interrupt the killing
    raise SystemExit(1)


@contextmanager
def started(
    command: Sequence[str], log: Path, *, cwd: Path, mode: str = "wb", env: Mapping[str, str] | None = None
) -> "Iterator[subprocess.Popen[bytes]]":
    """Start a command in a session of its own, with stdout and stderr in `log`; nothing of it outlives the block.

    Args:
        mode: how the log is opened; "ab" keeps what it has.
        env: variables besides this process's.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    variables = {**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})}
    with open(log, mode) as output:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        kill_session(process)


def kill_session(process: "subprocess.Popen[Any]") -> int:
    """SIGKILL a command and all that it started: launcher, ranks, loader workers. Return how many processes.

    The launcher's death would leave the ranks alive and a rank's its workers, so they are found by their session.

    Raises:
        DemoError: some of it still lives after half a minute.
    """
    killed: set[int] = set()
    deadline = time.monotonic() + SECONDS_TO_DIE
    while alive := session_members(process.pid):
        if time.monotonic() > deadline:
            raise DemoError(f"processes {sorted(alive)} do not die of SIGKILL")
        for pid in alive:
            try:
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
            except ProcessLookupError:
                pass
        process.poll()  # reaps the leader
        time.sleep(SECONDS_BETWEEN_LOOKS)  # until the process ends or its limit is over
    process.wait(timeout=SECONDS_TO_DIE)
    return len(killed)


def session_members(session: int) -> list[int]:
    """Return the processes of a session that are alive (Linux; zombies have nothing left to kill)."""
    members = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, _, _, its_session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            except OSError:  # it ended meanwhile
                continue
            if int(its_session) == session and state not in "ZX":
                members.append(int(entry.name))
    return members


class Log:
    """What a training's log says so far.

    Attributes:
        path: the file.
        text: all of it that was read.
        batch: batches done since the run's beginning, 0 before the first.
        total: batches of the whole run, once it is known.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.text = path, ""
        self.batch = 0
        self.total: int | None = None
        self._offset = 0

    def read(self) -> None:
        """Take in what was appended since the last call."""
        with open(self.path, "rb") as file:
            file.seek(self._offset)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._offset += len(whole)
        text = whole.decode(errors="replace")
        self.text += text
        if self.total is None and (found := TOTAL_STEPS.search(text)):
            self.total = int(found[1].replace(",", ""))
        for step in STEP_DONE.findall(text):
            self.batch = int(step.replace(",", ""))

    def tail(self) -> str:
        """Return the last lines."""
        self.read()
        return "\n".join(f"    | {line}" for line in self.text.splitlines()[-LINES_SHOWN_OF_A_FAILURE:])


def follow(
    process: "subprocess.Popen[bytes]", log: Log, *, limit_s: float, until: Callable[[Log], bool] = lambda _: False
) -> bool:
    """Wait for a command to end well, showing how far it is; return True as soon as `until` holds instead.

    Raises:
        DemoError: it failed, or takes longer than `limit_s`.
    """
    start = time.monotonic()
    with Progress() as progress:
        while (status := process.poll()) is None:
            log.read()
            if until(log):
                return True
            progress.show(log.batch, log.total)
            if time.monotonic() - start > limit_s:
                raise DemoError(f"not done after {limit_s:.0f} s; the end of {log.path}:\n{log.tail()}")
            time.sleep(SECONDS_BETWEEN_LOOKS)  # until the process ends or its limit is over
        log.read()
    if status != 0:
        raise DemoError(f"failed with exit status {status}; the end of {log.path}:\n{log.tail()}")
    return False


class Progress:
    """Batches done and time left: a bar on a terminal, else a line now and then."""

    def __init__(self) -> None:
        self._start = self._last_line = time.monotonic()
        self._first: tuple[int, float] | None = None
        self._bar: tqdm[NoReturn] | None = None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, batch: int, total: int | None) -> None:
        """Note that `batch` of `total` batches are done; 0 while there is none yet."""
        now = time.monotonic()
        if batch and self._first is None:
            self._first = (batch, now)
            if sys.stderr.isatty():
                self._bar = tqdm(desc="      training", total=total, initial=batch, unit="batch", leave=False)
        if self._bar is not None:
            self._bar.update(batch - self._bar.n)
        elif now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            print(f"      {self._line(batch, total, now)}", flush=True)

    def _line(self, batch: int, total: int | None, now: float) -> str:
        if self._first is None or total is None:
            return f"running, {now - self._start:.0f} s"
        first, since = self._first
        if batch == first:
            return f"batch {batch:,} of {total:,}"
        left_s = (total - batch) * (now - since) / (batch - first)
        return f"batch {batch:,} of {total:,}, about {left_s:.0f} s left"
