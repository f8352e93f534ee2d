"""Predictions as a table that grows while they are made: CSV or Parquet."""

import csv
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from imagestream.data.job_dir import scratch_folder
from imagestream.storage.places import folder_and_name, open_place

RANKS = 5
ROWS_OF_A_GROUP = 8192  # of Parquet, in memory until they are written


class Prediction(NamedTuple):
    """What is said of an image.

    Attributes:
        path: of the file, or of what the shards' sample was made of; `printable`.
        classes: names of the likeliest ones, at most RANKS; none where the image cannot be used.
        probabilities: theirs.
        error: why the image cannot be used, or ''.
        id: the sample's, in shards that have one.
    """

    path: str
    classes: Sequence[str]
    probabilities: Sequence[float]
    error: str = ""
    id: int | None = None


COLUMNS = (
    "path",
    *(f"{what}_{rank}" for rank in range(1, RANKS + 1) for what in ("class", "probability")),
    "error",
    "id",
)


def row_of(prediction: Prediction) -> list[Any]:
    """Return a prediction's values by COLUMNS; None where there is none."""
    pairs = zip(prediction.classes, prediction.probabilities, strict=True)
    ranked: list[Any] = [value for pair in pairs for value in pair]
    ranked += [None] * (2 * RANKS - len(ranked))
    return [prediction.path, *ranked, prediction.error or None, prediction.id]


class Table(Protocol):
    """Where predictions go."""

    def add(self, predictions: Sequence[Prediction]) -> None:
        """Write more rows."""

    def finish(self) -> None:
        """Put the file where it belongs, whole."""


class CsvLines:
    """CSV to an open file, such as stdout."""

    def __init__(self, file: TextIO) -> None:
        self._writer = csv.writer(file, lineterminator="\n")
        self._writer.writerow(COLUMNS)
        self._file = file

    def add(self, predictions: Sequence[Prediction]) -> None:
        for prediction in predictions:
            row = row_of(prediction)
            self._writer.writerow([f"{value:.6f}" if isinstance(value, float) else value for value in row])

    def finish(self) -> None:
        self._file.flush()


class _File:
    """A file that is written next to where nobody looks, and put to its place at the end."""

    def __init__(self, location: str) -> None:
        where, self.name = folder_and_name(location)
        self.folder = open_place(where)
        self.folder.check_writable()
        self._scratch = tempfile.TemporaryDirectory(prefix="predictions-", dir=self.folder.path or scratch_folder())
        self.path = Path(self._scratch.name, self.name)

    def put(self) -> None:
        self.folder.put(self.name, self.path)
        self._scratch.cleanup()


class CsvFile:
    """A CSV file, local or in S3."""

    def __init__(self, location: str) -> None:
        self._target = _File(location)
        self._file = open(self._target.path, "w", encoding="utf-8", newline="")  # noqa: SIM115  # finish() closes it
        self._lines = CsvLines(self._file)

    def add(self, predictions: Sequence[Prediction]) -> None:
        self._lines.add(predictions)

    def finish(self) -> None:
        self._file.close()
        self._target.put()


class ParquetFile:
    """A Parquet file, local or in S3; some thousand rows are in memory."""

    def __init__(self, location: str) -> None:
        self._target = _File(location)
        kinds = [pa.float32() if name.startswith("probability") else pa.string() for name in COLUMNS[:-1]]
        self._schema = pa.schema(list(zip(COLUMNS, [*kinds, pa.int64()], strict=True)))
        self._writer = pq.ParquetWriter(self._target.path, self._schema)
        self._rows: list[list[Any]] = []

    def add(self, predictions: Sequence[Prediction]) -> None:
        self._rows += map(row_of, predictions)
        if len(self._rows) >= ROWS_OF_A_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            values = zip(*self._rows, strict=True)
            columns = [pa.array(column, kind) for column, kind in zip(values, self._schema.types, strict=True)]
            self._writer.write_table(pa.table(columns, schema=self._schema))
            self._rows = []

    def finish(self) -> None:
        self._flush()
        self._writer.close()
        self._target.put()


def open_table(location: str | None) -> Table:
    """Return the table that `--out` names: .csv, .parquet, or None for CSV on stdout.

    Raises:
        PlaceError: it cannot be written.
    """
    if location is None:
        return CsvLines(sys.stdout)
    return ParquetFile(location) if location.endswith(".parquet") else CsvFile(location)
