"""The audit compares files.parquet with the shards."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imagestream.mds.files_table import SCHEMA
from tests.audits import FIRST, Record, files_of, flip, hash_line, rewrite, write_files

pytestmark = pytest.mark.slow

Rows = list[dict[str, Any]]


def of_split(rows: Rows, split: str) -> Rows:
    return [row for row in rows if row["split"] == split]


@pytest.mark.parametrize(
    ("column", "value"), [("label", 3), ("bytes", 1), ("width", 1), ("height", 70_000), ("sha256", bytes(32))]
)
def test_a_row_that_says_something_else_than_its_record_is_named(
    audit: Any, dataset: Path, column: str, value: object
) -> None:
    rows = files_of(dataset)
    row = next(row for row in rows if row[column] != value)
    row[column] = value
    write_files(dataset, rows)
    what = f"train: the record with id {row['id']} in {FIRST} is another one: {column} differ"
    assert audit() == (1, [f"files.parquet: {what}"])


def test_an_image_that_was_put_in_place_of_another_is_found_though_all_hashes_fit(audit: Any, dataset: Path) -> None:
    before = files_of(dataset)

    def change(records: list[Record]) -> None:
        same = next(other for other in records[1:] if other[2] == records[0][2])
        records[0] = (records[0][0], same[1], records[0][2])

    rewrite(dataset, FIRST, change)
    write_files(dataset, before)
    status, found = audit()
    assert status == 1
    error, warning = found
    assert error.startswith(f"files.parquet: train: the record with id {before[0]['id']} in {FIRST} is another one: ")
    assert error.endswith("sha256 differ")
    assert warning.startswith("warning: ")  # the image is there twice


def test_rows_too_few_too_many_and_twice_are_named(audit: Any, dataset: Path) -> None:
    rows = files_of(dataset)
    train = of_split(rows, "train")
    write_files(dataset, [row for row in rows if row is not train[7]])
    gone = train[7]["id"]
    assert audit() == (1, [f"files.parquet: train: id {gone} is in a shard, and has no row"])
    write_files(dataset, [*rows, {**train[7], "id": 100}, {**train[7], "id": 101}])
    assert audit() == (1, ["files.parquet: train: ids 100 to 101: each is in no shard, and has a row"])
    write_files(dataset, [*rows, train[7]])
    assert audit() == (1, [f"files.parquet: train: id {gone} is in more than one row"])
    rows[0], rows[1] = rows[1], rows[0]
    write_files(dataset, rows)
    assert audit() == (1, ["files.parquet: train: its rows are not in the order of the shards"])


def test_rows_of_other_splits_are_named(audit: Any, dataset: Path) -> None:
    rows = files_of(dataset)
    write_files(dataset, [*rows, {**rows[0], "split": "test"}])
    assert audit() == (1, ["files.parquet: rows of the split 'test', which is not here: 1"])
    write_files(dataset, of_split(rows, "train"))
    assert audit() == (0, ["warning: files.parquet: has no rows of the split 'val'"])


def test_records_that_cannot_be_read_do_not_make_their_rows_wrong(audit: Any, dataset: Path) -> None:
    flip(dataset / FIRST, 4)  # the first offset
    status, found = audit()
    assert status == 1
    assert found[0] == hash_line(dataset, FIRST)
    assert not [line for line in found if line.startswith("files.parquet")]


def test_a_table_without_rows_is_named_for_each_split(audit: Any, dataset: Path) -> None:
    write_files(dataset, [])
    lines = [f"warning: files.parquet: has no rows of the split '{split}'" for split in ("train", "val")]
    assert audit() == (0, lines)


def test_nothing_is_compared_with_a_faulty_index(audit: Any, dataset: Path) -> None:
    (dataset / "val/index.json").write_text("{}")
    status, found = audit()
    assert status == 1
    assert [line for line in found if "files.parquet" in line] == [
        "warning: files.parquet: was not compared with the shards, since an index.json has faults"
    ]


def test_a_dataset_without_the_table_passes(audit: Any, dataset: Path) -> None:
    (dataset / "files.parquet").unlink()
    assert audit() == (0, [])


def test_shards_of_others_have_no_such_table(audit: Any, dataset: Path) -> None:
    (dataset / "files.parquet").write_bytes(b"something of their own")
    (dataset / "manifest.json").unlink()
    assert audit()[0] == 0


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _without_labels(path: Path) -> None:
    pq.write_table(pq.read_table(path).drop_columns(["label"]), path)


def _with_an_empty_id(path: Path) -> None:
    rows = pq.read_table(path).to_pylist()
    rows[3]["id"] = None
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), path)


def _with_words_for_ids(path: Path) -> None:
    table = pq.read_table(path)
    pq.write_table(table.set_column(0, "id", pa.array(["x"] * len(table))), path)


def _with_short_hashes(path: Path) -> None:
    table = pq.read_table(path)
    at = table.column_names.index("sha256")
    pq.write_table(table.set_column(at, "sha256", pa.array([b"x"] * len(table), pa.binary())), path)


def _with_a_million_rows(path: Path) -> None:
    table = pq.read_table(path)
    pq.write_table(table.take(pa.array([0] * 1_000_000)), path)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_cut, "is damaged: "),
        (_without_labels, "is damaged: "),
        (_with_an_empty_id, "is damaged: its column 'id' has empty fields; copy it again, or remove it"),
        (_with_words_for_ids, "is damaged: "),
        (_with_short_hashes, "is damaged: "),
        (_with_a_million_rows, "has more than 246 rows, twice as many as there are samples; none was compared"),
    ],
)
def test_a_damaged_table_is_one_line(audit: Any, dataset: Path, damage: Callable[[Path], None], words: str) -> None:
    damage(dataset / "files.parquet")
    status, found = audit()
    assert status == 1
    (line,) = found
    assert line.startswith("files.parquet: ")
    assert words in line


def test_a_table_that_another_tool_has_written_again_is_read(audit: Any, dataset: Path) -> None:
    table = pq.read_table(dataset / "files.parquet")
    plain = [pa.field("split", pa.large_string()) if field.name == "split" else field for field in table.schema]
    at = table.column_names.index("sha256")
    plain[at] = pa.field("sha256", pa.binary())
    pq.write_table(table.cast(pa.schema(plain)), dataset / "files.parquet", store_schema=False)
    assert audit() == (0, [])


def test_another_datasets_table_is_not_taken_for_this_ones(audit: Any, dataset: Path, tmp_path: Path) -> None:
    rows = files_of(dataset)
    shutil.copytree(dataset, tmp_path / "other")
    for row in rows:
        row["sha256"] = bytes(32)
    write_files(tmp_path / "other", rows)
    status, found = audit(place=tmp_path / "other")
    assert status == 1
    assert found[-1] == "... and 103 more disagreements with files.parquet"
