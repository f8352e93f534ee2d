"""What asks a process of a run to end: signals, and the end of the process that started it.

`timeout`, a scheduler, Ctrl-C and a shutdown signal a whole process group: the launcher, its ranks, and their loader
workers. Only the ranks act on it. Loader workers ignore it, end with their rank, and are stopped by it at its end. A
rank also ends when its launcher is gone, so that it cannot train on beside the run that is started next.
"""

import atexit
import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from multiprocessing import resource_tracker
from typing import NoReturn

from imagestream.data.worker import EXIT_ORPHANED, STOP_SIGNALS, stop_workers

SECOND_TERM_COUNTS_AFTER_S = 5.0
"""After a SIGTERM to the whole group, the launcher sends its ranks another one within a second."""

SECONDS_WITHOUT_LAUNCHER = 30.0  # to save in; the launcher itself gives its ranks as long (composer/cli/launcher.py)
SECONDS_BETWEEN_LOOKS = 0.5
STDERR = 2


class StopSignals:
    """Notes what asks this process to end, and ends it at once where that is meant.

    A thread listens, by the descriptor to which Python writes each signal as it arrives. So a second Ctrl-C is heard,
    and a lost launcher noticed, while the main thread waits in a collective.

    Args:
        launcher: the parent that this process must not outlive, if there is one.
        rank: for messages.
        will_save: a SIGUSR1 that comes before `saves` is kept for then.

    Attributes:
        seen: the first signal that has asked the run to save and end.
        saves: somebody looks at `seen` and saves; until then a signal ends the process at once.
    """

    def __init__(self, *, launcher: int | None = None, rank: int = 0, will_save: bool = True) -> None:
        self.seen: signal.Signals | None = None
        self.saves = False
        self._launcher, self._rank, self._will_save = launcher, rank, will_save
        self._term_at = self._orphaned_at = 0.0
        self._interrupts = 0
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self.set_handlers()
        threading.Thread(target=self._listen, name="stop-signals", daemon=True).start()

    def set_handlers(self) -> None:
        """Have Python take the signals; again after an import of Composer, which takes SIGTERM and SIGINT itself."""
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in STOP_SIGNALS:
            signal.signal(number, _leave_it_to_the_thread)

    def _listen(self) -> None:
        while True:
            is_orphan = self._launcher is not None and os.getppid() != self._launcher
            here, _, _ = select.select([self._reader], [], [], SECONDS_BETWEEN_LOOKS if self._launcher else None)
            # SIGINT to the group, then SIGTERM by the launcher: of two that wait, Linux has the higher answered first.
            for number in sorted(os.read(self._reader, 4096)) if here else ():
                if number in STOP_SIGNALS:
                    self._hear(signal.Signals(number))
            if is_orphan:
                self._look_after_orphan()

    def _hear(self, number: signal.Signals) -> None:
        now = time.monotonic()
        self._interrupts += number == signal.SIGINT
        is_kept = self.saves or (self._will_save and number == signal.SIGUSR1)
        if self._interrupts > 1 or not is_kept:
            self._end(128 + number)
        if number == signal.SIGTERM and self._term_at and now - self._term_at > SECOND_TERM_COUNTS_AFTER_S:
            self._end(128 + number)
        if number == signal.SIGTERM:
            self._term_at = self._term_at or now
        if self.seen is None:
            self.seen = number
            again = "; press Ctrl-C again to end at once" if number == signal.SIGINT else ""
            self._say(f"{number.name}: saving after this batch, or after the evaluation if one is running{again}")

    def _look_after_orphan(self) -> None:
        """Called at each look once the launcher is gone; what killed it may have been meant for this process too."""
        now = time.monotonic()
        if not self._orphaned_at:
            self._orphaned_at = now  # a signal to the group may be on its way
        elif self.seen is None and now - self._orphaned_at >= SECONDS_BETWEEN_LOOKS:
            self._end(EXIT_ORPHANED, f"the launcher (process {self._launcher}) is gone; rank {self._rank} ends")
        elif now - self._orphaned_at > SECONDS_WITHOUT_LAUNCHER:
            late = f"has not saved within {SECONDS_WITHOUT_LAUNCHER:g} s"
            self._end(EXIT_ORPHANED, f"the launcher (process {self._launcher}) is gone; rank {self._rank} {late}, ends")

    def _say(self, text: str) -> None:
        if self._rank == 0:
            _write(text)

    def _end(self, code: int, why: str = "") -> NoReturn:
        """End without Python's own clearing up, for which the main thread would be needed; workers end as well."""
        if why:
            _write(why)
        os._exit(code)


_listening: StopSignals | None = None


def listen(*, saves: bool = False, will_save: bool = True) -> StopSignals:
    """Return what listens for signals in this process, started at the first call.

    Args:
        saves: from now on somebody looks at `seen`, and saves.
        will_save: somebody will.
    """
    global _listening
    if _listening is None:
        _start_resource_tracker()
        launched = all(name in os.environ for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
        rank = int(os.environ["RANK"]) if launched else 0
        _listening = StopSignals(launcher=os.getppid() if launched else None, rank=rank, will_save=will_save)
    _listening.set_handlers()
    _listening.saves = _listening.saves or saves
    return _listening


@contextlib.contextmanager
def listening(*, will_save: bool) -> Iterator[None]:
    """Listen for signals, and stop the loader workers at the end."""
    listen(will_save=will_save)
    try:
        yield
    finally:
        stop_workers()


@atexit.register
def _leave() -> None:
    """Stop the workers of a program that does not do so itself; and let no signal change the exit status any more."""
    stop_workers()
    if _listening:
        for number in (signal.SIGTERM, signal.SIGUSR1):  # Python would give them back to the system, which kills
            signal.signal(number, signal.SIG_IGN)


def _start_resource_tracker() -> None:
    """Start multiprocessing's tracker of shared memory with SIGUSR1 blocked; the others it ignores by itself."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})


def _leave_it_to_the_thread(*_: object) -> None:
    pass


def _write(text: str) -> None:
    with contextlib.suppress(OSError):  # the terminal may be gone
        os.write(STDERR, f"{text}\n".encode())


# A worker that is being forked must not take a signal to the group: it would have the rank's handlers, and write to the
# rank's descriptor. So signals are blocked until it is a worker.


def _before_fork() -> None:
    if _listening:
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)


def _after_fork_in_parent() -> None:
    if _listening:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def _after_fork_in_child() -> None:
    global _listening
    if _listening:
        _listening = None
        signal.set_wakeup_fd(-1)
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
