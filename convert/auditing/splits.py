"""What an audit holds against each other once all shards are read: ids, class counts, the manifest, and duplicates."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from convert.auditing.findings import Finding, Findings, Kind, RecordAt, path_in
from convert.auditing.index import SplitIndex
from convert.auditing.shards import Rows
from imagestream.mds.manifest import MANIFEST_NAME, Manifest, ManifestError, SplitInfo, index_fingerprint
from imagestream.mds.shards import INDEX_NAME
from imagestream.storage.protocol import Place


@dataclass(frozen=True, slots=True)
class SplitRows:
    """All records of a split that could be read, in the order of its index."""

    index: SplitIndex
    rows: Rows

    @property
    def split(self) -> str:
        return self.index.split

    @property
    def unread(self) -> int:
        """Records that index.json promises and that could not be read; shards with a faulty entry count as one."""
        return self.index.samples - len(self.rows) + self.index.listed - len(self.index.shards)

    def path(self, position: int) -> str:
        """The path of the shard that holds a record, given the record's place among the rows."""
        return self.index.path(int(self.rows["shard"][position]))

    def at(self, position: int) -> RecordAt:
        return RecordAt(self.split, int(self.rows["shard"][position]), int(self.rows["record"][position]))


@dataclass(frozen=True, slots=True)
class Audited:
    """What an audit saw: all that is needed to tell of it."""

    dataset: str
    files: Place
    manifest: Manifest | None
    splits: list[SplitRows]
    findings: Findings
    decoded: int
    decode_fraction: float
    workers: int

    @property
    def images(self) -> int:
        return sum(len(split.rows) for split in self.splits)


def check_manifest(manifest: Manifest, indexes: Mapping[str, SplitIndex]) -> Iterator[Finding]:
    """Whether the manifest's splits are those that were found, with its counts and fingerprints."""
    for split in sorted(set(manifest.splits) | set(indexes)):
        index_path = path_in(split, INDEX_NAME)
        info, index = manifest.splits.get(split), indexes.get(split)
        if index is None:
            yield Finding(Kind.SPLITS, index_path, f"does not exist, though {MANIFEST_NAME} has the split {split!r}")
        elif info is None:
            known = ", ".join(sorted(manifest.splits)) or "none"
            yield Finding(Kind.SPLITS, index_path, f"{MANIFEST_NAME} does not have this split; it has {known}")
        elif index.listed:
            yield from _check_index(index_path, index, info)


def _check_index(index_path: str, index: SplitIndex, info: SplitInfo) -> Iterator[Finding]:
    pairs = [("shards", index.listed, info.shards)]
    if index.listed == len(index.shards):
        pairs += [("samples", index.samples, info.samples), ("bytes of shards", index.stored_bytes, info.bytes)]
    for what, seen, promised in pairs:
        if seen != promised:
            yield Finding(Kind.MANIFEST, index_path, f"lists {seen:,} {what}, {MANIFEST_NAME} says {promised:,}")
    try:
        seen_fingerprint = index_fingerprint(index.content)
    except ManifestError:
        return  # the fault is among those of index.json
    if seen_fingerprint != info.fingerprint:
        what = f"fingerprint is {seen_fingerprint}, {MANIFEST_NAME} says {info.fingerprint}"
        yield Finding(Kind.MANIFEST, index_path, what)


def check_records(rows: SplitRows, manifest: Manifest | None) -> Iterator[Finding]:
    """Whether each id occurs once and none is missing, and whether the class counts are the manifest's."""
    yield from _repeated_ids(rows, is_warning=manifest is None)
    info = manifest.splits.get(rows.split) if manifest else None
    if manifest is None or info is None:
        return
    if rows.unread:
        what = f"ids and class counts were not compared, since {rows.unread:,} of its records could not be read"
        yield Finding(Kind.NOT_COMPARED, path_in(rows.split, INDEX_NAME), what, is_warning=True)
        return
    yield from _incomplete_ids(rows, info)
    yield from _wrong_counts(rows, manifest, info)


def class_counts(rows: Rows, num_classes: int | None = None) -> list[int]:
    """Samples of each class; labels out of range are left out."""
    labels = rows["label"]
    return [int(count) for count in np.bincount(labels[labels >= 0], minlength=num_classes or 0)]


def range_of(counts: Sequence[int] | Rows) -> str:
    """`732 to 1,300`, or `50` where all are the same."""
    least, most = min(counts), max(counts)
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def _repeated_ids(rows: SplitRows, *, is_warning: bool) -> Iterator[Finding]:
    ids = rows.rows["id"]
    for first, *others in _equal(ids):
        for other in others:
            what = (
                f"record {rows.rows['record'][other]}: its id {ids[other]} is that of "
                f"record {rows.rows['record'][first]} of {rows.path(first)}"
            )
            yield Finding(Kind.ID, rows.path(other), what, is_warning)


def _incomplete_ids(rows: SplitRows, info: SplitInfo) -> Iterator[Finding]:
    """Ids are places in the list of source files, so each of them is in a shard or among the refused."""
    ids, refused = np.unique(rows.rows["id"]), np.array(sorted(file.id for file in info.refused), "i8")
    listed = info.samples + len(info.refused)
    where = path_in(rows.split, INDEX_NAME)
    for first, last in runs(np.setdiff1d(np.setdiff1d(np.arange(listed), refused), ids)):
        what = f"{shown_ids(first, last)} in no shard, and not among those that {MANIFEST_NAME} lists as refused"
        yield Finding(Kind.ID, where, what)
    for first, last in runs(np.intersect1d(ids, refused)):
        yield Finding(
            Kind.ID, where, f"{shown_ids(first, last)} in a shard, though {MANIFEST_NAME} lists it as refused"
        )
    for first, last in runs(ids[(ids < 0) | (ids >= listed)]):
        yield Finding(Kind.ID, where, f"{shown_ids(first, last)} in a shard, but must lie in 0 to {listed - 1}")


def shown_ids(first: int, last: int) -> str:
    return f"id {first} is" if first == last else f"ids {first} to {last}: each is"


def runs(numbers: Sequence[int] | Rows) -> Iterator[tuple[int, int]]:
    """The first and last of each run of consecutive numbers."""
    values = np.asarray(numbers)
    if len(values):
        for run in np.split(values, np.flatnonzero(np.diff(values) != 1) + 1):
            yield int(run[0]), int(run[-1])


def _wrong_counts(rows: SplitRows, manifest: Manifest, info: SplitInfo) -> Iterator[Finding]:
    seen = class_counts(rows.rows, len(manifest.classes))
    for label, (count, promised) in enumerate(zip(seen, info.histogram, strict=True)):
        if count != promised:
            name = f"class {label} ({manifest.classes[label].wnid})"
            what = f"{name} has {count:,} samples, {MANIFEST_NAME} says {promised:,}"
            yield Finding(Kind.COUNTS, path_in(rows.split, INDEX_NAME), what)


def duplicates(splits: Sequence[SplitRows]) -> Iterator[Finding]:
    """Images whose bytes occur more than once. Warnings: ImageNet itself has some.

    Each occurrence after the first is one finding, and tells where the first one is.
    """
    starts = np.cumsum([0, *(len(split.rows) for split in splits)])
    hashes = np.concatenate([split.rows["sha256"] for split in splits]) if splits else np.empty((0, 4), "u8")
    for first, *others in _equal(hashes[:, 0], hashes[:, 1]):  # 16 of 32 bytes: two alike by chance are out of reach
        for other in others:
            yield _duplicate(*_located(splits, starts, first), *_located(splits, starts, other))


def _located(splits: Sequence[SplitRows], starts: Rows, position: int) -> tuple[SplitRows, int]:
    number = int(np.searchsorted(starts, position, side="right")) - 1
    return splits[number], position - int(starts[number])


def _duplicate(split: SplitRows, place: int, other_split: SplitRows, other_place: int) -> Finding:
    first, other = split.rows[place], other_split.rows[other_place]
    what = (
        f"record {other['record']} (id {other['id']}, label {other['label']}): the image is byte for byte "
        f"record {first['record']} of {split.path(place)} (id {first['id']}, label {first['label']})"
    )
    kind = Kind.TWICE if split is other_split else Kind.TWO_SPLITS
    if first["label"] != other["label"]:
        kind = Kind.TWO_LABELS
    images = (split.at(place), other_split.at(other_place))
    return Finding(kind, other_split.path(other_place), what, is_warning=True, images=images)


def _equal(values: Rows, tie: Rows | None = None) -> Iterator[list[int]]:
    """The positions of equal values, group by group in the order of their first; values that occur once are left out.

    Sorted by `values`; where these are equal, `tie` has to be too.
    """
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = np.flatnonzero(np.concatenate([[len(values) > 0], ordered[1:] != ordered[:-1]]))
    ends = np.append(starts[1:], len(values))
    several = ends - starts > 1
    runs = [order[start:end].tolist() for start, end in zip(starts[several], ends[several], strict=True)]
    groups = [group for run in runs for group in _split_by(run, tie) if len(group) > 1]
    yield from sorted(groups)


def _split_by(positions: list[int], tie: Rows | None) -> Iterable[list[int]]:
    if tie is None:
        return [positions]
    parts: dict[int, list[int]] = {}
    for position in positions:
        parts.setdefault(int(tie[position]), []).append(position)
    return parts.values()
