"""WebDataset tars are read in place; a sample that is not whole is named, and class tars are never taken for them."""

import gzip
import io
import json
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from convert import conversion
from convert.audit import main as audit
from convert.imagenet_classes import WNIDS, readable_name
from convert.imagenet_to_mds import main
from convert.sources import Source, SourceError, open_source
from tests.layouts import add, classes, put, write_folder, write_tar, write_tars, write_webdataset
from tests.unit.test_convert_layouts import contents

Samples = list[dict[str, bytes]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "folder")


def webdataset(tmp_path: Path, *tars: Samples, names: str = "") -> Source:
    for index, samples in enumerate(tars):
        write_tar(tmp_path / f"w/train-{index:04}.tar", samples)
    if names:
        put(tmp_path / "w/classnames.txt", names.encode())
    return open_source(str(tmp_path / "w"))


def keys(source: Source, split: str = "train") -> list[tuple[str, int]]:
    return [(s.key, s.label) for s in source.listing(split, source.class_names([split])).samples]


@pytest.mark.parametrize("label", ["cls", "json", "both"])
@pytest.mark.parametrize("name", ["{split}_{index}.tar", "{split}/{index:05}.tar", "a1k-{split}-{index:03}-of-002.tar"])
def test_labels_and_tars_lie_where_webdatasets_have_them(folder: Path, tmp_path: Path, label: str, name: str) -> None:
    source = open_source(str(write_webdataset(folder, tmp_path / "w", label=label, name=name)))
    assert (source.layout, source.splits(None)) == ("webdataset", ["train", "val"])
    for split in ("train", "val"):
        assert contents(source, split) == contents(open_source(str(folder)), split)
    assert source.left_out(["train", "val"]) == []


@pytest.mark.slow
def test_a_tar_that_is_written_anew_after_it_was_listed_ends_the_conversion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Images of one size in another order: each would be read whole, and have another's label."""
    samples = [{f"{n}.jpg": solid(n), f"{n}.cls": str(n).encode()} for n in range(6)]
    tar = tmp_path / "w/train-0000.tar"
    write_tar(tar, samples)
    monkeypatch.setattr(conversion, "begin", rewriting(conversion.begin, lambda: write_tar(tar, samples[::-1])))
    argv = ["--source", str(tmp_path / "w"), "--out", str(tmp_path / "out"), "--workers", "1", "--splits", "train"]
    assert main(argv) == 1
    assert "train-0000.tar has changed since it was listed; give the command again" in capsys.readouterr().err
    monkeypatch.undo()
    assert main(argv) == 0 and audit([str(tmp_path / "out")]) == 0


def solid(number: int) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (16, 16), (40 * number,) * 3).save(data, "BMP")
    return data.getvalue()


def rewriting(begin: Callable[..., None], rewrite: Callable[[], None]) -> Callable[..., None]:
    def begun(*args: Any) -> None:
        time.sleep(0.02)  # a disk's clock has ticks
        rewrite()
        begin(*args)

    return begun


@pytest.mark.parametrize("theirs", ["validation", "valid"])
def test_splits_go_by_their_usual_names(folder: Path, tmp_path: Path, theirs: str) -> None:
    root = write_webdataset(folder, tmp_path / "w", tars=1)
    (root / "imagenet-val-000000.tar").rename(root / f"imagenet-{theirs}-00.tar")
    write_tar(root / "imagenet-test-00.tar", [{"1.jpg": b"1"}])
    source = open_source(str(root))
    assert source.splits(None) == ["train", "val"]
    assert contents(source, "val") == contents(open_source(str(folder)), "val")
    assert source.left_out(["train", "val"]) == ["imagenet-test-00.tar"]


def test_class_tars_are_not_taken_for_webdatasets(folder: Path, tmp_path: Path) -> None:
    tars = write_tars(folder, tmp_path / "tars")
    assert open_source(str(tars)).layout == "tars"
    with tarfile.open(tars / "ILSVRC2012_img_train.tar") as outer:
        outer.extractall(tmp_path / "split/train", filter="data")
    source = open_source(str(tmp_path / "split"))
    assert source.layout == "tars"
    assert contents(source, "train") == contents(open_source(str(folder)), "train")


def test_labels_that_are_numbers_stay_as_they_are_and_readable_names_are_optional(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_webdataset(folder, tmp_path / "w", wnid_in_key=False, tars=1)
    source = open_source(str(root))
    assert source.class_names(["train"]) == ["class0000", "class0001", "class0002", "class0003"]
    assert source.readable_names()["class0001"] == "name of n01443537"
    assert "names no classes" not in caplog.text
    expected = [(label, data) for _, label, data in contents(open_source(str(folder)), "train")]
    assert [(label, data) for _, label, data in contents(source, "train")] == expected
    (root / "classnames.txt").unlink()
    source = open_source(str(root))
    assert source.class_names(["train"])[0] == "class0000" and source.readable_names() == {}
    assert "names no classes; they are called class0000" in caplog.text


def test_ten_thousand_labels_keep_their_order(tmp_path: Path) -> None:
    source = webdataset(tmp_path, [{"a.jpg": b"1", "a.cls": b"10000"}, {"b.jpg": b"2", "b.cls": b"9"}])
    assert keys(source) == [("train/class00009/b.jpg", 9), ("train/class10000/a.jpg", 10000)]


@pytest.mark.parametrize(
    ("names", "key", "first", "said"),
    [
        ("", "a", "n01440764", "its 1,000 labels are taken for ImageNet's"),
        ("\n".join(str(readable_name(wnid)) for wnid in WNIDS), "a", "n01440764", ""),
        ("\n".join(f"thing {number}" for number in range(1000)), "a", "class0000", ""),
        ("", "n99999999_1", "class0000", "they are called class0000"),
    ],
)
def test_a_thousand_classes_are_imagenets_unless_something_says_otherwise(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, names: str, key: str, first: str, said: str
) -> None:
    samples = [{f"{key}.jpg": b"1", f"{key}.cls": b"0"}, {"b.jpg": b"2", "b.cls": b"999"}]
    source = webdataset(tmp_path, samples, names=names)
    assert source.class_names(["train"])[0] == first
    assert said in caplog.text and bool(caplog.text) == bool(said)


def test_labels_of_groups_of_classes_take_no_wnids_from_the_keys(tmp_path: Path) -> None:
    wnids = ["n02105855", "n02102040", "n03000684"]
    samples = [{f"{w}_1.jpg": b"1", f"{w}_1.cls": str(i // 2).encode()} for i, w in enumerate(wnids)]
    assert webdataset(tmp_path, samples).class_names(["train"]) == ["class0000", "class0001"]


def test_keys_that_repeat_in_another_tar_are_told_apart(tmp_path: Path) -> None:
    sample = {"./000.jpg": b"1", "./000.cls": b"0"}
    source = webdataset(tmp_path, [sample, {"001.jpg": b"2", "001.cls": b"0"}], [sample])
    assert [key for key, _ in keys(source)] == [
        "train/class0000/001.jpg",
        "train/class0000/train-0000/000.jpg",
        "train/class0000/train-0001/000.jpg",
    ]


def test_what_is_neither_image_nor_label_is_counted(tmp_path: Path) -> None:
    sample = {"a.JPEG": b"1", "a.cls": b" 3\r\n", "a.json": b'{"caption": "x", "label": "tench"}', "a.txt": b"x"}
    source = webdataset(tmp_path, [{"a.seg.png": b"1", **sample}, {"info.json": b"[1]", "._a.jpg": b"1"}])
    put(tmp_path / "w/nshards.txt", b"1")
    listing = source.listing("train", source.class_names(["train"]))
    assert [(s.key, s.label, s.size_bytes) for s in listing.samples] == [("train/class0003/a.JPEG", 3, 1)]
    assert listing.ignored == {
        "hidden file or folder": 1,
        "tar member that is neither image nor label": 3,
    }
    assert source.left_out(["train"]) == ["nshards.txt"]


GOOD = {"9.jpg": b"9", "9.cls": b"9"}


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({"1.jpg": b"1"}, r"1 image without a label: 1\.jpg\. Each needs a \.cls"),
        ({"1.jpg": b"1", "1.json": b'{"a": 1}'}, r"without a label: 1\.jpg; its \.json has no `label` or `cls`\. Each"),
        ({"1.jpg": b"1", "1.json": b'{"label": "cat"}'}, r"its \.json has 'cat' for `label`, which is no whole number"),
        ({"1.jpg": b"1", "1.json": b'{"label": true}'}, r"its \.json has True for `label`"),
        ({"1.jpg": b"1", "1.json": b"[" * 100_000}, r"1\.json is no JSON"),
        ({"1.jpg": b"1", "1.json": b"\xff"}, r"1\.json is no JSON"),
        (
            {"1.jpg": b"1", "1.json": b'{"label": 1}' + b" " * 2**20},
            r"its \.json has 1,048,588 bytes, of which at most",
        ),
        ({"1.cls": b"1"}, r"1 label without an image: 1\.cls\. Each needs an image .* \.jpg, \.jpeg, \.png"),
        ({"1.cls": b"1", "1.jp2": b"1"}, r"1 label without an image: 1\.cls"),
        ({"1.json": b'{"label": 1}'}, r"1 label without an image: 1\.json"),
        ({"1.jpg": b"1", "1.cls": b"x1"}, r"1\.cls holds b'x1'; it must hold a label, a whole number"),
        ({"1.jpg": b"1", "1.cls": b""}, r"1\.cls holds b''"),
        ({"1.jpg": b"1", "1.cls": b"1.0"}, r"1\.cls holds b'1\.0'"),
        ({"1.jpg": b"1", "1.cls": b"1" * 33}, r"1\.cls has 33 bytes; .* in at most 32 bytes"),
        (
            {"1.jpg": b"1", "1.cls": b"-1"},
            r"1\.cls gives the label -1; labels begin at 0 \(the labels of ImageNet's test",
        ),
        (
            {"1.jpg": b"1", "1.cls": b"9" * 20},
            r"largest label is 99,999,999,999,999,999,999; without names the largest allowed is 99,999",
        ),
        ({"1.jpg": b"1", "1.png": b"1", "1.cls": b"1"}, r"sample 1 has two images, 1\.jpg and 1\.png"),
        ({"1.jpg": b"1", "./1.jpg": b"1", "1.cls": b"1"}, r"sample 1 has two images, 1\.jpg and \./1\.jpg"),
        ({"1.jpg": b"1", "1.cls": b"1", "1.CLS": b"1"}, r"sample 1 has two labels, 1\.cls and 1\.CLS"),
        (
            {"1.jpg": b"1", "1.cls": b"1", "1.json": b'{"label": 2}'},
            r"sample 1 has the label 1 by 1\.cls and 2 by `label` in 1\.json",
        ),
        ({"1.jpg": b"1", "1.json": b'{"label": 1, "cls": 2}'}, "has the label 1 by `label` in .* and 2 by `cls` in"),
    ],
)
def test_a_sample_that_is_not_whole_is_named(sample: dict[str, bytes], message: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=message):
        keys(webdataset(tmp_path, [GOOD, sample]))


def test_the_same_member_twice_is_refused(tmp_path: Path) -> None:
    webdataset(tmp_path, [GOOD])
    with tarfile.open(tmp_path / "w/train-0000.tar", "a") as tar:
        add(tar, "9.jpg", b"other")
    with pytest.raises(SourceError, match=r"sample 9 has two images, 9\.jpg and 9\.jpg\. Remove one"):
        keys(open_source(str(tmp_path / "w")))


def test_a_label_of_a_gigabyte_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    webdataset(tmp_path, [GOOD])
    with open(tmp_path / "w/train-0000.tar", "r+b") as file:  # sparse: it takes no room
        info = tarfile.TarInfo("8.cls")
        info.size = 2**30
        file.seek(4 * 512)
        file.write(info.tobuf())
        file.truncate(5 * 512 + 2**30 + 1024)
    with pytest.raises(SourceError, match=r"8\.cls has 1,073,741,824 bytes; it must hold a label"):
        keys(open_source(str(tmp_path / "w")))


def test_a_wnid_with_two_labels_is_named(tmp_path: Path) -> None:
    samples = [{f"n01440764_{n}.jpg": b"1", f"n01440764_{n}.cls": str(n).encode()} for n in range(2)]
    with pytest.raises(
        SourceError, match=r"n01440764_1\.jpg has the label 1, and n01440764 has 0 by .*n01440764_0\.jpg"
    ):
        keys(webdataset(tmp_path, samples))


def test_a_label_of_val_that_train_lacks_is_named(tmp_path: Path) -> None:
    source = webdataset(tmp_path, [GOOD])
    write_tar(tmp_path / "w/val-0000.tar", [{"v.jpg": b"1", "v.cls": b"10"}])
    with pytest.raises(
        SourceError, match=r"val-0000\.tar: v\.jpg has the label 10; it must be 0 to 9, as there are 10"
    ):
        source.listing("val", source.class_names(["train", "val"]))


@pytest.mark.parametrize(
    ("name", "gone"),
    [
        ("train-{index:04}.tar", (1, 2)),
        ("train/{index:04}.tar", (1, 2)),
        ("train-{index:05}-of-00004.tar", (0, 3)),
    ],
)
def test_tars_that_are_missing_are_named(folder: Path, tmp_path: Path, name: str, gone: tuple[int, ...]) -> None:
    root = write_webdataset(folder, tmp_path / "w", tars=4, name=name.replace("train", "{split}"))
    for index in gone:
        (root / name.format(index=index)).unlink()
    with pytest.raises(
        SourceError, match=rf"missing beside train[-/]\*\.tar, such as number {gone[0]}, {gone[1]}\. Fetch"
    ):
        keys(open_source(str(root)))


def test_two_datasets_side_by_side_are_not_mixed(tmp_path: Path) -> None:
    for name in ("imagenet1k", "imagenet12k"):
        write_tar(tmp_path / f"{name}-train-0000.tar", [GOOD])
    with pytest.raises(
        SourceError, match=r"several series of tars of train: imagenet12k-train-\*\.tar, imagenet1k-train"
    ):
        keys(open_source(str(tmp_path)))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (b"one\ntwo\n", r"classnames\.txt names 2 classes, and the largest label is 9; it must have a line for each"),
        (b"\xff\n" * 10, r"classnames\.txt is not text in UTF-8"),
    ],
)
def test_a_list_of_names_that_does_not_fit_is_refused(tmp_path: Path, names: bytes, message: str) -> None:
    webdataset(tmp_path, [GOOD])
    put(tmp_path / "w/classnames.txt", names)
    with pytest.raises(SourceError, match=message):
        keys(open_source(str(tmp_path / "w")))


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, r"000001\.tar is incomplete: its [\d,]+ bytes end before the tar does"),
        (gzip.compress, r"000001\.tar is compressed with gzip"),
        (lambda data: b"<html>" * 100, r"000001\.tar is not a tar file, or is damaged"),
        (lambda data: b"", r"000001\.tar is incomplete: its 0 bytes"),
    ],
)
def test_a_tar_that_is_not_whole_is_refused(
    folder: Path, tmp_path: Path, damage: Callable[[bytes], bytes], message: str
) -> None:
    root = write_webdataset(folder, tmp_path / "w", name="{split}/{index:06}.tar")
    path = root / "train/000001.tar"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(SourceError, match=message):
        keys(open_source(str(root)))


def test_json_may_be_anything_beside_a_cls(tmp_path: Path) -> None:
    contents: list[object] = [{"label": None}, {"label": 9.0}, 9, [], {"cls": 9}]
    for content in contents:
        sample = {"1.jpg": b"1", "1.cls": b"9", "1.json": json.dumps(content).encode()}
        assert keys(webdataset(tmp_path, [sample])) == [("train/class0009/1.jpg", 9)]


@pytest.mark.parametrize(
    ("pattern", "splits", "tars"),
    [
        ("imagenet-train-{000000..000001}.tar", ["train"], 2),
        ("imagenet-{train,val}-{000000..000001}.tar", ["train", "val"], 4),
        ("imagenet-{val,train}-00000{0,1}.tar", ["train", "val"], 4),
    ],
)
def test_tars_may_be_named_by_a_pattern(
    folder: Path, tmp_path: Path, pattern: str, splits: list[str], tars: int
) -> None:
    write_webdataset(folder, tmp_path / "w")
    put(tmp_path / "w/other-train-000000.tar", b"another series, which would be in the way")
    source = open_source(f"{tmp_path}/w/{pattern}")
    assert source.splits(None) == splits
    assert source.left_out(splits) == []
    for split in splits:
        assert contents(source, split) == contents(open_source(str(folder)), split)
    assert len({sample.file for split in splits for sample in source.listing(split, classes(folder)).samples}) == tars


@pytest.mark.parametrize("pattern", ["{train,val}/{000000..000001}.tar", "train/{000000..000001}.tar"])
def test_a_pattern_may_lead_into_the_folders_of_splits(folder: Path, tmp_path: Path, pattern: str) -> None:
    write_webdataset(folder, tmp_path / "w", name="{split}/{index:06}.tar")
    source = open_source(f"{tmp_path}/w/{pattern}")
    assert contents(source, "train") == contents(open_source(str(folder)), "train")
    assert source.splits(None) == (["train", "val"] if "{train" in pattern else ["train"])


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("imagenet-train-{000000..000003}.tar", r"lacks 2 tars that --source names: imagenet-train-000002\.tar, "),
        ("imagenet-train-{5..1}.tar", r"\{5\.\.1\} must go up"),
        ("imagenet-train-{0..999999999}.tar", r"must go up, over at most 100,000 numbers"),
        ("{0..999}{0..999}.tar", r"stands for more than 100,000 names"),
        ("imagenet-train-{0..1}.parquet", r"a pattern is for WebDataset tars alone"),
    ],
)
def test_a_pattern_of_what_is_not_there_is_refused(folder: Path, tmp_path: Path, pattern: str, words: str) -> None:
    write_webdataset(folder, tmp_path / "w")
    with pytest.raises(SourceError, match=words):
        open_source(f"{tmp_path}/w/{pattern}").splits(None)


@pytest.mark.parametrize("kind", ["jpg", "JPEG", "png", "webp", "avif", "heic"])
@pytest.mark.parametrize("label", ["cls", "json", "both"])
def test_kinds_of_images_and_labels(tmp_path: Path, kind: str, label: str) -> None:
    sample: dict[str, bytes] = {f"1.{kind}": b"image"}
    sample |= {"1.cls": b"0"} if label != "json" else {}
    sample |= {"1.json": b'{"label": 0}'} if label != "cls" else {}
    write_tar(tmp_path / "w/x-train-0.tar", [sample])
    assert [data for *_, data in contents(open_source(str(tmp_path / "w")), "train")] == [b"image"]
