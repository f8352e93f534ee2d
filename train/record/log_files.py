"""The run's log and TensorBoard files, whose full disk does not end the run; and a key for Weights & Biases."""

import contextlib
import logging
import netrc
import os
from collections.abc import Iterator
from typing import Any

from composer.core import State
from composer.loggers import FileLogger, Logger, TensorboardLogger

from train.config.run_config import ConfigError
from train.config.sections import LoggersConfig

log = logging.getLogger(__name__)


def refuse_wandb_without_key(cfg: LoggersConfig) -> None:
    """Raise ConfigError where Weights & Biases would ask for a key that nobody can type."""
    if cfg.wandb is None or cfg.wandb.mode != "online" or os.environ.get("WANDB_MODE", "online") != "online":
        return
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").partition("://")[2].partition("/")[0]
    known = None
    with contextlib.suppress(OSError, netrc.NetrcParseError):
        known = netrc.netrc(os.environ.get("NETRC") or None).authenticators(host.partition(":")[0])
    if not os.environ.get("WANDB_API_KEY") and known is None:
        raise ConfigError(
            f"loggers.wandb: there is no key for {host}; set WANDB_API_KEY, run `wandb login`, or give "
            "loggers.wandb.mode=offline"
        )


class _Sparing:
    """Turns the first error of writing files into a warning, and is silent about those after it."""

    def __init__(self, what: str) -> None:
        self._what, self._told = what, False

    @contextlib.contextmanager
    def spared(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._told:
                self._told = True  # first: the warning goes to the log file as well
                log.warning(
                    "%s cannot be written: %s; the run goes on, and what should be there from now on may be missing",
                    self._what,
                    error.strerror or error,
                )


class LogFile(FileLogger):
    """Composer's FileLogger, without which the run can go on.

    The one of Composer 0.32.1 (`composer/loggers/file_logger.py`: `write`, `_flush_file`, `close`) lets the error of a
    full disk through. Since it stands in for sys.stdout and sys.stderr, each `print` and each warning then raises it,
    the one that would name the cause too, and Python ends with "lost sys.stderr".
    """

    file: Any

    def __init__(self, filename: str) -> None:
        self._sparing = _Sparing(f"the log file {filename}")
        super().__init__(filename=filename)

    def init(self, state: State, logger: Logger) -> None:
        with self._sparing.spared():
            super().init(state, logger)
        if self.file is None:
            self.file = open(os.devnull, "w+")  # noqa: SIM115  # close() closes it

    def write(self, prefix: str, s: str) -> None:
        with self._sparing.spared():
            super().write(prefix, s)

    def _flush_file(self, logger: Logger) -> None:
        with self._sparing.spared():
            super()._flush_file(logger)

    def close(self, state: State, logger: Logger) -> None:
        try:
            with self._sparing.spared():
                super().close(state, logger)
        finally:
            self.file = None


class TensorboardFiles(TensorboardLogger):
    """Composer's TensorboardLogger, without which the run can go on.

    What is logged between the error and the next flush, at the end of an epoch or after 100 batches, is lost.
    tensorboard's writer (`event_file_writer.py`, `_AsyncWriterThread`) has a thread that ends at its first error, which
    each later call raises again.
    """

    def __init__(self, log_dir: str) -> None:
        self._sparing = _Sparing(f"TensorBoard's file in {log_dir}")
        super().__init__(log_dir=log_dir)

    def init(self, state: State, logger: Logger) -> None:
        with self._sparing.spared():
            super().init(state, logger)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        with self._sparing.spared():
            super().log_metrics(metrics, step)

    def log_images(self, *args: Any, **kwargs: Any) -> None:
        with self._sparing.spared():
            super().log_images(*args, **kwargs)

    def eval_end(self, state: State, logger: Logger) -> None:
        with self._sparing.spared():
            super().eval_end(state, logger)

    def _flush(self, logger: Logger) -> None:
        with self._sparing.spared():
            try:
                super()._flush(logger)
            except OSError:
                if self.writer is not None:  # the next call opens a new file: there may be room again
                    self.writer.file_writer = self.writer.all_writers = None
                raise
