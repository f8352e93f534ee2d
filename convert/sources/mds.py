"""Shards that exist already, this project's or MosaicML's, to be sharded anew.

Shards on a local disk are read in place. Those that are compressed or lie in a bucket are unpacked into the spool.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar

from convert.sources.base import (
    DEFAULT_SPLITS,
    Listing,
    Sample,
    SourceError,
    all_but,
    counted,
    each,
    glimpse,
    indexes_of,
    labelled_splits,
    logger,
    names_of,
    reading,
)
from convert.sources.class_names import MAX_UNNAMED_CLASSES, numbered_names, warn_of_numbered_names
from convert.sources.mds_shards import INDEX_NAME, Rows, in_place, read_index, read_rows
from convert.sources.spool import make_spool
from imagestream.mds.files_table import FILES_NAME
from imagestream.mds.manifest import MANIFEST_NAME, Manifest, ManifestError, parse_manifest
from imagestream.storage.local import LocalPlace
from imagestream.storage.protocol import Place

SHARDS_AT_ONCE = 4  # each is held in memory, packed and unpacked
FOLDERS_LOOKED_INTO = 20


def is_mds(files: Place) -> bool:
    """Whether this folder, or one in it, holds the index of an MDS dataset."""
    return bool(_folders_with_index(files))


def open_mds(files: Place, spool: Path | None) -> "Mds":
    """The dataset; `spool` is needed where its shards cannot be read in place."""
    with reading(files):
        folders = _folders_with_index(files)
        if all(in_place(files, read_index(files, folder)) for folder in folders):
            return Mds(files, None)
        return Mds(files, make_spool(spool, what="shards that are compressed or in a bucket"))


@dataclass(slots=True)
class Mds:
    """An MDS dataset: a folder with an index.json for each split, or one split alone.

    Its samples keep their order, that of column `i`, so that the same options give the same shards again. The names
    of the image files are gone; keys end in the sample id.

    Attributes:
        spool: where its shards are unpacked; None: they are read in place.
    """

    source: Place
    spool: Path | None
    layout: ClassVar[str] = "mds"
    _read: dict[str, list[Rows]] = field(default_factory=dict, repr=False)  # split -> its shards, read once

    @property
    def files(self) -> Place:
        return self.source if self.spool is None else LocalPlace(self.spool)

    def splits(self, requested: Sequence[str] | None) -> list[str]:
        with reading(self.source):
            if self._is_one_split():
                if requested and len(requested) > 1:
                    raise SourceError(f"--source {self.source} is one split; name one with --splits, not several")
                return list(requested or ["train"])
            found = [split for split in requested or DEFAULT_SPLITS if self._folder(split)]
            return labelled_splits(requested, found, source=self.source, seen=glimpse(self.source))

    def class_names(self, splits: Sequence[str]) -> list[str]:
        with reading(self.source):
            manifest = self._manifest()
            if manifest:
                names = [info.wnid for info in manifest.classes]
                return names if all(map(str.isdecimal, names)) else sorted(names)  # numbers may be in their own order
            shards = [rows for split in splits for rows in self._rows(split) if rows.labels]
            for rows in shards:
                self._refuse_other_labels(rows, MAX_UNNAMED_CLASSES, "as no more classes are believed without names")
            names = numbered_names(max((max(rows.labels) for rows in shards), default=-1) + 1)
            warn_of_numbered_names(names, self.source)
            return names

    def listing(self, split: str, classes: Sequence[str]) -> Listing:
        with reading(self.source):
            manifest = self._manifest()
            shards = self._rows(split)
        names = [info.wnid for info in manifest.classes] if manifest else numbered_names(len(classes))
        index_of = indexes_of(classes, names, where=self.source)
        ordered = []
        for rows, ids in zip(shards, self._ids(split, shards), strict=True):
            self._refuse_other_labels(rows, len(names), f"as there are {counted(len(names), 'class', 'classes')}")
            for sample_id, label, offset_bytes, size_bytes in zip(
                ids, rows.labels, rows.offsets_bytes, rows.sizes_bytes, strict=True
            ):
                key = f"{split}/{names[label]}/{sample_id:08}"
                sample = Sample(key, index_of[names[label]], size_bytes, file=rows.file, offset_bytes=offset_bytes)
                ordered.append((sample_id, sample))
        ordered.sort(key=lambda pair: pair[0])
        return Listing(split, tuple(sample for _, sample in ordered), {})

    def left_out(self, splits: Sequence[str]) -> list[str]:
        with reading(self.source):
            if self._is_one_split():
                return []
            return all_but(
                self.source, {*(self._folder(split) or split for split in splits), MANIFEST_NAME, FILES_NAME}
            )

    def _folder(self, split: str) -> str | None:
        """The name of a split's folder; None where there is none."""
        return next((name for name in names_of(split) if self.source.stat(f"{name}/{INDEX_NAME}") is not None), None)

    def readable_names(self) -> dict[str, str]:
        with reading(self.source):
            manifest = self._manifest()
        return {info.wnid: info.name for info in manifest.classes if info.name != info.wnid} if manifest else {}

    def _is_one_split(self) -> bool:
        return self.source.stat(INDEX_NAME) is not None

    def _manifest(self) -> Manifest | None:
        if self.source.stat(MANIFEST_NAME) is None:
            return None
        where = f"{self.source}/{MANIFEST_NAME}"
        try:
            return parse_manifest(self.source.read(MANIFEST_NAME), where=where)
        except ManifestError as error:
            raise SourceError(f"{error}\nIt names the classes. Mend it, or remove it to go without.") from error

    def _rows(self, split: str) -> list[Rows]:
        if split not in self._read:
            shards = read_index(self.source, "" if self._is_one_split() else f"{self._folder(split) or split}/")
            threads = min(SHARDS_AT_ONCE, self.source.concurrency)
            read = partial(read_rows, self.source, spool=self.spool)
            self._read[split] = list(each(read, shards, threads=threads, unit="shards", what=f"reading {split}"))
        return self._read[split]

    def _ids(self, split: str, shards: Sequence[Rows]) -> list[Sequence[int]]:
        """The samples' ids by shard: column `i` where it tells the samples apart, else their positions."""
        ids: list[Sequence[int]] = [rows.ids for rows in shards]
        every = [sample_id for part in ids for sample_id in part]
        total = sum(len(rows.labels) for rows in shards)
        if not total:
            raise SourceError(f"{self.source}: the shards of {split} hold no samples")
        if len(set(every)) == total and min(every) >= 0:
            return ids
        if every:
            logger.warning(
                "warning: %s: column i of %s does not number the samples; they are taken in order", self.source, split
            )
        ids, start = [], 0
        for rows in shards:
            ids.append(range(start, start + len(rows.labels)))
            start += len(rows.labels)
        return ids

    def _refuse_other_labels(self, rows: Rows, num_classes: int, why: str) -> None:
        for number, label in enumerate(rows.labels):
            if not 0 <= label < num_classes:
                raise SourceError(
                    f"the shard {self.source}/{rows.file}: sample {number} has the label {label}; it must be 0 to "
                    f"{num_classes - 1:,}, {why}"
                )


def _folders_with_index(files: Place) -> list[str]:
    """'' or the folders, each with a '/', that have an index.json."""
    if files.stat(INDEX_NAME) is not None:
        return [""]
    folders = [name for name in files.names() if name.endswith("/") and not name.startswith(".")]
    usual = [f"{split}/" for split in DEFAULT_SPLITS if f"{split}/" in folders]
    # Among the classes of a folder of images there is no split to be found: a bucket would be asked 1,000 times.
    others = [name for name in folders if name not in usual] if len(folders) <= FOLDERS_LOOKED_INTO else []
    return [folder for folder in usual + others if files.stat(folder + INDEX_NAME) is not None]
