"""The run's log file; and what keeps a logger's trouble from ending the run."""

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any

from composer.core import State
from composer.loggers import FileLogger, Logger

from train.resume.fence import TakenOverError

log = logging.getLogger(__name__)


class Sparing:
    """Turns the first error of a logger into a warning, and is silent about those after it.

    Args:
        what: cannot be written, as the warning names it.
        kinds: of errors, beside those of files and connections.
    """

    def __init__(self, what: str, *kinds: type[Exception]) -> None:
        self._what, self._told = what, False
        self._kinds: tuple[type[Exception], ...] = (OSError, *kinds)

    @contextlib.contextmanager
    def spared(self) -> Iterator[None]:
        try:
            yield
        except TakenOverError:
            raise
        except self._kinds as error:
            if not self._told:
                self._told = True  # first: the warning goes to the log file as well
                log.warning(
                    "%s cannot be written: %s; the run continues, and what should be there from now on may be missing",
                    self._what,
                    getattr(error, "strerror", None) or error,
                )


class LogFile(FileLogger):
    """Composer's FileLogger, without which the run can continue.

    The one of Composer 0.32.1 (`composer/loggers/file_logger.py`: `write`, `_flush_file`, `close`) lets the error of a
    full disk through. Since it stands in for sys.stdout and sys.stderr, each `print` and each warning then raises it,
    the one that would name the cause too, and Python ends with "lost sys.stderr".

    Metrics are in metrics.csv, and not here.
    """

    file: Any

    def __init__(self, filename: str) -> None:
        self._sparing = Sparing(f"the log file {filename}")
        super().__init__(filename=filename)

    def init(self, state: State, logger: Logger) -> None:
        with self._sparing.spared():
            super().init(state, logger)
        if self.file is None:
            self.file = open(os.devnull, "w+")  # noqa: SIM115  # close() closes it

    def write(self, prefix: str, s: str) -> None:
        with self._sparing.spared():
            super().write(prefix, s)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Take none of Composer's own, which are many and say little."""

    def _flush_file(self, logger: Logger) -> None:
        with self._sparing.spared():
            super()._flush_file(logger)

    def close(self, state: State, logger: Logger) -> None:
        try:
            with self._sparing.spared():
                super().close(state, logger)
        finally:
            self.file = None
