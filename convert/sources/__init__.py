"""The layouts ImageNet comes in, one module each; `open_source` tells them apart."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from convert.sources.annotated import Annotated, is_annotated
from convert.sources.base import (
    DEFAULT_SPLITS,
    USUAL_NAMES,
    Listing,
    Sample,
    Source,
    SourceError,
    first_few,
    glimpse,
    is_hidden,
    names_of,
    reading,
)
from convert.sources.braces import has_braces, place_and_names
from convert.sources.csv_list import CsvList
from convert.sources.image_folder import ImageFolder
from convert.sources.kaggle import Kaggle, is_kaggle
from convert.sources.mds import is_mds, open_mds
from convert.sources.parquet import Parquet, is_parquet
from convert.sources.share import Share
from convert.sources.spool import make_spool
from convert.sources.tars import Tars, is_tars
from convert.sources.unsplit import ClassFolders
from convert.sources.webdataset import WebDataset, is_webdataset
from imagestream.storage.errors import PlaceError
from imagestream.storage.places import open_place
from imagestream.storage.protocol import Place

__all__ = ["LAYOUTS", "ImageFolder", "Listing", "Sample", "Source", "SourceError", "open_source"]


@dataclass(frozen=True, slots=True)
class _Layout:
    looks: str
    is_here: Callable[[Place], bool]
    open: Callable[[Place, Path | None], Source]
    in_buckets: bool = False


def _is_folder(files: Place) -> bool:
    return any(_folders(files, name) for split in DEFAULT_SPLITS for name in names_of(split))


def _folders(files: Place, folder: str = "") -> list[str]:
    return [name for name in files.names(folder) if name.endswith("/") and not is_hidden(name)]


def _root(files: Place) -> Path:
    assert files.path is not None
    return files.path


_LAYOUTS = {
    "folder": _Layout(
        "<split>/<class>/<file>",
        _is_folder,
        lambda files, spool: ImageFolder(_root(files)),
    ),
    "tars": _Layout(
        "ILSVRC2012_img_train.tar, or train/<class>.tar; ILSVRC2012_img_val.tar with ILSVRC2012_devkit_t12.tar.gz",
        is_tars,
        lambda files, spool: Tars(files),
        in_buckets=True,
    ),
    "kaggle": _Layout(
        "ILSVRC/Data/CLS-LOC/{train,val}, LOC_synset_mapping.txt, LOC_val_solution.csv",
        is_kaggle,
        lambda files, spool: Kaggle(_root(files)),
    ),
    "annotated": _Layout(
        "train/<class>/images/<file>, val/images/<file> and val/val_annotations.txt (Tiny-ImageNet)",
        is_annotated,
        lambda files, spool: Annotated(_root(files)),
    ),
    "parquet": _Layout(
        "data/train-00000-of-00294.parquet, with a column of images and one of labels (Hugging Face)",
        is_parquet,
        lambda files, spool: Parquet(files, make_spool(spool, what="images in parquet files")),
        in_buckets=True,
    ),
    "webdataset": _Layout(
        "imagenet-train-000000.tar, or train/000000.tar, with 000017.cls or 000017.json beside 000017.jpg (WebDataset)",
        is_webdataset,
        lambda files, spool: WebDataset(files),
        in_buckets=True,
    ),
    "mds": _Layout(
        "<split>/index.json and its shards (MDS)",
        is_mds,
        open_mds,
        in_buckets=True,
    ),
}

CLASSES, CSV = "classes", "csv"
_LOOKS_WHEN_ASKED_FOR = {
    CLASSES: "<class>/<file>, with --val-fraction 0.2",
    CSV: "a CSV with the columns path, label and, if there is one, split: --labels FILE.csv",
}
LAYOUTS = (*_LAYOUTS, *_LOOKS_WHEN_ASKED_FOR)
CSV_ENDINGS = (".csv", ".tsv")


def open_source(
    source: str,
    layout: str | None = None,
    *,
    spool: Path | None = None,
    share: Share | None = None,
    labels: Path | None = None,
) -> Source:
    """The source a --source argument means.

    Args:
        source: a local folder, or s3://bucket/prefix for the layouts tars, parquet, webdataset and mds.
        layout: one of LAYOUTS; by default it is recognised by what lies there.
        spool: a local folder for layouts that cannot be read in place (parquet, compressed shards, shards in a
            bucket): their images are unpacked into it once, and found there again by the next run.
        share: what is for validation, of a source without splits.
        labels: a CSV that lists the images; `source` may be one as well.

    Raises:
        SourceError: there is nothing there that can be converted.
    """
    if labels is not None or layout == CSV or source.lower().endswith(CSV_ENDINGS):
        return _open_list(source, layout, labels, share)
    if share is not None or layout == CLASSES:
        return _open_classes(source, layout, share)
    if has_braces(source) and not Path(source).exists():
        return _open_pattern(source, layout)
    files = _open_place(source)
    with reading(source):
        name = layout if layout is not None else _recognised(files, source)
        if name not in _LAYOUTS:
            raise SourceError(f"--layout {name} is not known; choose one of {', '.join(LAYOUTS)}")
        chosen = _LAYOUTS[name]
        if not chosen.in_buckets and files.path is None:
            raise SourceError(
                f"--layout {name} needs a local folder, and {source} is a bucket. Copy it to a disk (aws s3 sync), or "
                f"mount it. {', '.join(n for n in _LAYOUTS if _LAYOUTS[n].in_buckets)} can be read from a bucket."
            )
        if layout is not None and layout != "folder" and not chosen.is_here(files):  # folder says more by itself
            raise SourceError(f"--layout {layout} is {chosen.looks}; --source {source} holds {glimpse(files)}")
        return chosen.open(files, spool)


def _open_list(source: str, layout: str | None, labels: Path | None, share: Share | None) -> Source:
    if layout not in (None, CSV):
        raise SourceError(f"--layout {layout} has its own lists of labels; leave out --labels, or give --layout {CSV}")
    if labels is None and not source.lower().endswith(CSV_ENDINGS):
        raise SourceError(f"--layout {CSV} needs a list of the images; give --labels FILE.csv")
    if "://" in source:
        raise SourceError(f"--layout {CSV} needs a local folder, and {source} is a bucket; copy it to a disk")
    path = labels or Path(source)
    if not path.is_file():
        raise SourceError(f"{path} is not a file; give a CSV with the columns path and label")
    root = Path(source) if labels else path.parent
    if not root.is_dir():
        raise SourceError(f"--source {source} is not a folder; give the one that the paths in {path} begin in")
    with reading(source):
        return CsvList(path, root, share)


def _open_pattern(source: str, layout: str | None) -> Source:
    if layout not in (None, "webdataset"):
        raise SourceError(f"--source {source} is a pattern, and --layout {layout} takes none")
    folder, names = place_and_names(source)
    return WebDataset(_open_place(folder), frozenset(names))


def _open_classes(source: str, layout: str | None, share: Share | None) -> Source:
    if share is None:
        raise SourceError(f"--layout {CLASSES} has no splits; say how much is for validation, as --val-fraction 0.2")
    if layout not in (None, CLASSES):
        raise SourceError(f"--layout {layout} has splits of its own; leave out --val-fraction")
    files = _open_place(source)
    if files.path is None:
        raise SourceError(f"--val-fraction needs a local folder, and {source} is a bucket; copy it to a disk")
    with reading(source):
        splits = [name for names in USUAL_NAMES.values() for name in names if f"{name}/" in files.names()]
        if splits and layout is None:
            raise SourceError(
                f"--val-fraction is for class folders without splits, and --source {source} holds {first_few(splits)}; "
                f"leave it out, or give --source {files.path / splits[0]}; if these are classes, "
                f"give --layout {CLASSES}"
            )
        return ClassFolders(files.path, share)


def _open_place(source: str) -> Place:
    try:
        files = open_place(source)
    except PlaceError as error:
        raise SourceError(f"--source {error}") from error
    if files.path is not None and not files.path.is_dir():
        if not files.path.exists():
            raise SourceError(f"--source {source} does not exist")
        raise SourceError(f"--source {source} is not a folder; give the folder that it lies in, {files.path.parent}")
    return files


def _recognised(files: Place, source: str) -> str:
    """The one layout that is here."""
    here = [name for name, layout in _LAYOUTS.items() if layout.is_here(files)]
    if "kaggle" in here or "annotated" in here:  # which are folders as well
        here = [name for name in here if name != "folder"]
    if len(here) > 1:
        raise SourceError(
            f"--source {source} holds more than one layout: {', '.join(here)}; it holds {glimpse(files)}. "
            "Choose one with --layout."
        )
    if here:
        return here[0]
    folders = _folders(files)
    if any(f"{split}/" in folders for split in DEFAULT_SPLITS) or any(_folders(files, folder) for folder in folders):
        return "folder"  # with splits of other names, or an incomplete one, which says best what is missing
    tars = [name for name in files.names() if name.endswith((".tar", ".tar.gz", ".tgz"))]
    if tars:
        raise SourceError(
            f"--source {source} holds {glimpse(files)}. Tars of images are read if they are ImageNet's own; if they "
            "lie in train/ and val/ by class, such as train/n01440764.tar; and WebDataset tars if they lie in train/ "
            "and val/ or have their split in their names, such as imagenet-train-000000.tar. None may be compressed"
        )
    known = {name: layout.looks for name, layout in _LAYOUTS.items()} | _LOOKS_WHEN_ASKED_FOR
    looks = "".join(f"\n  {name:10}  {text}" for name, text in known.items())
    raise SourceError(
        f"--source {source} holds {glimpse(files)}, which is none of the layouts that can be converted:{looks}\n"
        "Give the folder above the splits, or say what of class folders without splits is for validation"
    )
