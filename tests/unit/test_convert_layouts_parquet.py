"""Parquet files are unpacked once, whole or not at all; labels get their meaning from names and paths."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from convert.imagenet_classes import WNIDS, readable_name
from convert.sources import SourceError, open_source
from tests.layouts import classes, images, put, write_folder, write_parquet, write_parquet_file
from tests.unit.test_convert_layouts import contents

IMAGE = {"bytes": b"jpeg", "path": "a.jpg"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "folder")


def parquet(tmp_path: Path, rows: list[tuple[Any, Any]], names: list[str] | None = None) -> Any:
    """The source of one file of rows."""
    write_parquet_file(tmp_path / "p/data/train-00000-of-00001.parquet", rows, names=names)
    return open_source(str(tmp_path / "p"), spool=tmp_path / "spool")


def keys(source: Any, split: str = "train") -> list[tuple[str, int]]:
    return [(s.key, s.label) for s in source.listing(split, source.class_names([split])).samples]


def test_names_that_are_wnids_need_no_paths(folder: Path, tmp_path: Path) -> None:
    write_parquet(folder, tmp_path / "p", names=classes(folder), wnid_in_path=False)
    source = open_source(str(tmp_path / "p"), spool=tmp_path / "spool")
    assert contents(source, "val") == contents(open_source(str(folder)), "val")
    assert source.readable_names() == {}


def test_labels_that_are_not_in_the_order_of_the_wnids_are_put_in_order(tmp_path: Path) -> None:
    source = parquet(tmp_path, [(IMAGE, 0), ({**IMAGE, "path": "b.jpg"}, 1)], ["n02", "n01"])
    assert source.class_names(["train"]) == ["n01", "n02"]
    assert keys(source) == [("train/n01/b.jpg", 0), ("train/n02/a.jpg", 1)]


def test_a_thousand_readable_names_are_imagenets(tmp_path: Path) -> None:
    names = [str(readable_name(wnid)).replace(" ", "_") for wnid in WNIDS]
    names[134], names[517] = "crane bird", "crane machine"  # which ImageNet calls the same
    source = parquet(tmp_path, [(IMAGE, 999), ({**IMAGE, "path": None}, 0)], names)
    assert source.class_names(["train"]) == list(WNIDS)
    assert keys(source) == [("train/n01440764/train-00000-of-00001-000001.jpg", 0), ("train/n15075141/a.jpg", 999)]
    assert source.readable_names()["n02012849"] == "crane bird"


def test_other_names_are_the_classes_themselves(tmp_path: Path) -> None:
    source = parquet(tmp_path, [(IMAGE, 0), (IMAGE, 1)], ["zebra", "cat/dog"])
    assert keys(source) == [("train/cat_dog/a.jpg", 0), ("train/zebra/a.jpg", 1)]


def test_labels_without_names_are_numbered_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = parquet(tmp_path, [(IMAGE, 2), (IMAGE, 0)])
    assert source.class_names(["train"]) == ["class0000", "class0001", "class0002"]
    assert "names no classes; they are called class0000" in caplog.text
    assert keys(source) == [("train/class0000/a.jpg", 0), ("train/class0002/a.jpg", 2)]


def test_more_than_ten_thousand_classes_without_names_keep_their_labels(tmp_path: Path) -> None:
    source = parquet(tmp_path, [(IMAGE, 10_001), (IMAGE, 1_001), (IMAGE, 1_000)])
    assert [label for _, label in keys(source)] == [1_000, 1_001, 10_001]
    assert source.class_names(["train"])[1_001] == "class01001"


def test_a_damaged_label_does_not_make_a_million_classes(tmp_path: Path) -> None:
    with pytest.raises(
        SourceError, match="largest label is 1,152,921,504,606,846,976; without names the largest allowed is 99,999"
    ):
        keys(parquet(tmp_path, [(IMAGE, 2**60)]))


def test_paths_that_repeat_within_a_class_are_told_apart_by_row(tmp_path: Path) -> None:
    source = parquet(tmp_path, [(IMAGE, 0), ({**IMAGE, "path": "b.jpg"}, 0), (IMAGE, 0)], ["n01"])
    names = [key.rpartition("/")[2] for key, _ in keys(source)]
    assert names == ["b.jpg", "train-00000-of-00001-000000.jpg", "train-00000-of-00001-000002.jpg"]


@pytest.mark.parametrize(
    ("rows", "names", "message"),
    [
        (
            [({"bytes": None, "path": "/data/1.jpg"}, 0)],
            ["a"],
            r"row 0 holds no image but the path /data/1.*embed",
        ),
        ([(IMAGE, 0), (None, 0)], ["a"], "row 1 holds no image but nothing"),
        ([(IMAGE, None)], ["a"], "row 0 has no label"),
        ([(IMAGE, 3)], ["a", "b"], "row 0 has the label 3; it must be 0 to 1, as there are 2 classes$"),
        ([(IMAGE, -1)], ["a"], "row 0 has the label -1.*test images are not public"),
        ([], ["a"], "hold no rows"),
        ([(IMAGE, 0)], ["a", "a"], "two labels have the same class name: a"),
    ],
)
def test_rows_that_cannot_be_used_are_named(
    rows: list[tuple[Any, Any]], names: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(SourceError, match=message):
        keys(parquet(tmp_path, rows, names))
    assert not [name for name in os.listdir(tmp_path / "spool") if name.endswith(".tmp")]


def test_a_label_with_two_wnids_is_refused(tmp_path: Path) -> None:
    rows = [({**IMAGE, "path": "1_n01440764.JPEG"}, 0), ({**IMAGE, "path": "2_n01443537.JPEG"}, 0)]
    with pytest.raises(SourceError, match=r"label 0 is n01443537 by the path 2_n01443537.JPEG, and n01440764 by"):
        keys(parquet(tmp_path, rows, ["tench", "goldfish"]))


def test_other_columns_are_named(tmp_path: Path) -> None:
    put(tmp_path / "p/train.parquet", b"")
    pq.write_table(pa.table({"scan": [b"1"], "label": [0]}), tmp_path / "p/train.parquet")
    with pytest.raises(SourceError, match="has the columns scan: binary, label: int64; needed are the encoded image, "):
        keys(open_source(str(tmp_path / "p"), spool=tmp_path / "spool"))


def test_a_missing_file_is_named(folder: Path, tmp_path: Path) -> None:
    write_parquet(folder, tmp_path / "p", files=3)
    (tmp_path / "p/data/train-00001-of-00003.parquet").unlink()
    with pytest.raises(
        SourceError, match=r"holds 2 parquet files of train where there should be 3; missing: .*-00001-"
    ):
        keys(open_source(str(tmp_path / "p"), spool=tmp_path / "spool"))


@pytest.mark.parametrize("damage", ["cut", "page", "empty"])
def test_a_damaged_file_is_named(damage: str, folder: Path, tmp_path: Path) -> None:
    path = write_parquet(folder, tmp_path / "p") / "data/train-00001-of-00002.parquet"
    data = bytearray(path.read_bytes())
    data[500] ^= 1  # in the first page of images
    damaged: dict[str, bytes] = {"cut": bytes(data[: len(data) // 2]), "page": bytes(data), "empty": b""}
    path.write_bytes(damaged[damage])
    with pytest.raises(SourceError, match=r"train-00001-of-00002\.parquet is damaged or no parquet file"):
        keys(open_source(str(tmp_path / "p"), spool=tmp_path / "spool"))


def test_without_a_spool_it_says_what_is_needed(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="images in parquet files cannot be read in place; name a local folder"):
        open_source(str(write_parquet(folder, tmp_path / "p")))


def test_a_second_run_uses_what_is_unpacked(folder: Path, tmp_path: Path) -> None:
    write_parquet(folder, tmp_path / "p")
    first = contents(open_source(str(tmp_path / "p"), spool=tmp_path / "spool"), "train")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "spool").iterdir()}
    assert len(before) == 4
    assert contents(open_source(str(tmp_path / "p"), spool=tmp_path / "spool"), "train") == first
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "spool").iterdir()} == before


def test_two_sources_with_one_spool_keep_their_own_images(tmp_path: Path) -> None:
    for name, byte in (("a", b"1"), ("b", b"2")):
        rows = [({"bytes": byte * 9, "path": "a.jpg"}, 0)]
        write_parquet_file(tmp_path / name / "data/train-00000-of-00001.parquet", rows, names=None)
    sources = [open_source(str(tmp_path / name), spool=tmp_path / "spool") for name in "ab"]
    samples = [source.listing("train", source.class_names(["train"])).samples[0] for source in sources]
    read = [
        source.files.read(one.file, one.offset_bytes or 0, one.size_bytes)
        for source, one in zip(sources, samples, strict=True)
    ]
    assert read == [b"1" * 9, b"2" * 9]


@pytest.mark.parametrize("spoilt", ["images", "json", "sidecar"])
def test_what_is_not_whole_is_unpacked_anew(spoilt: str, folder: Path, tmp_path: Path) -> None:
    write_parquet(folder, tmp_path / "p")
    first = contents(open_source(str(tmp_path / "p"), spool=tmp_path / "spool"), "train")
    (stem,) = (path.with_suffix("") for path in (tmp_path / "spool").glob("data-train-00001-of-00002.*.json"))
    if spoilt == "images":
        os.truncate(Path(f"{stem}.images"), 1000)
    elif spoilt == "json":
        Path(f"{stem}.json").write_text("{")
    else:
        sidecar = json.loads(Path(f"{stem}.json").read_text())
        Path(f"{stem}.json").write_text(json.dumps({**sidecar, "labels": sidecar["labels"][1:]}))
    assert contents(open_source(str(tmp_path / "p"), spool=tmp_path / "spool"), "train") == first


def test_a_changed_parquet_file_of_the_same_size_is_unpacked_anew(tmp_path: Path) -> None:
    assert contents(parquet(tmp_path, [(IMAGE, 0)], ["a"]), "train")[0][2] == b"jpeg"
    path = tmp_path / "p/data/train-00000-of-00001.parquet"
    size_bytes = path.stat().st_size
    source = parquet(tmp_path, [({**IMAGE, "bytes": b"JPEG"}, 0)], ["a"])
    assert path.stat().st_size == size_bytes
    assert contents(source, "train")[0][2] == b"JPEG"


def test_names_that_differ_between_files_are_refused(folder: Path, tmp_path: Path) -> None:
    write_parquet(folder, tmp_path / "p")
    rows = [({"bytes": path.read_bytes(), "path": path.name}, 0) for _, path in images(folder, "train")]
    write_parquet_file(tmp_path / "p/data/train-00001-of-00002.parquet", rows, names=["x", "y", "z", "w"])
    with pytest.raises(SourceError, match=r"train-00001-of-00002\.parquet gives its labels other names"):
        keys(open_source(str(tmp_path / "p"), spool=tmp_path / "spool"))


def test_a_full_disk_says_how_much_room_is_needed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    source = open_source(str(write_parquet(folder, tmp_path / "p")), spool=tmp_path / "spool")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SourceError, match=r"cannot write to --spool .*: No space left on device.*about 150 GB"):
        keys(source)
    assert list((tmp_path / "spool").iterdir()) == []


def write_table(path: Path, image: str, label: str, images: pa.Array, labels: list[int], names: list[str]) -> None:
    features = {image: {"_type": "Image"}, label: {"names": names, "_type": "ClassLabel"}}
    schema = pa.schema(
        [(image, images.type), (label, pa.int64()), ("coarse_label", pa.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    table = pa.table({image: images, label: labels, "coarse_label": [0] * len(labels)}, schema=schema)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.mark.parametrize(
    ("image", "label", "kind"),
    [("img", "fine_label", STRUCT), ("image", "labels", pa.struct([("bytes", pa.binary())])),
     ("pixel_values", "target", pa.binary()), ("jpg", "cls", pa.large_binary()), ("picture", "label", STRUCT)],
)  # fmt: skip
def test_columns_may_have_other_usual_names(tmp_path: Path, image: str, label: str, kind: Any) -> None:
    def cell(data: bytes) -> Any:
        return {"bytes": data} if pa.types.is_struct(kind) else data

    images = pa.array([cell(b"one"), cell(b"two"), cell(b"three")], type=kind)
    write_table(tmp_path / "p/data/train-00000-of-00001.parquet", image, label, images, [1, 0, 1], ["zebra", "ant"])
    source = open_source(str(tmp_path / "p"), spool=tmp_path / "spool")
    assert source.class_names(["train"]) == ["ant", "zebra"]
    found = contents(source, "train")
    assert [(label, data) for _, label, data in found] == [(0, b"one"), (0, b"three"), (1, b"two")]


@pytest.mark.parametrize("theirs", ["test", "validation", "valid", "val"])
def test_the_split_for_validation_has_several_names_and_test_is_the_last_choice(tmp_path: Path, theirs: str) -> None:
    for name in ("train", theirs, *(["test"] if theirs != "test" else [])):
        data = pa.array([{"bytes": name.encode(), "path": None}], type=STRUCT)
        write_table(tmp_path / f"p/data/{name}-00000-of-00001.parquet", "image", "label", data, [0], ["ant"])
    source = open_source(str(tmp_path / "p"), spool=tmp_path / "spool")
    assert source.splits(None) == ["train", "val"]
    assert [data for *_, data in contents(source, "val", ["ant"])] == [theirs.encode()]
    assert source.left_out(["train", "val"]) == ([] if theirs == "test" else ["data/test-00000-of-00001.parquet"])
    assert source.splits(["train", "test"]) == ["train", "test"]


def test_columns_that_hold_something_else_are_passed_over_and_shown(tmp_path: Path) -> None:
    table = pa.table({"image": ["a.jpg"], "img": [3], "label": ["cat"]})
    (tmp_path / "p/data").mkdir(parents=True)
    pq.write_table(table, tmp_path / "p/data/train-00000-of-00001.parquet")
    words = r"has the columns image: string, img: int64, label: string; needed are the encoded image, bytes or a struct"
    with pytest.raises(SourceError, match=words):
        open_source(str(tmp_path / "p"), spool=tmp_path / "spool").class_names(["train"])
