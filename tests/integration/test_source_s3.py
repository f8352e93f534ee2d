"""The layouts that can be read from a bucket list the same samples there as on a disk, from a real S3 server."""

import tarfile
from collections.abc import Callable
from pathlib import Path

import boto3
import pytest

from convert.sources import SourceError, open_source
from convert.sources.base import size_of
from imagestream.storage.reading import open_file
from imagestream.storage.s3 import S3Place
from tests.integration.test_s3 import upload
from tests.layouts import write_folder, write_parquet, write_tars, write_webdataset
from tests.s3_server import S3Server
from tests.unit.test_convert_layouts import contents

pytestmark = [pytest.mark.s3, pytest.mark.slow]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "folder")


@pytest.mark.parametrize("write", [write_tars, write_parquet, write_webdataset])
def test_a_layout_in_a_bucket_lists_the_samples_of_the_image_folder(
    write: Callable[[Path, Path], Path], folder: Path, s3_folder: str, tmp_path: Path
) -> None:
    upload(write(folder, tmp_path / "layout"), s3_folder)
    source = open_source(s3_folder, spool=tmp_path / "spool")
    assert source.splits(None) == ["train", "val"]
    for split in ("train", "val"):
        assert contents(source, split) == contents(open_source(str(folder)), split)


def test_shards_in_a_bucket_are_unpacked_and_read(shards: Path, s3_folder: str, tmp_path: Path) -> None:
    upload(shards, s3_folder)
    there, here = open_source(s3_folder, spool=tmp_path / "spool"), open_source(str(shards))
    assert there.class_names(["train"]) == here.class_names(["train"])
    for split in ("train", "val"):
        assert contents(there, split) == contents(here, split)
    assert len(contents(here, "train")) == 100


def test_a_folder_of_class_tars_in_a_bucket(folder: Path, s3_folder: str, tmp_path: Path) -> None:
    with tarfile.open(write_tars(folder, tmp_path / "tars") / "ILSVRC2012_img_train.tar") as outer:
        outer.extractall(tmp_path / "split/train", filter="data")
    upload(tmp_path / "split", s3_folder)
    assert contents(open_source(s3_folder), "train") == contents(open_source(str(folder)), "train")


def test_a_tar_in_a_bucket_that_is_cut_off_is_refused(folder: Path, s3_folder: str, tmp_path: Path) -> None:
    tars = write_tars(folder, tmp_path / "tars")
    whole = (tars / "ILSVRC2012_img_train.tar").read_bytes()
    (tars / "ILSVRC2012_img_train.tar").write_bytes(whole[: len(whole) // 2])
    upload(tars, s3_folder)
    with pytest.raises(SourceError, match=f"{s3_folder}/ILSVRC2012_img_train.tar is incomplete"):
        contents(open_source(s3_folder), "train")


def test_an_image_folder_in_a_bucket_is_refused_with_what_to_do(folder: Path, s3_folder: str) -> None:
    upload(folder, s3_folder)
    with pytest.raises(SourceError, match=r"--layout folder needs a local folder.*aws s3 sync"):
        open_source(s3_folder)


def test_an_empty_prefix_is_described(s3_folder: str) -> None:
    with pytest.raises(SourceError, match="holds nothing, which is none of the layouts"):
        open_source(s3_folder)


def test_a_bucket_that_does_not_exist_is_named(s3_folder: str) -> None:
    with pytest.raises(SourceError, match=r"cannot be read: s3://no-such-bucket.*Create the bucket first"):
        open_source("s3://no-such-bucket/x")


def test_parts_of_a_file_are_read_and_no_more(s3_folder: str, s3_server: S3Server) -> None:
    bucket, _, prefix = s3_folder.removeprefix("s3://").partition("/")
    data = bytes(range(256)) * 1000
    boto3.client("s3", endpoint_url=s3_server.endpoint_url).put_object(Bucket=bucket, Key=f"{prefix}/a/x", Body=data)
    files = S3Place(bucket, prefix)
    assert files.names() == ["a/"]
    assert files.names("a") == ["x"]
    assert (size_of(files, "a/x"), files.stat("a/y")) == (256_000, None)
    assert files.read("a/x", 1000, 10) == data[1000:1010]
    assert files.read("a/x", 255_990) == data[255_990:]
    assert files.read("a/x", 5, 0) == b""
    with pytest.raises(OSError, match="it ends after 10 of 20 bytes"):
        files.read("a/x", 255_990, 20)
    with open_file(files, "a/x") as file:
        file.seek(-6, 2)
        assert file.read() == data[-6:]
        file.seek(1000)
        assert file.read(100_000) == data[1000:101_000]
