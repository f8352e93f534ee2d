"""metrics.csv: a row for each step of a run, in its save folder, however often the run is killed."""

import os
from collections.abc import Iterator, Mapping
from typing import BinaryIO

from imagestream.data.job_dir import scratch_folder
from imagestream.storage.protocol import Place, read_if_there
from train.record.log_files import Sparing

METRICS_NAME = "metrics.csv"
FIGURES = (
    *("epoch", "train/loss", "lr", "image_px", "images_per_sec", "data_wait_fraction", "memory_gb"),
    *("val/loss", "val/top1", "val/top5"),  # last: a row gets them later
)
"""What the columns after `step` are called, here and in TensorBoard, W&B and MLflow."""
EVALUATION = "val/"


class MetricsFile:
    """The table of a run's steps, written by rank 0.

    A row is in the file as soon as it is known, so that SIGKILL loses none. In S3 the file is stored anew before each
    checkpoint. Either way a run that goes on finds each row up to its checkpoint there, and drops those after it.
    """

    def __init__(self, folder: Place) -> None:
        self._folder = folder
        self._path = folder.path / METRICS_NAME if folder.path else scratch_folder() / METRICS_NAME
        self._sparing = Sparing(f"{folder}/{METRICS_NAME}")
        self._file: BinaryIO | None = None
        self._step, self._at, self._end = 0, 0, 0  # the last row's step and place, and the file's end

    def begin(self, batch: int, *, has_evaluation: bool) -> None:
        """Keep the rows up to `batch`, and of its own row the evaluation only where the checkpoint has it too.

        The file is replaced: a process that this run has taken the folder over from has the old one open.
        """
        with self._sparing.spared():
            lines = [",".join(("step", *FIGURES)) + "\n"]
            for step, values in _rows(read_if_there(self._folder, METRICS_NAME) or b""):
                if step <= batch:
                    lines.append(_line(step, values if step < batch or has_evaluation else without_evaluation(values)))
                    self._step = step
            data = "".join(lines).encode()
            self._folder.write(METRICS_NAME, data)
            if self._folder.path is None:
                self._path.write_bytes(data)
            self._file = open(self._path, "r+b", buffering=0)  # noqa: SIM115  # close() closes it
            self._end = len(data)
            self._at = self._end - len(lines[-1].encode())

    def put(self, step: int, values: Mapping[str, float]) -> None:
        """Add a step's row, or write the last one anew if it is that step's: with the same figures, and more.

        Over the old one, so that a kill in between leaves one of the two.
        """
        if self._file is None:
            return
        if step != self._step:
            self._step, self._at = step, self._end
        line = _line(step, values).encode()
        with self._sparing.spared():
            try:
                _write_at(self._file, line, self._at)
            except OSError:
                os.ftruncate(self._file.fileno(), self._at)
                self._end = self._at
                raise
            self._end = self._at + len(line)

    def rows(self) -> Iterator[tuple[int, dict[str, float]]]:
        """Yield each step with its figures, in their order."""
        if self._file is not None:
            yield from _rows(self._path.read_bytes())

    def save(self) -> None:
        """Have all rows where a lost machine does not take them along."""
        if self._file is None:
            return
        with self._sparing.spared():
            os.fsync(self._file.fileno())
            if self._folder.path is None:
                self._folder.write(METRICS_NAME, self._path.read_bytes())

    def close(self) -> None:
        """Save, and let go of the file."""
        self.save()
        if self._file is not None:
            self._file.close()
            self._file = None


def without_evaluation(values: Mapping[str, float]) -> dict[str, float]:
    """Return a step's own figures, without those of an evaluation after it."""
    return {name: value for name, value in values.items() if not name.startswith(EVALUATION)}


def _line(step: int, values: Mapping[str, float]) -> str:
    return ",".join([str(step), *(str(values.get(name, "")) for name in FIGURES)]) + "\n"


def _rows(data: bytes) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield the rows of a file, whose last one may be cut short; what is not to be understood is left out."""
    lines = data.decode(errors="replace").splitlines(keepends=True)
    names = lines[0].strip().split(",") if lines else []
    last = 0
    for line in lines[1:]:
        fields = line.strip().split(",") if line.endswith("\n") else line.split(",")[:-1]
        found = {name: _number(field) for name, field in zip(names, fields, strict=False)}
        step = found.pop("step", None)
        if isinstance(step, int) and step > last:
            last = step
            yield step, {name: value for name, value in found.items() if value is not None}


def _number(text: str) -> float | None:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return None


def _write_at(file: BinaryIO, data: bytes, offset: int) -> None:
    """Write all of `data`: a disk that fills up takes a part of it, without an error."""
    written = os.pwrite(file.fileno(), data, offset)
    while written < len(data):
        written += os.pwrite(file.fileno(), data[written:], offset + written)
