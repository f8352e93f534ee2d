"""A CSV of paths and labels: any usual header, quoting and encoding; everything that is wrong is named at once."""

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from convert.sources import SourceError, open_source
from convert.sources.share import Share
from tests.layouts import put
from tests.unit.test_convert_layouts import contents

NAMES = ("a.jpg", "sub/b.jpg", "sub/with, comma.jpg", 'quo"te.jpg', "ü.jpg")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in NAMES:
        put(tmp_path / "images" / name, name.encode())
    return tmp_path / "images"


def text_of(rows: Sequence[tuple[str, ...]], *, delimiter: str = ",", end: str = "\n", **options: object) -> str:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator=end, **options).writerows(rows)  # type: ignore[arg-type]
    return text.getvalue()


ROWS = [(name, "n02" if at % 2 else "n01", "train" if at < 3 else "validation") for at, name in enumerate(NAMES)]
EXPECTED = {
    "train": [
        ("train/n01/a.jpg", 0, b"a.jpg"),
        ("train/n01/with, comma.jpg", 0, b"sub/with, comma.jpg"),
        ("train/n02/b.jpg", 1, b"sub/b.jpg"),
    ],
    "val": [("val/n01/\xfc.jpg", 0, "ü.jpg".encode()), ('val/n02/quo"te.jpg', 1, b'quo"te.jpg')],
}


@pytest.mark.parametrize(
    ("header", "encoding", "delimiter", "end", "quoting"),
    [
        (("path", "label", "split"), "utf-8", ",", "\n", csv.QUOTE_MINIMAL),
        (("filename", "class", "set"), "utf-8-sig", ",", "\r\n", csv.QUOTE_ALL),
        ((" Image ", "WNID", "Subset"), "utf-16", "\t", "\r\n", csv.QUOTE_MINIMAL),
        (("file_path", "category", "split"), "utf-8", ";", "\n", csv.QUOTE_MINIMAL),
    ],
)
def test_usual_headers_encodings_and_line_ends_are_understood(
    root: Path, header: tuple[str, ...], encoding: str, delimiter: str, end: str, quoting: int
) -> None:
    text = text_of([header, *ROWS], delimiter=delimiter, end=end, quoting=quoting)
    (root.parent / "list.csv").write_bytes(text.encode(encoding))
    source = open_source(str(root), labels=root.parent / "list.csv")
    assert (source.layout, source.splits(None)) == ("csv", ["train", "val"])
    assert source.class_names(["train", "val"]) == ["n01", "n02"]
    assert {split: contents(source, split, ["n01", "n02"]) for split in ("train", "val")} == EXPECTED


def test_more_columns_in_any_order_and_empty_lines_are_no_matter(root: Path) -> None:
    rows = [("id", "label", "path", "split", "note"), *(("7", label, path, split, "") for path, label, split in ROWS)]
    (root / "list.csv").write_text(text_of(rows).replace("\n", "\n\n") + " , \n")
    source = open_source(str(root / "list.csv"))  # a CSV itself: paths are beside it
    assert {split: contents(source, split, ["n01", "n02"]) for split in ("train", "val")} == EXPECTED


def test_paths_may_be_below_the_list_or_absolute_or_windows(root: Path) -> None:
    rows = [("path", "label"), ("images/a.jpg", "x"), (str(root / "sub/b.jpg"), "x"), ("sub\\with, comma.jpg", "x")]
    (root.parent / "list.csv").write_text(text_of(rows))
    source = open_source(str(root), labels=root.parent / "list.csv")
    assert [data for *_, data in contents(source, "train")] == [b"a.jpg", b"sub/b.jpg", b"sub/with, comma.jpg"]
    assert source.splits(None) == ["train"]


def test_without_a_column_of_splits_a_fraction_is_for_validation(root: Path, tmp_path: Path) -> None:
    names = [f"{n}.jpg" for n in range(100)]
    for name in names:
        put(root / name, name.encode())
    (root / "list.csv").write_text(text_of([("path", "label"), *((name, "x") for name in names)]))
    source = open_source(str(root / "list.csv"), share=Share(0.3, 5))
    val = {data.decode() for *_, data in contents(source, "val")}
    assert val == {name for name in names if Share(0.3, 5).split_of("x", name) == "val"}
    assert len(val) + len(contents(source, "train")) == 100


def test_a_split_is_drawn_alike_however_the_paths_are_spelt(root: Path) -> None:
    names = [f"{n}.jpg" for n in range(60)]
    drawn = []
    for spelt in ("{}", "./{}", str(root) + "/{}"):
        for name in names:
            put(root / name, name.encode())
        (root / "list.csv").write_text(text_of([("path", "label"), *((spelt.format(name), "x") for name in names)]))
        source = open_source(str(root / "list.csv"), share=Share(0.3, 5))
        drawn.append(sorted(data for *_, data in contents(source, "val")))
    assert drawn[0] == drawn[1] == drawn[2] and len(drawn[0]) > 5


def test_labels_that_would_become_one_class_are_refused(root: Path) -> None:
    (root / "list.csv").write_text(text_of([("path", "label"), ("a.jpg", "dog/husky"), ("sub/b.jpg", "dog_husky")]))
    with pytest.raises(SourceError, match=r"line 3: the labels dog/husky and dog_husky would be one class"):
        open_source(str(root / "list.csv")).splits(None)


def test_a_file_name_in_two_folders_is_two_images(root: Path) -> None:
    put(root / "other/a.jpg", b"other")
    (root / "list.csv").write_text(text_of([("path", "label"), ("a.jpg", "x/y"), ("other/a.jpg", "x/y")]))
    source = open_source(str(root / "list.csv"))
    assert contents(source, "train") == [("train/x_y/a.jpg", 0, b"a.jpg"), ("train/x_y/other/a.jpg", 0, b"other")]


def test_a_split_that_is_not_asked_for_is_left_out_and_said(root: Path) -> None:
    rows = [("path", "label", "split"), ("a.jpg", "x", "train"), ("sub/b.jpg", "x", "holdout")]
    (root / "list.csv").write_text(text_of(rows))
    source = open_source(str(root / "list.csv"))
    assert (source.splits(None), source.left_out(["train"])) == (["train"], ["the 1 row of holdout"])
    assert source.splits(["holdout"]) == ["holdout"]


def test_every_row_that_cannot_be_used_is_named_at_once(root: Path) -> None:
    os.mkfifo(root / "pipe.jpg")
    rows = [("path", "label"), ("a.jpg", "x"), ("gone.jpg", "x"), ("also gone.jpg", "x"), ("", "x"), ("sub/b.jpg",),
            ("sub/b.jpg", ""), ("./a.jpg", "y"), ("sub", "x"), ("pipe.jpg", "x"), ("\0.jpg", "x")]  # fmt: skip
    (root / "list.csv").write_text(text_of(rows))
    with pytest.raises(SourceError) as caught:
        open_source(str(root / "list.csv")).splits(None)
    assert str(caught.value).splitlines() == [
        f"{root}/list.csv: 9 rows cannot be used:",
        f"  line 3: gone.jpg is no file below {root} or {root}",
        f"  line 4: also gone.jpg is no file below {root} or {root}",
        "  line 5 has no path",
        "  line 6 has 1 field",
        "  line 7 has no label",
        f"  line 9: sub is no file below {root} or {root}",
        f"  line 10: pipe.jpg is no file below {root} or {root}",
        f"  line 11: \\x00.jpg is no file below {root} or {root}",
        "  line 2 and line 8 name ./a.jpg",
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"its first line is empty; it must name the columns: one of path, file, "),
        ("a.jpg,cat\n", r"its first line is a\.jpg, cat; it must name the columns"),
        ("path,label\n", r"has a header and no rows"),
        ('path,label\n"a.jpg,x\n', r"list\.csv:2 is not CSV: unexpected end of data"),
        ("path,label\na.jpg,x\n\xff", r"is not text in UTF-8"),
    ],
)
def test_what_is_no_list_is_refused(root: Path, text: str, words: str) -> None:
    (root / "list.csv").write_bytes(text.encode("latin1"))
    with pytest.raises(SourceError, match=words):
        open_source(str(root / "list.csv")).splits(None)


def test_a_fraction_beside_splits_and_other_mistakes_are_refused(root: Path) -> None:
    (root / "list.csv").write_text(text_of([("path", "label", "split"), ("a.jpg", "x", "train")]))
    mistakes = {
        "gives the splits itself; leave out --val-fraction": {"share": Share(0.2, 0)},
        "--layout tars has its own lists of labels": {"layout": "tars"},
    }
    for words, given in mistakes.items():
        with pytest.raises(SourceError, match=words):
            open_source(str(root / "list.csv"), **given).splits(None)  # type: ignore[arg-type]
    with pytest.raises(SourceError, match=r"--layout csv needs a list of the images; give --labels FILE\.csv"):
        open_source(str(root), "csv")
    with pytest.raises(SourceError, match=r"gone\.csv is not a file"):
        open_source(str(root), labels=root / "gone.csv")
    with pytest.raises(SourceError, match="needs a local folder"):
        open_source("s3://bucket/x", labels=root / "list.csv")
