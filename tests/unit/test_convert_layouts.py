"""Every layout lists the same images with the same ids, labels and bytes; which one is there is found out."""

from collections.abc import Callable
from pathlib import Path

import pytest

from convert.imagenet_classes import WNIDS, readable_name
from convert.sources import LAYOUTS, Source, SourceError, open_source
from tests.layouts import (
    classes,
    copy_classes,
    put,
    write_annotated,
    write_folder,
    write_kaggle,
    write_parquet,
    write_tars,
    write_webdataset,
)

WRITERS: dict[str, Callable[[Path, Path], Path]] = {
    "tars": write_tars,
    "kaggle": write_kaggle,
    "annotated": write_annotated,
    "parquet": write_parquet,
    "webdataset": write_webdataset,
}


def contents(source: Source, split: str, names: list[str] | None = None) -> list[tuple[str, int, bytes]]:
    """(key, label, bytes) of each sample in order, read as the workers read them."""
    listing = source.listing(split, names or source.class_names([split]))
    files = source.files
    return [(s.key, s.label, files.read(s.file, s.offset_bytes or 0, s.size_bytes)) for s in listing.samples]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "folder")


@pytest.mark.parametrize("layout", WRITERS)
def test_a_layout_is_recognised_and_lists_the_samples_of_the_image_folder(
    layout: str, folder: Path, tmp_path: Path
) -> None:
    reference = open_source(str(folder))
    source = open_source(str(WRITERS[layout](folder, tmp_path / layout)), spool=tmp_path / "spool")
    assert (reference.layout, source.layout) == ("folder", layout)
    assert source.splits(None) == ["train", "val"]
    assert source.class_names(["train", "val"]) == classes(folder)
    for split, count in (("train", 14), ("val", 8)):
        assert contents(source, split) == contents(reference, split)
        assert len(contents(source, split)) == count
        assert source.listing(split, classes(folder)).ignored == {}


@pytest.mark.parametrize("layout", WRITERS)
def test_readable_names_come_from_the_source(layout: str, folder: Path, tmp_path: Path) -> None:
    source = open_source(str(WRITERS[layout](folder, tmp_path / layout)), spool=tmp_path / "spool")
    assert source.readable_names()["n01440764"].partition(",")[0] == "name of n01440764"


@pytest.mark.parametrize("layout", WRITERS)
def test_a_class_of_val_that_train_lacks_is_named(layout: str, folder: Path, tmp_path: Path) -> None:
    source = open_source(str(WRITERS[layout](folder, tmp_path / layout)), spool=tmp_path / "spool")
    with pytest.raises(SourceError, match="1 class that train lacks: n07831146"):
        source.listing("val", classes(folder)[:3])


@pytest.mark.parametrize("layout", WRITERS)
def test_a_split_that_is_not_there_is_refused(layout: str, folder: Path, tmp_path: Path) -> None:
    source = open_source(str(WRITERS[layout](folder, tmp_path / layout)), spool=tmp_path / "spool")
    with pytest.raises(SourceError, match=r"has no test \(ImageNet's test images have no labels\); it holds"):
        source.splits(["train", "test"])


def test_an_unknown_folder_is_described_beside_what_is_known(tmp_path: Path) -> None:
    put(tmp_path / "photos/a.jpg", b"")
    put(tmp_path / "notes.txt", b"")
    with pytest.raises(
        SourceError, match=r"holds 1 folder \(photos/\) and 1 file \(notes.txt\), which is none"
    ) as error:
        open_source(str(tmp_path))
    for layout in LAYOUTS:
        assert f"\n  {layout} " in str(error.value)


def test_a_folder_of_two_layouts_asks_which(folder: Path, tmp_path: Path) -> None:
    write_tars(folder, folder)
    with pytest.raises(SourceError, match=r"more than one layout: folder, tars.*--layout"):
        open_source(str(folder))
    assert open_source(str(folder), "folder").layout == "folder"
    assert open_source(str(folder), "tars").layout == "tars"


def test_splits_of_other_names_are_a_folder_too(folder: Path, tmp_path: Path) -> None:
    (folder / "train").rename(folder / "photos")
    (folder / "val").rename(folder / "held-out")
    assert open_source(str(folder)).layout == "folder"


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name not in ("folder", "classes", "csv")])
def test_a_layout_that_is_asked_for_and_is_not_there_is_described(layout: str, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=rf"--layout {layout} is .*; --source .*folder holds 2 folders"):
        open_source(str(folder), layout, spool=tmp_path)


@pytest.mark.parametrize(
    ("source", "layout", "message"),
    [
        ("gone", None, "gone does not exist"),
        ("gs://bucket/x", None, "neither a local folder nor s3://"),
        (".", "zip", "--layout zip is not known; choose one of folder, tars"),
        (
            "s3://bucket/x",
            "folder",
            "--layout folder needs a local folder.*aws s3 sync.*tars, parquet, webdataset, mds can be",
        ),
    ],
)
def test_a_source_that_cannot_be_is_refused(source: str, layout: str | None, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        open_source(source, layout)


def test_a_file_as_source_points_to_its_folder(folder: Path, tmp_path: Path) -> None:
    tar = write_tars(folder, tmp_path / "tars") / "ILSVRC2012_img_train.tar"
    with pytest.raises(SourceError, match=f"is not a folder; give the folder that it lies in, {tar.parent}"):
        open_source(str(tar))


def test_the_table_of_classes_is_in_the_order_of_the_labels() -> None:
    assert len(WNIDS) == 1000
    assert list(WNIDS) == sorted(set(WNIDS))
    assert readable_name("n01440764") == "tench, Tinca tinca"
    assert readable_name("n00000000") is None


class TestKaggle:
    def test_val_alone_takes_its_classes_from_the_mapping(self, folder: Path, tmp_path: Path) -> None:
        root = write_kaggle(folder, tmp_path / "kaggle")
        expected = contents(open_source(str(folder)), "val")
        (root / "ILSVRC/Data/CLS-LOC/train").rename(tmp_path / "elsewhere")
        source = open_source(str(root))
        assert source.splits(None) == ["val"]
        assert contents(source, "val") == expected

    def test_the_folder_ilsvrc_itself_is_accepted(self, folder: Path, tmp_path: Path) -> None:
        root = write_kaggle(folder, tmp_path / "kaggle")
        source = open_source(str(root / "ILSVRC"))
        assert contents(source, "val") == contents(open_source(str(folder)), "val")

    def test_val_that_was_sorted_into_classes_needs_no_solution(self, folder: Path, tmp_path: Path) -> None:
        copy_classes(folder, tmp_path / "k/ILSVRC/Data/CLS-LOC", "val")
        copy_classes(folder, tmp_path / "k/ILSVRC/Data/CLS-LOC", "train")
        assert contents(open_source(str(tmp_path / "k")), "val") == contents(open_source(str(folder)), "val")

    def test_a_missing_solution_is_named(self, folder: Path, tmp_path: Path) -> None:
        root = write_kaggle(folder, tmp_path / "kaggle")
        (root / "LOC_val_solution.csv").unlink()
        source = open_source(str(root))
        assert len(contents(source, "train")) == 14
        with pytest.raises(SourceError, match=r"labels of val are in LOC_val_solution\.csv, which is not .*Download"):
            contents(source, "val")

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            ("id,label\n", r"its header is \['id', 'label'\], not ImageId"),
            ("ImageId,PredictionString\nx,\n", r"solution\.csv:2: no class for 'x'"),
            ("ImageId,PredictionString\nx,n01440764 1 2 3 4\n", "gives no class for 8 files of .*: ILSVRC2012_val"),
        ],
    )
    def test_a_solution_that_does_not_fit_is_refused(
        self, rows: str, message: str, folder: Path, tmp_path: Path
    ) -> None:
        root = write_kaggle(folder, tmp_path / "kaggle")
        put(root / "LOC_val_solution.csv", rows.encode())
        with pytest.raises(SourceError, match=message):
            contents(open_source(str(root)), "val")


class TestAnnotated:
    def test_a_plain_flat_val_with_a_list_of_file_and_wnid(self, folder: Path, tmp_path: Path) -> None:
        root = tmp_path / "plain"
        copy_classes(folder, root)
        lines = []
        for path in sorted((folder / "val").glob("*/*")):
            put(root / "val" / path.name, path.read_bytes())
            lines.append(f"{path.name} {path.parent.name}\n")
        put(root / "val/val_annotations.txt", "".join(lines).encode())
        source = open_source(str(root))
        assert source.layout == "annotated"
        for split in ("train", "val"):
            assert contents(source, split) == contents(open_source(str(folder)), split)

    def test_val_alone_takes_its_classes_from_wnids(self, folder: Path, tmp_path: Path) -> None:
        root = write_annotated(folder, tmp_path / "annotated")
        (root / "train").rename(tmp_path / "elsewhere")
        assert open_source(str(root)).class_names(["val"]) == classes(folder)
        (root / "wnids.txt").unlink()
        assert open_source(str(root)).class_names(["val"]) == classes(folder)

    def test_a_missing_list_is_named(self, folder: Path, tmp_path: Path) -> None:
        root = write_annotated(folder, tmp_path / "annotated")
        (root / "val/val_annotations.txt").unlink()
        with pytest.raises(SourceError, match=r"no list of its labels: none of val/val_anno.*<file> <wnid>"):
            contents(open_source(str(root)), "val")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda text: text.partition("\n")[2], "gives no class for 1 file of .*ILSVRC2012_val"),
            (lambda text: text + "x.JPEG\n", r"val_annotations\.txt:9: 'x\.JPEG' is not `<file> <wnid>`"),
            (lambda text: text.replace("n07831146", "n99999999"), "1 class that train lacks: n99999999"),
            (
                lambda text: text + text.splitlines()[0].replace("n0", "n1"),
                ":9: ILSVRC.* is n1.* here and n0.*",
            ),
            (lambda text: "", "is empty"),
            (lambda text: "\udcff", "is not text in UTF-8"),
        ],
    )
    def test_a_list_that_does_not_fit_is_refused(
        self, change: Callable[[str], str], message: str, folder: Path, tmp_path: Path
    ) -> None:
        labels = write_annotated(folder, tmp_path / "annotated") / "val/val_annotations.txt"
        labels.write_bytes(change(labels.read_text()).encode("utf-8", "surrogateescape"))
        with pytest.raises(SourceError, match=message):
            contents(open_source(str(tmp_path / "annotated")), "val")

    def test_a_line_without_its_image_is_counted(self, folder: Path, tmp_path: Path) -> None:
        labels = write_annotated(folder, tmp_path / "annotated") / "val/val_annotations.txt"
        labels.write_text(labels.read_text() + "gone.JPEG\tn01440764\t0\t0\t1\t1\n")
        listing = open_source(str(tmp_path / "annotated")).listing("val", classes(folder))
        assert len(listing.samples) == 8
        assert listing.ignored == {"line of val_annotations.txt without its image": 1}
