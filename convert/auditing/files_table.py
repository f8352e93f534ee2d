"""Whether files.parquet, which says from which file each sample was made, is of these very shards."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from convert.auditing.findings import Finding, Kind
from convert.auditing.splits import SplitRows, runs, shown_ids
from imagestream.data.source_paths import files_table_rows
from imagestream.mds.files_table import FILES_NAME
from imagestream.mds.shards import INDEX_NAME
from imagestream.storage.errors import PlaceError
from imagestream.storage.protocol import Place

_COLUMNS = ("id", "split", "label", "bytes", "width", "height", "sha256")
_ROW = np.dtype(
    [
        ("id", "i8"),
        ("label", "i4"),
        ("bytes", "i8"),
        ("width", "i4"),
        ("height", "i4"),
        ("sha256", "u8", (4,)),
    ]
)
_Table = npt.NDArray[np.void]


def check_files_table(files: Place, splits: Sequence[SplitRows]) -> Iterator[Finding]:
    """Compare each row with the record of the same id; nothing where there is no table, which nothing needs."""
    try:
        if files.stat(FILES_NAME) is None:
            return
        if any(len(split.index.shards) < max(1, split.index.listed) for split in splits):
            what = f"was not compared with the shards, since an {INDEX_NAME} has faults"
            yield Finding(Kind.NOT_COMPARED, FILES_NAME, what, is_warning=True)
            return
        table = _read(files, most=2 * sum(split.index.samples for split in splits))
    except PlaceError as error:
        yield Finding(Kind.FILES, FILES_NAME, str(error))
        return
    names = {split.split for split in splits}
    for name in sorted(set(table) - names):
        yield Finding(Kind.FILES, FILES_NAME, f"rows of the split {name!r}, which is not here: {len(table[name]):,}")
    for split in splits:
        if split.split in table:
            yield from _check_split(split, table[split.split])
        else:  # a conversion of an older version, to which another split was added
            yield Finding(Kind.FILES, FILES_NAME, f"has no rows of the split {split.split!r}", is_warning=True)


def _read(files: Place, *, most: int) -> dict[str, _Table]:
    """Return the rows of each split.

    Raises:
        PlaceError: it cannot be read, is damaged, or has more than `most` rows.
    """
    parts: dict[str, list[_Table]] = {}
    seen = 0
    for batch in files_table_rows(files, _COLUMNS):
        seen += len(batch)
        if seen > most:
            raise PlaceError(f"has more than {most:,} rows, twice as many as there are samples; none was compared")
        rows = np.empty(len(batch), _ROW)
        for name in ("id", "label", "bytes", "width", "height"):
            rows[name] = batch[name].to_numpy()
        rows["sha256"] = np.frombuffer(b"".join(batch["sha256"].to_pylist()), "u8").reshape(-1, 4)
        of_split = np.array(batch["split"].to_pylist(), object)
        for name in set(of_split):
            parts.setdefault(name, []).append(rows[of_split == name])
    return {name: np.concatenate(of_split) for name, of_split in parts.items()}


def _check_split(split: SplitRows, table: _Table) -> Iterator[Finding]:
    ids, stored = table["id"], split.rows["id"]
    for first, last in runs(np.setdiff1d(stored, ids)):
        yield _found(split, f"{shown_ids(first, last)} in a shard, and has no row")
    if not split.unread:
        for first, last in runs(np.setdiff1d(ids, stored)):
            yield _found(split, f"{shown_ids(first, last)} in no shard, and has a row")
    unique, times = np.unique(ids, return_counts=True)
    for first, last in runs(unique[times > 1]):
        yield _found(split, f"{shown_ids(first, last)} in more than one row")
    if len(unique) < len(ids) or len(np.unique(stored)) < len(stored):
        return  # which row is which record's is not known
    _, rows, records = np.intersect1d(ids, stored, assume_unique=True, return_indices=True)
    if np.any(np.diff(records[np.argsort(rows)]) < 0):
        yield _found(split, "its rows are not in the order of the shards")
    yield from _differences(split, table[rows], records)


def _differences(split: SplitRows, table: _Table, records: npt.NDArray[Any]) -> Iterator[Finding]:
    """Compare rows with records of the same ids; what an audit does not know of a record is left out."""
    stored = split.rows[records]
    decoded = stored["width_px"] > 0
    wrong = {
        "label": (table["label"] != stored["label"]) & (stored["label"] >= 0),
        "bytes": table["bytes"] != stored["bytes"],
        "width": (table["width"] != stored["width_px"]) & decoded,
        "height": (table["height"] != stored["height_px"]) & decoded,
        "sha256": np.any(table["sha256"] != stored["sha256"], axis=1),
    }
    for at in np.flatnonzero(np.any(list(wrong.values()), axis=0)):
        named = ", ".join(name for name, where in wrong.items() if where[at])
        position = int(records[at])
        what = f"the record with id {stored['id'][at]} in {split.path(position)} is another one: {named} differ"
        yield _found(split, what, position)


def _found(split: SplitRows, what: str, *positions: int) -> Finding:
    images = tuple(split.at(position) for position in positions)
    return Finding(Kind.FILES, FILES_NAME, f"{split.split}: {what}", images=images)
