"""The same images give the same shards in every layout; and what MosaicML's converter makes, we can use."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import layouts, processes
from tests.integration.converter import ROOT, convert, listing, read_samples, run, save_source, tree
from tests.s3_server import S3Server

WRITERS: dict[str, Callable[[Path, Path], Any]] = {
    "tars": layouts.write_tars,
    "kaggle": layouts.write_kaggle,
    "annotated": layouts.write_annotated,
    "parquet": layouts.write_parquet,
    "webdataset": layouts.write_webdataset,
}
# Of the 1,000, whose readable names come from the table and not, as a layout may have them, from the source.
WNIDS = {"n01": "n01440764", "n02": "n01443537", "n03": "n02102040", "n10": "n03000684"}


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """Images under wnids as class names, and the dataset that they give out of class folders."""
    folder = tmp_path_factory.mktemp("imagenet")
    source = save_source(folder / "source")
    for images in sorted(source.glob("*/*")):
        images.rename(images.with_name(WNIDS[images.name]))
    convert(source, folder / "expected")
    return source, tree(folder / "expected")


@pytest.mark.parametrize("layout", list(WRITERS))
def test_every_layout_gives_identical_shards(
    imagenet: tuple[Path, dict[str, bytes]], tmp_path: Path, layout: str
) -> None:
    folder, expected = imagenet
    WRITERS[layout](folder, tmp_path / layout)
    for workers in (1, 2):
        convert(tmp_path / layout, tmp_path / f"out{workers}", "--workers", workers)
        made = tree(tmp_path / f"out{workers}")
        assert sorted(made) == sorted(expected)
        assert [name for name in expected if made[name] != expected[name]] == []


@pytest.mark.parametrize("compression", [[], ["--compression", "zstd"]])
def test_shards_of_shards_are_identical(
    imagenet: tuple[Path, dict[str, bytes]], tmp_path: Path, compression: list[str]
) -> None:
    folder, expected = imagenet
    convert(folder, tmp_path / "other", "--seed", 9, "--size-limit", "50kb", *compression)
    convert(tmp_path / "other", tmp_path / "out")
    made = tree(tmp_path / "out")
    other_names = ("manifest.json", "files.parquet")  # which know that the files had other names
    assert {n: d for n, d in made.items() if n not in other_names} == {
        n: d for n, d in expected.items() if n not in other_names
    }


@pytest.mark.s3
@pytest.mark.parametrize("layout", ["tars", "parquet", "webdataset"])
def test_layouts_in_a_bucket_give_identical_shards(
    imagenet: tuple[Path, dict[str, bytes]], tmp_path: Path, s3_server: S3Server, layout: str
) -> None:
    folder, expected = imagenet
    WRITERS[layout](folder, tmp_path / layout)
    for path in (tmp_path / layout).rglob("*"):
        if path.is_file():
            key = f"{tmp_path.name}/{path.relative_to(tmp_path / layout)}"
            s3_server.client.put_object(Bucket=s3_server.bucket, Key=key, Body=path.read_bytes())
    bucket = f"s3://{s3_server.bucket}/{tmp_path.name}"
    convert(bucket, tmp_path / "out", env=s3_server.env)  # type: ignore[arg-type]  # a URL
    assert tree(tmp_path / "out") == expected
    if layout == "webdataset":
        pattern = f"{bucket}/imagenet-{{train,val}}-{{000000..000001}}.tar"
        convert(pattern, tmp_path / "named", env=s3_server.env)  # type: ignore[arg-type]
        assert tree(tmp_path / "named") == expected


def test_what_mosaicmls_converter_makes_is_audited_and_converted(source: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    argv = ["--in_root", str(source), "--out_root", str(theirs), "--progress_bar", "0"]
    code, output = processes.run(argv, tmp_path / "log", program="tests.upstream_convert")
    assert code == 0, output
    audit = subprocess.run([sys.executable, "convert/audit.py", theirs], cwd=ROOT, capture_output=True, text=True)
    assert audit.returncode == 0, audit.stdout + audit.stderr
    convert(theirs, tmp_path / "ours")
    stored = sorted(read_samples(tmp_path / "ours"))
    expected = [(n, path.read_bytes(), n // 10) for n, path in enumerate(listing(source))]
    assert stored == expected


def test_a_layout_that_does_not_fit_says_what_is_missing(source: Path, tmp_path: Path) -> None:
    done = run("--source", source, "--out", tmp_path / "out", "--layout", "kaggle")
    assert done.returncode == 2
    assert "LOC_synset_mapping.txt" in done.stderr


def test_optional_names_that_cannot_be_read_are_a_warning_before_the_work_begins(tmp_path: Path) -> None:
    source = layouts.write_annotated(layouts.write_folder(tmp_path / "images"), tmp_path / "annotated")
    (source / "words.txt").write_bytes("n01440764\ttanche dor\u00e9e\n".encode("latin-1"))
    said = convert(source, tmp_path / "out")
    warning = said.index("warning: the classes have no readable names: ")
    assert "words.txt:1 is not text in UTF-8 (byte 0xe9)" in said and warning < said.index("shards with 1 worker")
    assert (tmp_path / "out/train/index.json").exists()
