"""A run's curves in TensorBoard's files: one curve each, however often the run is killed."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train.record.log_files import Sparing

if TYPE_CHECKING:
    from torch.utils.tensorboard import FileWriter

PIECE = re.compile(r"events\.out\.tfevents\..*\.after-ba(\d+)")
SECONDS_BETWEEN_FLUSHES = 30


class TensorBoardCurve:
    """Event files in pieces: each begins at a checkpoint, and its name ends with `.after-ba` and that one's batch.

    A run that resumes from batch N deletes the pieces from N on, whose steps it takes again. So readers that know
    nothing of TensorBoard's rules for restarts see each step once, too.

    tensorboard's writer (`event_file_writer.py`, `_AsyncWriterThread`) has a thread that ends at its first error, which
    each later call raises again: after one, the next flush opens another file of the same piece.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sparing = Sparing(f"TensorBoard's file in {folder}")
        self._writer: FileWriter | None = None
        self._has_failed = False
        self._batch = 0

    def begin(self, batch: int) -> int:
        """Delete what is from `batch` on; return the last step that is there."""
        self._batch = batch
        with self._sparing.spared():
            self._folder.mkdir(parents=True, exist_ok=True)
            kept = []
            for path in sorted(self._folder.iterdir()):
                if match := PIECE.fullmatch(path.name):
                    if int(match[1]) >= batch:
                        path.unlink()
                    else:
                        kept.append((int(match[1]), path))
            return next((step for _, path in sorted(kept, reverse=True) if (step := last_step(path))), 0)
        return 0

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add a step's figures: in one event, so that they are all there or none."""
        with self._sparing.spared():
            if self._writer is None:
                self._writer = _open(self._folder, self._batch)
            try:
                self._writer.add_summary(_summary(values), step)
            except OSError:
                self._has_failed = True
                raise

    def save(self, batch: int) -> None:
        """Have all that was logged in the file, and begin another one for what comes after `batch`."""
        with self._sparing.spared():
            self._let_go()
        self._batch = batch

    def flush(self) -> None:
        """Have all that was logged in the file."""
        with self._sparing.spared():
            if self._has_failed:
                self._let_go()
            elif self._writer is not None:
                try:
                    self._writer.flush()
                except OSError:
                    self._has_failed = True
                    raise

    def close(self, *, is_finished: bool) -> None:
        """Have all that was logged in the file."""
        with self._sparing.spared():
            self._let_go()

    def _let_go(self) -> None:
        writer, self._writer, self._has_failed = self._writer, None, False
        if writer is not None:
            writer.close()


def _open(folder: Path, batch: int) -> "FileWriter":
    from torch.utils.tensorboard import FileWriter  # takes a second

    return FileWriter(str(folder), flush_secs=SECONDS_BETWEEN_FLUSHES, filename_suffix=f".after-ba{batch}")


def _summary(values: Mapping[str, float]) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary

    return Summary(value=[Summary.Value(tag=name, simple_value=float(value)) for name, value in values.items()])


def last_step(path: Path) -> int:
    """Return the last step in an event file, up to where it is cut short, if it is; 0 where there is none."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    return max((event.step for event in LegacyEventFileLoader(str(path)).Load()), default=0)
