"""Samples out of shard files that stay open."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from streaming import MDSWriter
from streaming.base.format import reader_from_json

from imagestream.mds.records import RecordError, Records

COLUMNS = {"i": "int", "x": "bytes", "y": "int"}


def shards_in(folder: Path, columns: dict[str, str] = COLUMNS, *, samples: int = 40) -> list[Any]:
    """Upstream's readers of a small dataset of upstream's writer."""
    import json

    with MDSWriter(out=str(folder), columns=columns, size_limit=3000) as writer:
        for number in range(samples):
            row = {"i": number, "x": bytes([number]) * (100 + 7 * number), "y": number % 5, "note": "ab" * (number % 3)}
            writer.write({name: row[name] for name in columns})
    index = json.loads((folder / "index.json").read_text())
    return [reader_from_json(str(folder), None, shard) for shard in index["shards"]]


def everything(records: Records, shards: list[Any]) -> list[tuple[bytes, int]]:
    return [records.read(shard_id, at) for shard_id, shard in enumerate(shards) for at in range(shard.samples)]


@pytest.mark.parametrize("keep_open", [0, 1, 128])
@pytest.mark.parametrize("columns", [COLUMNS, {"y": "uint16", "note": "str", "x": "bytes", "i": "int"}])
def test_samples_are_those_of_upstreams_reader(tmp_path: Path, columns: dict[str, str], keep_open: int) -> None:
    shards = shards_in(tmp_path, columns)
    assert len(shards) > 3
    expected = [(shard[at]["x"], int(shard[at]["y"])) for shard in shards for at in range(shard.samples)]
    assert everything(Records(shards, keep_open=keep_open), shards) == expected


@pytest.mark.parametrize("keep_open", [0, 1, 128])
@pytest.mark.parametrize("columns", [COLUMNS, {"y": "int", "note": "str", "x": "bytes", "i": "uint32"}])
def test_ids_are_those_of_column_i(tmp_path: Path, columns: dict[str, str], keep_open: int) -> None:
    shards = shards_in(tmp_path, columns)
    records = Records(shards, keep_open=keep_open)
    found = [records.sample_id(shard_id, at) for shard_id, shard in enumerate(shards) for at in range(shard.samples)]
    assert found == [int(shard[at]["i"]) for shard in shards for at in range(shard.samples)] == list(range(40))


def test_without_a_column_i_there_are_none(tmp_path: Path) -> None:
    shards = shards_in(tmp_path, {"x": "bytes", "y": "int"})
    assert Records(shards).sample_id(0, 0) is None
    (tmp_path / "text").mkdir()
    shards = shards_in(tmp_path / "text", {"x": "bytes", "y": "int", "i": "str_int"})
    assert Records(shards).sample_id(0, 0) is None


@pytest.mark.parametrize("keep_open", [0, 2])
def test_no_more_files_are_open_than_allowed(tmp_path: Path, keep_open: int) -> None:
    shards = shards_in(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    records = Records(shards, keep_open=keep_open)
    for _ in range(3):
        everything(records, shards)
        assert len(os.listdir("/proc/self/fd")) == before + keep_open
    records.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards, real_open = shards_in(tmp_path), os.open
    opened: list[str] = []

    def noted(path: str, *rest: int) -> int:
        opened.append(path)
        return real_open(path, *rest)

    monkeypatch.setattr(os, "open", noted)
    records = Records(shards)
    for _ in range(2):
        everything(records, shards)
    assert opened == [str(tmp_path / shard.raw_data.basename) for shard in shards]


def test_a_process_of_its_own_opens_files_of_its_own(tmp_path: Path) -> None:
    shards = shards_in(tmp_path)
    records = Records(shards)
    expected = everything(records, shards)
    copy = pickle.loads(pickle.dumps(records))
    records.close()
    assert everything(copy, shards) == expected


def test_a_missing_or_short_shard_is_an_error_that_names_it(tmp_path: Path) -> None:
    shards = shards_in(tmp_path)
    path = tmp_path / shards[1].raw_data.basename
    with open(path, "rb+") as file:
        file.truncate(path.stat().st_size - 200)
    with pytest.raises(RecordError, match=rf"{path}: sample \d+ is at bytes [\d,]+ to [\d,]+, and [\d,]+ of them"):
        everything(Records(shards), shards)
    path.write_bytes(b"\0" * 500)
    with pytest.raises(RecordError, match=r"is not a shard of \d+ samples"):
        Records(shards).read(1, 0)
    path.unlink()
    with pytest.raises(FileNotFoundError):  # which has the dataset fetch it
        Records(shards).read(1, 0)


def test_columns_that_are_no_images_and_labels_are_refused(tmp_path: Path) -> None:
    shards = shards_in(tmp_path, {"i": "int", "x": "bytes", "y": "int"})
    shards[0].column_encodings = ["int", "str", "int"]
    with pytest.raises(RecordError, match=r"columns are i \(int\), x \(str\), y \(int\); needed are x \(jpeg"):
        Records(shards)


def test_a_record_whose_columns_do_not_fill_it_is_an_error(tmp_path: Path) -> None:
    shards = shards_in(tmp_path, {"x": "bytes", "y": "int"})
    path = tmp_path / shards[0].raw_data.basename
    begin = int.from_bytes(path.read_bytes()[4:8], "little")
    with open(path, "rb+") as file:
        for size in (1, 0, 2**31):
            file.seek(begin)
            file.write(size.to_bytes(4, "little"))
            file.flush()
            with pytest.raises(RecordError, match=r"sample 0 is at bytes .* its columns take other space; fetch"):
                Records(shards).read(0, 0)
