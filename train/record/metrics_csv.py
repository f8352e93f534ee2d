"""metrics.csv: a row for each step of a run, in its save folder, however often the run is killed."""

import os
from collections.abc import Iterator, Mapping
from typing import BinaryIO, NamedTuple

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
    checkpoint. Either way a run that resumes finds each row up to its checkpoint there, and drops those after it.
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
            for row in _rows(read_if_there(self._folder, METRICS_NAME) or b""):
                if row.step < batch and row.is_ours:
                    lines.append(row.line)
                elif row.step <= batch:
                    keeps_all = row.step < batch or has_evaluation
                    lines.append(_line(row.step, row.figures if keeps_all else without_evaluation(row.figures)))
                else:
                    break
                self._step = row.step
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

    def rows(self, after: int = 0) -> Iterator[tuple[int, dict[str, float]]]:
        """Yield each step after that one with its figures, in their order."""
        if self._file is not None:
            yield from ((row.step, row.figures) for row in _rows(self._path.read_bytes()) if row.step > after)

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


class _Row(NamedTuple):
    step: int
    line: str
    names: list[str]  # of its fields

    @property
    def is_ours(self) -> bool:
        """Whether the line can stay as it is."""
        return self.names == ["step", *FIGURES] and self.line.endswith("\n")

    @property
    def figures(self) -> dict[str, float]:
        """The fields that are numbers; of a line that is cut short, those that are whole."""
        fields = self.line.strip().split(",") if self.line.endswith("\n") else self.line.split(",")[:-1]
        found = {name: _number(field) for name, field in zip(self.names, fields, strict=False) if name != "step"}
        return {name: value for name, value in found.items() if value is not None}


def _rows(data: bytes) -> Iterator[_Row]:
    """Yield the rows of a file, whose last one may be cut short; what is not to be understood is left out."""
    lines = data.decode(errors="replace").splitlines(keepends=True)
    names = lines[0].strip().split(",") if lines else []
    at = names.index("step") if "step" in names else 0
    last = 0
    for line in lines[1:] if "step" in names else ():
        fields = line.split(",", at + 1)
        is_whole = len(fields) > at + 1 or line.endswith("\n")
        step = _number(fields[at].strip()) if is_whole and len(fields) > at else None
        if isinstance(step, int) and step > last:
            last = step
            yield _Row(step, line, names)


def _number(text: str) -> float | None:
    if text.isdecimal():
        return int(text)
    try:
        return float(text)
    except ValueError:
        return None


def _write_at(file: BinaryIO, data: bytes, offset: int) -> None:
    """Write all of `data`: a disk that fills up takes a part of it, without an error."""
    written = os.pwrite(file.fileno(), data, offset)
    while written < len(data):
        written += os.pwrite(file.fileno(), data[written:], offset + written)
