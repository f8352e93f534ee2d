"""Which place a location means, and what a place does when its disk does not take what it is given."""

from pathlib import Path

import pytest

from imagestream.data.downloads import Arrived, CheckedStream
from imagestream.storage.errors import PlaceError
from imagestream.storage.local import LocalPlace
from imagestream.storage.places import folder_and_name, open_place
from imagestream.storage.s3 import S3Place
from tests.s3_server import S3Server
from tests.small_disk import needs_small_disk, small_disk


@needs_small_disk
def test_a_file_that_does_not_fit_is_refused_with_its_size_and_leaves_nothing(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", size_bytes=1 << 20) as disk:
        folder, source = LocalPlace(disk.path / "run"), tmp_path / "run.json"
        folder.write("run.json", b"old")
        source.write_bytes(bytes(2 << 20))
        expected = (
            r"run/run\.json cannot be written: No space left on device; [\d,]+ bytes are free in .*, 2,097,152 are"
        )
        with pytest.raises(PlaceError, match=expected):
            folder.put("run.json", source)
        disk.fill()
        for change in (folder.create, folder.write):
            with pytest.raises(PlaceError, match=r"No space left on device; 0 bytes are free in .*, 5,000 are needed"):
                change("owner.json", bytes(5000))
        assert (folder.names(), folder.read("run.json")) == (["run.json"], b"old")


@pytest.mark.s3
@pytest.mark.parametrize("name", ["exp#1", "exp #1", "what?", "a%23b", "a;b=c", "ü&+"])
def test_a_bucket_s_places_are_literal_to_the_last_character(s3_folder: str, tmp_path: Path, name: str) -> None:
    """Trainer, downloads and converter take the same key for one name, and no other."""
    place, plain = f"{s3_folder}/{name}", f"{s3_folder}/{name[:-2]}"
    folder, source = open_place(place), tmp_path / "x.bin"
    folder.write("x.bin", b"mine")
    assert open_place(plain).names() == []
    assert (folder.names(), folder.sizes(), open_place(f"{place}/").read("x.bin")) == (["x.bin"], {"x.bin": 4}, b"mine")
    stream = CheckedStream(
        remote=place, local=str(tmp_path), patience_s=1.0, hash_found=True, empty_cache=False, download_timeout=5.0
    )
    stream._fetch_once(f"{place}/x.bin", source, 4, Arrived(), limit_s=5.0)
    assert source.read_bytes() == b"mine"


def test_a_location_chooses_the_place() -> None:
    assert open_place("/data/mds") == LocalPlace(Path("/data/mds"))
    assert open_place("s3://bucket") == S3Place("bucket", "")
    assert open_place("s3://bucket/a/b/") == S3Place("bucket", "a/b")


@pytest.mark.parametrize("place", ["gs://bucket/x", "s3:///x", "https://bucket/x", "s3://"])
def test_a_place_that_is_neither_a_folder_nor_in_s3_is_refused(place: str) -> None:
    with pytest.raises(PlaceError, match="is neither a local folder nor s3://bucket/prefix"):
        open_place(place)


def test_a_file_at_the_root_is_looked_for_there() -> None:
    places = ("/x.pt", "x.pt", "runs/a/x.pt", "s3://bucket/x.pt")
    found = [folder_and_name(place) for place in places]
    assert found == [("/", "x.pt"), (".", "x.pt"), ("runs/a", "x.pt"), ("s3://bucket", "x.pt")]


def test_a_browser_is_told_what_a_page_in_a_bucket_is(s3_folder: str, s3_server: S3Server, tmp_path: Path) -> None:
    place, prefix = open_place(s3_folder), s3_folder.removeprefix(f"s3://{s3_server.bucket}/")
    (tmp_path / "page").write_text("<!doctype html>")
    place.put("report.html", tmp_path / "page")
    place.write("run.json", b"{}")
    place.write("shard.00000.mds", b"x")
    kinds = {}
    for name in ("report.html", "run.json", "shard.00000.mds"):
        head = s3_server.client.head_object(Bucket=s3_server.bucket, Key=f"{prefix}/{name}")
        kinds[name] = head["ContentType"]
    assert kinds["report.html"] == "text/html; charset=utf-8" and kinds["run.json"] == "application/json"
    assert "html" not in kinds["shard.00000.mds"]
