"""Files appear whole or not at all, and only our own are ever listed."""

import errno
import os
from pathlib import Path

import pytest

from convert.outputs import LocalOutput, OutputError, open_output
from convert.s3 import S3Output


def test_a_written_file_leaves_no_temporary_one(tmp_path: Path) -> None:
    LocalOutput(tmp_path).write("train/shard.00000.mds", b"data")
    assert (tmp_path / "train/shard.00000.mds").read_bytes() == b"data"
    assert os.listdir(tmp_path / "train") == ["shard.00000.mds"]


def test_a_full_disk_leaves_nothing_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"shard\.00000\.mds: No space left on device\. Free some space"):
        LocalOutput(tmp_path).write("train/shard.00000.mds", b"data")
    assert os.listdir(tmp_path / "train") == []


def test_the_final_name_appears_only_after_the_bytes_are_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (seen.append(os.listdir(tmp_path)), sync(file)))
    LocalOutput(tmp_path).write("index.json", b"data")
    assert seen == [[".index.json.tmp"], ["index.json"]]


def test_our_files_are_shards_index_and_their_temporaries_only(tmp_path: Path) -> None:
    for name in ("shard.00001.mds", "index.json", ".shard.00002.mds.tmp", "notes.txt", "shard.mds", ".index.json"):
        (tmp_path / "train").mkdir(exist_ok=True)
        (tmp_path / "train" / name).touch()
    assert LocalOutput(tmp_path).our_files("train") == [".shard.00002.mds.tmp", "index.json", "shard.00001.mds"]
    assert LocalOutput(tmp_path).our_files("val") == []


def test_reading_what_is_not_there_gives_none(tmp_path: Path) -> None:
    assert LocalOutput(tmp_path).read("manifest.json") is None


def test_an_output_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(OutputError, match=r"cannot use .*out: File exists"):
        LocalOutput(tmp_path / "out").check()


def test_urls_choose_the_output() -> None:
    assert open_output("/data/mds") == LocalOutput(Path("/data/mds"))
    assert open_output("s3://bucket") == S3Output("bucket", "")
    assert open_output("s3://bucket/a/b/") == S3Output("bucket", "a/b")


@pytest.mark.parametrize("out", ["gs://bucket/x", "s3://", "s3:///prefix", "https://host/x"])
def test_other_urls_are_refused(out: str) -> None:
    with pytest.raises(ValueError, match="neither a local folder nor s3://"):
        open_output(out)
