"""`train.main` that writes down where it is, so that a test can kill it there and tell where it was killed.

Each line of the trace is `<seconds> <batch> <event>`: Composer's events, and `save`, `upload` and `saved` around a
checkpoint. The run pauses a moment where a test may aim at, so that a kill lands there on a busy machine too.
"""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from composer.core import Callback, Event, State
from composer.loggers import Logger
from composer.utils import dist

import train.main
import train.resume.checkpoints
import train.run
from tests import small_network

TRACE = "TEST_TRACE"  # environment variable: the file
PAUSES_S = dict.fromkeys(("batch_start", "batch_end", "eval_batch_start", "epoch_end", "save", "upload", "saved"), 0.04)


class Tracer(Callback):
    """Appends a line to the trace at each event, as the first of the callbacks."""

    def __init__(self) -> None:
        self.batch = 0
        self._file = os.open(os.environ[TRACE], os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def run_event(self, event: Event, state: State, logger: Logger) -> None:
        self.batch = int(state.timestamp.batch)
        self.note(event.value)

    def note(self, what: str) -> None:
        os.write(self._file, f"{time.monotonic():.3f} {self.batch} {what}\n".encode())
        time.sleep(PAUSES_S.get(what, 0))


def main(argv: Sequence[str]) -> int:
    """Run the command, tracing its first rank."""
    if int(os.environ["RANK"]) == 0:
        _trace(Tracer())
    return train.main.main(argv)


def _trace(tracer: Tracer) -> None:
    run: Any = train.run
    build_trainer, saver = run.build_trainer, train.resume.checkpoints.DurableCheckpointSaver
    save = saver._save_checkpoint

    def build(*args: Any) -> Any:
        assert dist.get_global_rank() == 0
        *others, callbacks, load_path = args
        return build_trainer(*others, [tracer, *callbacks], load_path)

    def traced_save(self: Any, state: State, logger: Logger) -> None:
        put = self.store.put

        def traced_put(name: str, source: Path) -> None:
            tracer.note("upload")
            put(name, source)

        tracer.note("save")
        self.store.put = traced_put
        save(self, state, logger)
        self.store.put = put
        tracer.note("saved")

    run.build_trainer = build
    saver._save_checkpoint = traced_save  # type: ignore[method-assign]
    tracer.note("process start")


if __name__ == "__main__":  # started by a real launcher, as a module
    small_network.install()
    raise SystemExit(main(sys.argv[1:]))
