"""A folder on a disk and a prefix of a bucket do the same, call by call: its users need not know which one it is."""

import time
from pathlib import Path

import pytest

from imagestream.storage.errors import PlaceError
from imagestream.storage.places import open_place
from imagestream.storage.protocol import Place, read_if_there
from imagestream.storage.reading import open_file


@pytest.fixture(params=["disk", pytest.param("s3", marks=pytest.mark.s3)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return open_place(str(tmp_path / "run") if request.param == "disk" else request.getfixturevalue("s3_folder"))


def test_what_is_written_is_listed_read_in_whole_and_in_part_and_known_by_its_size(place: Place) -> None:
    assert (place.names(), place.sizes(), place.stat("x"), read_if_there(place, "x")) == ([], {}, None, None)
    for name in ("b", "a/y", "a/x", "a/deeper/z"):
        stored = place.write(name, f"content of {name}".encode())
        assert place.stat(name) == stored and stored.size_bytes == 11 + len(name)
    assert (place.names(), place.sizes()) == (["a/", "b"], {"b": 12})
    assert place.names("a") == place.names("a/") == ["deeper/", "x", "y"]
    assert list(place.sizes("a").items()) == [("x", 14), ("y", 14)]
    assert (place.read("b"), place.read("b", 8), place.read("b", 8, 2)) == (b"content of b", b"of b", b"of")
    assert (place.stat("a"), read_if_there(place, "a"), place.sizes("b")) == (None, None, {})
    with pytest.raises(PlaceError, match=rf"^{place}/b cannot be read: it ends after 1 of 2 bytes"):
        place.read("b", 11, 2)
    with pytest.raises(FileNotFoundError, match=f"{place}/gone"):
        place.read("gone")


def test_another_file_of_the_name_is_not_read_for_the_one_that_was_seen(place: Place) -> None:
    place.write("x", b"12345")
    seen = place.stat("x")
    assert place.read("x", 1, 2, seen=seen) == b"23" and place.read("x", seen=seen) == b"12345"
    time.sleep(0.02)  # a disk's clock has ticks
    place.write("x", b"54321")
    for part in ((1, 2), (0, None)):
        with pytest.raises(PlaceError, match=rf"^{place}/x has changed since it was listed; give the command again"):
            place.read("x", *part, seen=seen)
    assert place.read("x", 1, 2, seen=place.stat("x")) == b"43"


def test_a_file_is_open_at_any_place_in_it(place: Place) -> None:
    place.write("x", bytes(range(256)) * 1000)
    with open_file(place, "x") as file:
        file.seek(-6, 2)
        assert file.read() == bytes(range(250, 256))
        file.seek(256)
        assert file.read(100_000) == (bytes(range(256)) * 391)[:100_000]
    with pytest.raises(FileNotFoundError):
        open_file(place, "gone")


def test_a_file_is_moved_there_checked_at_the_last_moment_and_fetched(place: Place, tmp_path: Path) -> None:
    source, checks = tmp_path / "source", list[bytes | None]()
    for content in (b"old", b"new"):
        source.write_bytes(content)
        place.put("file", source, check=lambda: checks.append(read_if_there(place, "file")))
        assert not source.exists()
    assert checks == [None, b"old"]
    assert place.get("file", tmp_path) == (place.path / "file" if place.path else tmp_path / "file")


def test_a_check_prevents_a_file(place: Place, tmp_path: Path) -> None:
    def refuse() -> None:
        raise PlaceError("not any more")

    source = tmp_path / "source"
    source.write_bytes(b"new")
    with pytest.raises(PlaceError, match=r"^not any more$"):
        place.put("file", source, check=refuse)
    assert place.names() == []


def test_files_are_created_once_renamed_and_deleted_in_silence_where_they_are_gone(place: Place) -> None:
    assert [place.create("a/x", content) for content in (b"first", b"second")] == [True, False]
    place.rename("a/x", "a/y")
    assert (place.names("a"), place.read("a/y")) == (["y"], b"first")
    place.write("b", b"")
    place.delete(["a/y", "a/gone", "b"])
    place.delete(["b"])
    place.delete([])
    assert place.sizes() == place.sizes("a") == {}
    with pytest.raises(PlaceError, match=rf"^{place}/gone cannot be renamed"):
        place.rename("gone", "new")


def test_it_is_known_whether_it_can_be_written(place: Place) -> None:
    place.check_writable()
    assert place.names() == []
