"""On a disk files appear whole or not at all, and whatever goes wrong names the file."""

import errno
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from convert.journal import FOLDER, Record, is_as_written, receipt_of
from convert.lock import LOCK_NAME, _age_s
from convert.tally import ShardResult
from imagestream.storage.errors import PlaceError
from imagestream.storage.local import LocalPlace, final_name, temporary_name
from imagestream.storage.protocol import read_if_there
from imagestream.storage.reading import open_file


def test_a_written_file_leaves_no_temporary_one(tmp_path: Path) -> None:
    LocalPlace(tmp_path).write("train/shard.00000.mds", b"data")
    assert (tmp_path / "train/shard.00000.mds").read_bytes() == b"data"
    assert os.listdir(tmp_path / "train") == ["shard.00000.mds"]


def test_a_full_disk_leaves_nothing_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PlaceError, match=r"shard\.00000\.mds cannot be written: No space left on device; ") as error:
        LocalPlace(tmp_path).write("train/shard.00000.mds", b"data")
    assert pickle.loads(pickle.dumps(error.value)).is_full  # as it comes out of a worker process
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
    LocalPlace(tmp_path).write("index.json", b"data")
    assert seen == [[".index.json.tmp"], ["index.json"]]


def test_sizes_are_of_the_files_of_one_folder_sorted(tmp_path: Path) -> None:
    place = LocalPlace(tmp_path)
    for name in ("train/b", "train/a", "train/deeper/c", "d"):
        place.write(name, name.encode())
    assert list(place.sizes("train").items()) == [("a", 7), ("b", 7)]
    assert place.sizes("val") == place.sizes("d") == {}
    assert place.names("train") == ["a", "b", "deeper/"]
    assert place.names("val") == place.names("d") == []


def test_a_file_that_is_deleted_while_its_folder_is_listed_is_left_out_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a run that deletes its older checkpoints: the newest must not be missed for it."""
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(b"1")
    list_folder = os.scandir

    def deleting(path: Path) -> list[os.DirEntry[str]]:
        entries = list(list_folder(path))
        (tmp_path / "b").unlink(missing_ok=True)
        return entries

    monkeypatch.setattr(os, "scandir", deleting)
    assert LocalPlace(tmp_path).sizes() == {"a": 1, "c": 1}


def test_a_file_is_known_again_by_its_receipt(tmp_path: Path) -> None:
    place = LocalPlace(tmp_path)
    receipt = receipt_of(place.write("train/a", b"data"), b"data")
    record = Record(ShardResult("train", 0, images=1), "train/a", 4, receipt)
    assert is_as_written(place, record)
    for damaged in (b"dada", b"dat"):
        (tmp_path / "train/a").write_bytes(damaged)
        assert not is_as_written(place, record)
    place.delete(["train/a"])
    assert not is_as_written(place, record)


def test_of_two_who_create_a_file_one_succeeds(tmp_path: Path) -> None:
    place = LocalPlace(tmp_path)
    assert [place.create(LOCK_NAME, text) for text in (b"first", b"second")] == [True, False]
    assert place.read(LOCK_NAME) == b"first"
    age_s = _age_s(place)
    assert os.listdir(tmp_path / FOLDER) == ["lock"]
    assert age_s is not None and 0 <= age_s < 60
    place.delete([LOCK_NAME])
    assert _age_s(place) is None


def test_deleting_takes_empty_folders_along_and_no_others(tmp_path: Path) -> None:
    place = LocalPlace(tmp_path)
    for name in (".convert/train/1", ".convert/train/2", "train/a"):
        place.write(name, b"")
    place.delete([".convert/train/1", ".convert/train/gone"])
    assert (tmp_path / ".convert/train/2").exists()
    place.delete([".convert/train/2", "train/a"])
    assert sorted(path.name for path in tmp_path.iterdir()) == [".convert"]


def test_writers_of_one_name_at_one_moment_write_to_files_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, seen, sync = LocalPlace(tmp_path, several_writers=True), list[str](), os.fsync

    def other_writes_too(file: int) -> None:
        seen.extend(os.listdir(tmp_path))
        monkeypatch.setattr(os, "fsync", sync)
        place.write("index.json", b"other")

    monkeypatch.setattr(os, "fsync", other_writes_too)
    place.write("index.json", b"data")
    assert [final_name(name) for name in seen] == ["index.json"] != seen
    assert (os.listdir(tmp_path), place.read("index.json")) == (["index.json"], b"data")


def test_a_temporary_name_leads_back_to_the_final_one() -> None:
    assert final_name(temporary_name("shard.00000.mds")) == "shard.00000.mds" == final_name("shard.00000.mds")


def test_what_is_no_file_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "folder").mkdir()
    place, names = LocalPlace(tmp_path), ("file", "folder", "none", "file/none")
    assert [read_if_there(place, name) for name in names] == [b"content", None, None, None]
    assert [place.stat(name) is not None for name in names] == [True, False, False, False]
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "none")):
        place.read("none")


def test_parts_of_a_file_are_read_and_never_fewer_bytes_than_asked_for(tmp_path: Path) -> None:
    place = LocalPlace(tmp_path)
    place.write("x", b"0123456789")
    assert (place.read("x", 3), place.read("x", 3, 4), place.read("x", 3, 0)) == (b"3456789", b"3456", b"")
    with pytest.raises(PlaceError, match=r"/x cannot be read: it ends after 2 of 4 bytes"):
        place.read("x", 8, 4)
    with open_file(place, "x") as file:
        file.seek(-2, os.SEEK_END)
        assert file.read() == b"89"


CALLS: dict[str, Callable[[LocalPlace], object]] = {
    "names": lambda place: place.names("folder"),
    "sizes": lambda place: place.sizes("folder"),
    "stat": lambda place: place.stat("folder/x"),
    "read": lambda place: place.read("folder/x"),
    "write": lambda place: place.write("folder/x", b""),
    "create": lambda place: place.create("folder/x", b""),
    "rename": lambda place: place.rename("folder/x", "y"),
    "delete": lambda place: place.delete(["folder/x"]),
}


@pytest.mark.parametrize("call", CALLS)
def test_an_error_names_the_file_and_the_system_s_reason(tmp_path: Path, call: str) -> None:
    (tmp_path / "folder").symlink_to("folder")  # goes round in a circle
    with pytest.raises(PlaceError, match=rf"^{tmp_path}/folder(/x)? cannot be .*: Too many levels of symbolic links"):
        CALLS[call](LocalPlace(tmp_path))


def test_a_place_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(PlaceError, match=r"out is not writable: File exists"):
        LocalPlace(tmp_path / "out").check_writable()
