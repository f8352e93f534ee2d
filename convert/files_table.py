"""Write files.parquet, from which file each sample was made, out of a conversion's journal, a shard at a time."""

import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from convert.journal import Journal, RecordsGoneError
from convert.plan import ShardTask
from imagestream.mds.files_table import BATCH_ROWS, FILES_NAME, SCHEMA
from imagestream.mds.manifest import MANIFEST_NAME
from imagestream.mds.names import printable
from imagestream.storage.local import PART, final_name
from imagestream.storage.protocol import Place

WHOLE_NAMES = (FILES_NAME, MANIFEST_NAME)
SCRATCH = f"{PART}files-"  # folders for the table until it is whole


class FilesTableError(RuntimeError):
    """The table of an earlier conversion, whose rows are to be taken over, is damaged."""


def clear_scratch(output: Place) -> None:
    """Remove what killed converters have left of the table and the manifest on a disk."""
    names = output.names() if output.path is not None else []
    for name in names:
        if output.path is not None and name.startswith(SCRATCH) and name.endswith("/"):
            shutil.rmtree(output.path / name, ignore_errors=True)
    output.delete([name for name in names if final_name(name) != name and final_name(name) in WHOLE_NAMES])


def write_files_table(output: Place, made: Mapping[str, Sequence[ShardTask]], *, kept: Collection[str]) -> None:
    """Write the table of a dataset; whatever its size, some ten thousand rows are in memory.

    It is a function of the plan and of the images, whichever workers made the shards, and after which ends.

    Args:
        made: the splits of this conversion, whose journals are still there, with their shards.
        kept: splits of earlier conversions, whose rows are taken over where there are any.

    Raises:
        PlaceError: it cannot be written.
        FilesTableError: the table that is there is damaged.
        RecordsGoneError: a journal has gone, as another machine that completes the dataset too removes it.
    """
    with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=output.path) as scratch:
        path = Path(scratch, FILES_NAME)
        before = None
        if kept and output.stat(FILES_NAME) is not None:
            before = output.get(FILES_NAME, Path(tempfile.mkdtemp(dir=scratch)))
        with pq.ParquetWriter(path, SCHEMA, compression="zstd") as writer:
            for split in sorted({*made, *kept}):
                rows = _rows_of(output, split, made[split]) if split in made else _rows_before(before, split)
                for group in _groups(rows):
                    writer.write_table(pa.Table.from_pylist(group, SCHEMA))
        output.put(FILES_NAME, path)


def check_kept_table(output: Place) -> None:
    """Open the table that an earlier conversion has left, if it has.

    Raises:
        FilesTableError: it is damaged.
    """
    if output.stat(FILES_NAME) is None:
        return
    with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=output.path) as scratch:
        _open(output.get(FILES_NAME, Path(scratch))).close()


def _open(table: Path) -> pq.ParquetFile:
    try:
        file = pq.ParquetFile(table)
        if file.schema_arrow.names != SCHEMA.names:
            raise ValueError(f"its columns are {', '.join(file.schema_arrow.names)}")
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise FilesTableError(
            f"{FILES_NAME} in --out is damaged: {reason}; copy it again, or remove it: it will then have no rows "
            "of the splits that are there"
        ) from error
    return file


def _rows_before(table: Path | None, split: str) -> Iterator[dict[str, Any]]:
    if table is None:
        return
    with _open(table) as file:
        for batch in file.iter_batches(BATCH_ROWS):
            yield from batch.filter(pc.equal(batch["split"].cast(pa.string()), split)).to_pylist()


def _groups(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    group: list[dict[str, Any]] = []
    for row in rows:
        group.append(row)
        if len(group) == BATCH_ROWS:
            yield group
            group = []
    if group:
        yield group


def _rows_of(output: Place, split: str, tasks: Sequence[ShardTask]) -> Iterator[dict[str, Any]]:
    records = Journal(output, split).get_each(task.index for task in tasks)
    for task, (_, record) in zip(tasks, records, strict=True):
        if record is None:
            raise RecordsGoneError(
                f"{task.name} is made, and its record is gone from the journal; give the same command again"
            )
        paths = {sample_id: printable(sample.key) for sample_id, sample in task.samples}
        for image in record.result.kept:
            yield {
                "id": image.id,
                "split": split,
                "path": paths[image.id],
                "label": image.label,
                "bytes": image.image_bytes,
                "width": image.width_px,
                "height": image.height_px,
                "sha256": bytes.fromhex(image.sha256),
            }
