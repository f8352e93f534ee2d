"""From which file a sample was made, out of a dataset's files.parquet."""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from imagestream.mds.files_table import BATCH_ROWS, FILES_NAME, SCHEMA
from imagestream.storage.errors import PlaceError
from imagestream.storage.protocol import Place


def files_table_rows(place: Place, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Yield some columns of a dataset's files.parquet, some ten thousand rows at a time; nothing where there is none.

    The columns have the types of `imagestream.mds.files_table`, but `split` is plain strings, and no field is empty.

    Raises:
        PlaceError: it cannot be read, or is damaged.
    """
    if place.stat(FILES_NAME) is None:
        return
    with tempfile.TemporaryDirectory(prefix="files-") as scratch:
        path = place.get(FILES_NAME, Path(scratch))
        try:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(BATCH_ROWS, columns=list(columns)):
                    yield _as_written(batch, columns)
        except (pa.ArrowException, KeyError, OSError) as error:
            raise PlaceError(f"{place}/{FILES_NAME} is damaged: {error}; copy it again, or remove it") from error


def _as_written(batch: pa.RecordBatch, columns: Sequence[str]) -> pa.RecordBatch:
    empty = [name for name in columns if batch[name].null_count]
    if empty:
        raise pa.ArrowInvalid(f"its column {empty[0]!r} has empty fields")
    types = [pa.string() if name == "split" else SCHEMA.field(name).type for name in columns]
    return pa.record_batch([batch[name].cast(kind) for name, kind in zip(columns, types, strict=True)], list(columns))


class SourcePaths:
    """The paths of a split's samples, by sample id.

    Args:
        place: the dataset.
        split: of it; in memory are its ids and paths.

    Raises:
        PlaceError: files.parquet cannot be read, or is damaged.
    """

    def __init__(self, place: Place, split: str) -> None:
        ids, paths = [], []
        for batch in files_table_rows(place, ("id", "split", "path")):
            mine = batch.filter(pc.equal(batch["split"], split))
            ids.append(mine["id"].to_numpy())
            paths.append(mine["path"])
        found = np.concatenate(ids) if ids else np.empty(0, np.int64)
        order = np.argsort(found, kind="stable")
        self._ids: npt.NDArray[Any] = found[order]
        self._paths = pa.chunked_array(paths, pa.string()).take(pa.array(order))

    def __bool__(self) -> bool:
        return len(self._ids) > 0

    def of(self, ids: Sequence[int] | npt.NDArray[Any]) -> list[str | None]:
        """Return the path of each sample; None where it is not known."""
        wanted = np.asarray(ids, np.int64)
        places = np.searchsorted(self._ids, wanted)
        there = places < len(self._ids)
        there[there] = self._ids[places[there]] == wanted[there]
        found: list[str | None] = self._paths.take(pa.array(places, mask=~there)).to_pylist()
        return found
