"""The pictures of an audit's report: which records are shown, and how they are made small. Records are read again."""

import contextlib
import struct
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from convert.auditing.findings import RecordAt, path_in
from convert.auditing.index import ShardEntry
from convert.auditing.splits import SplitRows
from convert.images import FORMATS
from convert.jpeg_header import is_safe_to_scale
from convert.pool import note
from imagestream.decode.limits import MAX_PIXELS
from imagestream.mds.shard_reader import ShardError, decode_record, raw_bytes, record_offsets
from imagestream.storage.protocol import Place

PER_CLASS = 8  # pictures in a class's sheet
PER_CLASS_OF_OTHERS = 2  # of these from each split but the largest
TILE_PX, GAP_PX, SPLIT_GAP_PX = 96, 4, 20
PICTURE_PX = 200  # longer side of a picture shown whole
QUALITY = 85
_GREY = (225, 225, 225)  # in place of a picture that cannot be had


class Wanted(NamedTuple):
    """A picture of a record: its middle as a square tile, or the whole of it."""

    at: RecordAt
    square: bool


@dataclass(frozen=True, slots=True)
class PicturesOfShard:
    """The pictures wanted of one shard."""

    entry: ShardEntry
    wanted: tuple[Wanted, ...]

    @property
    def name(self) -> str:
        return path_in(self.wanted[0].at.split, self.entry.stored.basename)


def choose(splits: Sequence[SplitRows]) -> dict[int, list[list[RecordAt]]]:
    """The records shown for each class: label -> for each split, up to PER_CLASS in all.

    The choice goes by the images' hashes: it looks random, and is the same for the same images.
    """
    largest = max(range(len(splits)), key=lambda number: len(splits[number].rows), default=0)
    others = PER_CLASS_OF_OTHERS
    quota = [others] * len(splits)
    if splits:
        quota[largest] = max(others, PER_CLASS - others * (len(splits) - 1))
    chosen: dict[int, list[list[RecordAt]]] = {}
    for number, split in enumerate(splits):
        rows = split.rows
        order = np.lexsort((rows["sha256"][:, 0], rows["width_px"] == 0, rows["label"]))  # decoded ones first
        labels = rows["label"][order]
        for label in np.unique(labels[labels >= 0]):
            first = int(np.searchsorted(labels, label))
            last = int(np.searchsorted(labels, label, side="right"))
            positions = order[first : min(last, first + quota[number])]
            per_split = chosen.setdefault(int(label), [[] for _ in splits])
            per_split[number] = [split.at(int(position)) for position in positions]
    return dict(sorted(chosen.items()))


def by_shard(wanted: Iterable[Wanted], splits: Sequence[SplitRows]) -> list[PicturesOfShard]:
    """The same, shard by shard."""
    shards: dict[tuple[str, int], list[Wanted]] = {}
    for want in sorted(set(wanted)):
        shards.setdefault((want.at.split, want.at.shard), []).append(want)
    indexes = {split.split: split.index for split in splits}
    return [
        PicturesOfShard(indexes[split].shards[shard], tuple(group)) for (split, shard), group in sorted(shards.items())
    ]


def pictures(task: PicturesOfShard, *, files: Place) -> dict[Wanted, bytes]:
    """The pictures as JPEGs; those that cannot be read or decoded are left out, as the audit has told why."""
    made: dict[Wanted, bytes] = {}
    note(task.name)
    with contextlib.suppress(OSError, ShardError):
        read = _reader(files, task.wanted[0].at.split, task.entry)
        for want in task.wanted:
            record = decode_record(read(want.at.record), task.entry.columns)
            picture = small(record["x"], square=want.square)
            if picture:
                made[want] = picture
    return made


def small(data: bytes, *, square: bool) -> bytes | None:
    """A small JPEG of an image; None where it does not decode."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # broken EXIF
        try:
            image = Image.open(BytesIO(data), formats=FORMATS)
            if image.width * image.height > MAX_PIXELS:
                return None
            edge_px = TILE_PX if square else PICTURE_PX
            if is_safe_to_scale(data):
                image.draft("RGB", (2 * edge_px, 2 * edge_px))
            rgb = image.convert("RGB")
        except MemoryError:
            raise
        except Exception:  # Pillow's readers raise all kinds
            return None
    if square:
        rgb = ImageOps.fit(rgb, (TILE_PX, TILE_PX), Image.Resampling.BICUBIC)
    else:
        rgb.thumbnail((PICTURE_PX, PICTURE_PX), Image.Resampling.BICUBIC)
    return _jpeg(rgb)


def contact_sheet(tiles: Sequence[Sequence[bytes | None]]) -> tuple[bytes, tuple[int, int]]:
    """Tiles in a row as one JPEG, and its width and height in px; a wider gap parts the splits."""
    groups = [group for group in tiles if group]
    count = sum(map(len, groups))
    width_px = count * TILE_PX + (count - len(groups)) * GAP_PX + (len(groups) - 1) * SPLIT_GAP_PX
    sheet = Image.new("RGB", (max(1, width_px), TILE_PX), "white")
    x_px = 0
    for group in groups:
        for tile in group:
            picture = Image.open(BytesIO(tile)) if tile else Image.new("RGB", (TILE_PX, TILE_PX), _GREY)
            sheet.paste(picture, (x_px, 0))
            x_px += TILE_PX + GAP_PX
        x_px += SPLIT_GAP_PX - GAP_PX
    return _jpeg(sheet), sheet.size


def tiles_of(groups: Iterable[Iterable[RecordAt]], made: Mapping[Wanted, bytes]) -> list[list[bytes | None]]:
    """The tiles of a class's sheet, split by split."""
    return [[made.get(Wanted(at, True)) for at in group] for group in groups]


def _reader(files: Place, split: str, entry: ShardEntry) -> Callable[[int], bytes]:
    """How to read a record of a shard: by itself where the shard is not compressed, else out of the whole."""
    samples, raw = entry.samples, entry.raw_data
    path = path_in(split, raw.basename)
    seen = files.stat(path)
    if seen is not None and seen.size_bytes == raw.bytes:
        head = files.read(path, 0, struct.calcsize(f"<{samples + 2}I"))
        offsets = record_offsets(head, samples=samples, shard_bytes=raw.bytes)
        return lambda record: files.read(path, offsets[record], offsets[record + 1] - offsets[record])
    stored = files.read(path_in(split, entry.stored.basename))
    shard = raw_bytes(stored, entry.compression, size_bytes=raw.bytes)
    offsets = record_offsets(shard, samples=samples, shard_bytes=len(shard))
    return lambda record: shard[offsets[record] : offsets[record + 1]]


def _jpeg(image: Image.Image) -> bytes:
    encoded = BytesIO()
    image.save(encoded, "JPEG", quality=QUALITY)
    return encoded.getvalue()
