"""Which signals a process of a run notes, and at which it ends at once; each in a process of its own."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.conftest import REPOSITORY

RANK = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}


class Program:
    """A program that says "ready", then each signal that it notes."""

    def __init__(self, body: str, env: dict[str, str]) -> None:
        tail = "print('ready', flush=True)\nwhile True:\n    time.sleep(0.02)\n    print(heard.seen, flush=True)\n"
        text = f"import os, signal, sys, time\nfrom train.signals import *\n{textwrap.dedent(body)}\n{tail}"
        clean = {name: value for name, value in os.environ.items() if name not in RANK} | env
        self.process = subprocess.Popen(
            [sys.executable, "-c", text], cwd=REPOSITORY, env=clean, text=True, stdout=subprocess.PIPE, stderr=2
        )
        self.read_until("ready")

    def read_until(self, word: str) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            if word in line:
                return
        raise AssertionError(f"it ended with {self.process.wait(5)}, without {word!r}")

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def code(self) -> int:
        return self.process.wait(5)


@pytest.fixture
def program() -> Iterator[Callable[..., Program]]:
    started: list[Program] = []

    def begin(body: str, **env: str) -> Program:
        started.append(Program(body, env))
        return started[-1]

    yield begin
    for one in started:
        one.process.kill()
        one.process.communicate(timeout=10)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_is_noted_and_the_launchers_sigterm_after_it_changes_nothing(
    program: Callable[..., Program], number: signal.Signals
) -> None:
    one = program("heard = listen(saves=True)")
    one.send(number)
    one.read_until(str(int(number)))
    one.send(signal.SIGTERM)
    time.sleep(0.3)
    assert one.process.poll() is None
    one.read_until(str(int(number)))


def test_of_two_that_came_while_it_could_not_run_ctrl_c_is_the_first(program: Callable[..., Program]) -> None:
    """Linux has the one with the higher number answered first: the SIGTERM that the launcher sends after it."""
    one = program("heard = listen(saves=True)")
    for number in (signal.SIGSTOP, signal.SIGINT, signal.SIGTERM, signal.SIGCONT):
        one.send(number)
    assert one.process.stdout
    assert next(line.strip() for line in one.process.stdout if line.strip() != "None") == str(int(signal.SIGINT))


def test_a_second_sigterm_counts_after_some_seconds(program: Callable[..., Program]) -> None:
    one = program("import train.signals\ntrain.signals.SECOND_TERM_COUNTS_AFTER_S = 0.3\nheard = listen(saves=True)")
    one.send(signal.SIGTERM)
    one.read_until("15")
    one.send(signal.SIGTERM)
    time.sleep(0.5)
    assert one.process.poll() is None
    one.send(signal.SIGTERM)
    assert one.code() == 143


def test_a_sigterm_after_a_warning_by_sigusr1_is_the_first(program: Callable[..., Program]) -> None:
    one = program("import train.signals\ntrain.signals.SECOND_TERM_COUNTS_AFTER_S = 0.0\nheard = listen(saves=True)")
    one.send(signal.SIGUSR1)
    one.read_until("10")
    one.send(signal.SIGTERM)
    time.sleep(0.3)
    assert one.process.poll() is None


def test_a_second_ctrl_c_ends_at_once_whatever_the_main_thread_does(program: Callable[..., Program]) -> None:
    one = program("heard = listen(saves=True)\nprint('ready', flush=True)\nimport threading\nthreading.Event().wait()")
    one.send(signal.SIGINT)
    time.sleep(0.3)
    assert one.process.poll() is None
    one.send(signal.SIGINT)
    assert one.code() == 130


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_before_there_is_something_to_save_a_run_ends_quietly_and_a_warning_is_kept(
    program: Callable[..., Program], number: signal.Signals, code: int
) -> None:
    one = program("heard = listen()")
    one.send(signal.SIGUSR1)
    one.read_until("10")
    one.send(number)
    assert one.code() == code


def test_a_program_that_saves_nothing_ends_at_sigusr1_too(program: Callable[..., Program]) -> None:
    one = program("heard = listen(will_save=False)")
    one.send(signal.SIGUSR1)
    assert one.code() == 138


def launched(body: str, folder: Path) -> str:
    """A launcher that starts a rank, which writes its number to a file; returns the launcher's program."""
    rank = (
        "import os, time\nfrom train.signals import *\n"
        f"{body}\nopen({str(folder / 'rank')!r}, 'w').write(f'{{os.getpid()}}.')\n"
        "while True: time.sleep(0.1)"
    )
    return (
        "import subprocess, sys, os\nheard = StopSignals()\n"
        f"subprocess.Popen([sys.executable, '-c', {rank!r}], env=os.environ | {RANK!r})"
    )


def rank_of(folder: Path) -> psutil.Process:
    deadline = time.monotonic() + 20
    while not (folder / "rank").exists() or not (folder / "rank").read_text().endswith("."):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return psutil.Process(int((folder / "rank").read_text()[:-1]))


@pytest.mark.slow
def test_a_rank_ends_with_its_launcher(program: Callable[..., Program], tmp_path: Path) -> None:
    launcher = program(launched("listen(saves=True)", tmp_path))
    rank = rank_of(tmp_path)
    launcher.process.kill()
    rank.wait(3)


@pytest.mark.slow
def test_a_rank_that_is_saving_has_time_to_but_not_for_ever(program: Callable[..., Program], tmp_path: Path) -> None:
    short = "import train.signals\ntrain.signals.SECONDS_WITHOUT_LAUNCHER = 3\nlisten(saves=True)"
    launcher = program(launched(short, tmp_path))
    rank = rank_of(tmp_path)
    rank.send_signal(signal.SIGUSR1)
    launcher.process.kill()
    time.sleep(2)
    assert rank.is_running()
    rank.wait(4)


@pytest.mark.slow
def test_a_process_that_no_launcher_started_outlives_the_shell(program: Callable[..., Program], tmp_path: Path) -> None:
    shell = program(launched("listen(saves=True)", tmp_path).replace(repr(RANK), "{}"))
    alone = rank_of(tmp_path)
    shell.process.kill()
    time.sleep(1.5)
    assert alone.is_running()
    alone.kill()


def test_a_child_that_was_forked_writes_nothing_to_its_parents_descriptor(program: Callable[..., Program]) -> None:
    """A worker that has not begun yet: it takes no signal, and the rank notes none."""
    one = program(
        """
        heard = listen(saves=True)
        pid = os.fork()
        if pid == 0:
            time.sleep(1)
            os._exit(7)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            os.kill(pid, number)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        assert heard.seen is None
        """
    )
    one.send(signal.SIGUSR1)
    one.read_until("10")
