"""Files appear whole or not at all, and only our own are ever listed."""

import errno
import os
from pathlib import Path

import pytest

from imagestream.storage.errors import OutputError
from imagestream.storage.outputs import LocalOutput, final_name, open_output, temporary_name
from imagestream.storage.s3 import S3Output


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

    def listing(file: int) -> None:
        seen.append(os.listdir(tmp_path))
        sync(file)

    monkeypatch.setattr(os, "fsync", listing)
    LocalOutput(tmp_path).write("index.json", b"data")
    assert seen == [[".index.json.tmp"], ["index.json"]]


def test_sizes_are_of_the_files_of_one_folder_sorted(tmp_path: Path) -> None:
    output = LocalOutput(tmp_path)
    for name in ("train/b", "train/a", "train/deeper/c", "d"):
        output.write(name, name.encode())
    assert list(output.sizes("train").items()) == [("a", 7), ("b", 7)]
    assert output.sizes("val") == {}


def test_a_file_is_known_again_by_its_receipt(tmp_path: Path) -> None:
    output = LocalOutput(tmp_path)
    receipt = output.write("train/a", b"data")
    assert output.holds("train/a", 4, receipt)
    (tmp_path / "train/a").write_bytes(b"dada")
    assert not output.holds("train/a", 4, receipt)
    (tmp_path / "train/a").write_bytes(b"dat")
    assert not output.holds("train/a", 4, receipt)
    assert not output.holds("train/gone", 4, receipt)


def test_of_two_who_create_a_file_one_succeeds(tmp_path: Path) -> None:
    output = LocalOutput(tmp_path)
    assert [output.create(".convert/lock", text) for text in (b"first", b"second")] == [True, False]
    assert output.read(".convert/lock") == b"first"
    (tmp_path / ".convert/.lock.1.clock").touch()  # of a process that was killed while it looked
    age_s = output.age_s(".convert/lock")
    assert os.listdir(tmp_path / ".convert") == ["lock"]
    assert age_s is not None and 0 <= age_s < 60
    assert output.age_s(".convert/gone") is None


def test_deleting_takes_empty_folders_along_and_no_others(tmp_path: Path) -> None:
    output = LocalOutput(tmp_path)
    for name in (".convert/train/1", ".convert/train/2", "train/a"):
        output.write(name, b"")
    output.delete([".convert/train/1", ".convert/train/gone"])
    assert (tmp_path / ".convert/train/2").exists()
    output.delete([".convert/train/2", "train/a"])
    assert sorted(path.name for path in tmp_path.iterdir()) == [".convert"]


def test_a_temporary_name_leads_back_to_the_final_one() -> None:
    assert final_name(temporary_name("shard.00000.mds")) == "shard.00000.mds" == final_name("shard.00000.mds")


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
