"""Samples out of shard files that stay open.

Streaming's reader opens the file, reads eight bytes, reads the record and closes the file, for each sample: a few
system calls on a local disk, and as many messages to the servers of a network file system such as Lustre.
"""

import os
import struct
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from streaming.base.format.mds.encodings import mds_decode

from imagestream.mds.shard_reader import IMAGE_ENCODINGS, is_integer

FILES_KEPT_OPEN = 128
"""Per loader process. A process reads from about `shuffle_block_size` samples at a time, 200 shards of ImageNet; Linux
allows a process 1,024 files unless told otherwise."""


IMAGE_AND_LABEL = ("x", "y")  # as MosaicML's converter of ImageNet and this project's call them


class RecordError(ValueError):
    """A shard has no images and labels in it, or its file is not what its index says."""


class _OpenShard(NamedTuple):
    descriptor: int
    offsets: memoryview  # (samples + 1,) of 32 bits: where each record starts, and where the last one ends


class Records:
    """The images and labels of a dataset's shards, undecoded.

    A file that is replaced or deleted while it is open is still read as it was, and its disk space is not free before
    it is closed: where shards are deleted to make room, keep none open.

    Args:
        shards: Streaming's MDS readers, by shard id.
        columns: the names of those of images and of labels.
        keep_open: files that a process holds open; 0: each is closed after its sample.

    Raises:
        RecordError: a shard has no such columns, or they hold other things.
    """

    def __init__(
        self,
        shards: Sequence[Any],
        *,
        columns: tuple[str, str] = IMAGE_AND_LABEL,
        keep_open: int = FILES_KEPT_OPEN,
    ) -> None:
        self._paths = [os.path.join(shard.dirname, shard.split, shard.raw_data.basename) for shard in shards]
        self._counts = [int(shard.samples) for shard in shards]
        self._layouts = [_layout_of(shard, *columns) for shard in shards]
        self._keep_open = keep_open
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict()}  # descriptors mean nothing to another process

    def read(self, shard_id: int, index: int) -> tuple[bytes, int]:
        """Return the image's bytes and the label of the shard's sample number `index`.

        Raises:
            FileNotFoundError: the shard is not here, or not any more.
            RecordError: the file ends before the record does.
        """
        shard = self._open.get(shard_id) or self._opened(shard_id)
        layout, begin, end = self._layouts[shard_id], shard.offsets[index], shard.offsets[index + 1]
        try:
            image, label = _read_record(shard.descriptor, layout, begin, end)
            there = os.fstat(shard.descriptor).st_size if image is None else end
        finally:
            if not self._keep_open:
                os.close(shard.descriptor)
        if image is None:
            why = f"{max(0, there - begin):,} of them could be read" if there < end else "its columns take other space"
            raise RecordError(
                f"{self._where(shard_id)}: sample {index} is at bytes {begin:,} to {end:,}, and {why}; fetch or "
                "convert the shard again"
            )
        if layout.label_encoding == "int":  # what converters write; Streaming's decoder takes as long as reading
            return image, int.from_bytes(label, "little", signed=True)
        return image, int(mds_decode(layout.label_encoding, label))

    def sample_id(self, shard_id: int, index: int) -> int | None:
        """Return the id that the shards' column `i` gives a sample; None where they have no such column.

        Raises: as `read`.
        """
        layout = self._layouts[shard_id]
        if layout.sample_id is None:
            return None
        shard = self._open.get(shard_id) or self._opened(shard_id)
        try:
            begin = shard.offsets[index]
            sizes = struct.unpack(layout.head, os.pread(shard.descriptor, layout.head_bytes, begin))
            data = layout.sample_id.read(shard.descriptor, begin, sizes)
        finally:
            if not self._keep_open:
                os.close(shard.descriptor)
        if data is None:
            raise RecordError(f"{self._where(shard_id)}: sample {index} has no column i; fetch the shard again")
        return int(mds_decode(layout.id_encoding, data))

    def name(self, shard_id: int) -> str:
        """Return where a shard's file is."""
        return str(self._where(shard_id))

    def close(self) -> None:
        """Close all files."""
        while self._open:
            os.close(self._open.popitem()[1].descriptor)

    def _opened(self, shard_id: int) -> _OpenShard:
        descriptor = os.open(self._paths[shard_id], os.O_RDONLY | os.O_CLOEXEC)
        count = self._counts[shard_id]
        head = os.pread(descriptor, 4 * (count + 2), 0)
        if len(head) != 4 * (count + 2) or int.from_bytes(head[:4], "little") != count:
            os.close(descriptor)
            raise RecordError(f"{self._where(shard_id)} is not a shard of {count:,} samples, as index.json says it is")
        shard = _OpenShard(descriptor, memoryview(head)[4:].cast("I"))
        if self._keep_open:
            self._open[shard_id] = shard
            if len(self._open) > self._keep_open:
                os.close(self._open.popitem(last=False)[1].descriptor)
        return shard

    def _where(self, shard_id: int) -> Path:
        return Path(self._paths[shard_id]).resolve()


class _Column(NamedTuple):
    """A column's size and what lies before it in each record."""

    fixed_bytes: int  # before it: the head and columns of fixed size
    variable_columns: int  # before it
    size: int | None  # in bytes; None: the head says

    def read(self, descriptor: int, begin: int, sizes: tuple[int, ...]) -> bytes | None:
        size = sizes[self.variable_columns] if self.size is None else self.size
        place = begin + self.fixed_bytes + sum(sizes[: self.variable_columns])
        data = os.pread(descriptor, size, place)
        return data if len(data) == size else None


class _Layout(NamedTuple):
    """What all records of a shard have in common: a head, then the columns."""

    head: str  # a format of `struct`: the bytes of each column that has no fixed size
    head_bytes: int
    fixed_bytes: int  # of the head and the columns that have
    image: _Column
    label: _Column
    label_encoding: str
    sample_id: _Column | None
    id_encoding: str


def _read_record(descriptor: int, layout: _Layout, begin: int, end: int) -> tuple[bytes | None, bytes]:
    """Return the image and the label of the record from `begin` to `end`; None where there is no such record.

    The image is read by itself: a copy out of the whole record would take as long as the reading.
    """
    head = os.pread(descriptor, layout.head_bytes, begin)
    if len(head) == layout.head_bytes:
        sizes = struct.unpack(layout.head, head)
        if begin + layout.fixed_bytes + sum(sizes) == end:
            image = layout.image.read(descriptor, begin, sizes)
            label = layout.label.read(descriptor, begin, sizes)
            if label is not None:
                return image, label
    return None, b""


def fault_of_columns(encodings: Mapping[str, str], image: str, label: str) -> str:
    """Return why samples with these columns cannot be trained on, or ''.

    Args:
        encodings: streaming's name of what a column holds, by the column's name.
        image: the column of images.
        label: the column of labels.
    """
    if encodings.get(image) in IMAGE_ENCODINGS and is_integer(encodings.get(label, "")):
        return ""
    seen = ", ".join(f"{name} ({encoding})" for name, encoding in encodings.items())
    fault = f"its columns are {seen}; needed are {image} ({', '.join(IMAGE_ENCODINGS)}) and {label} (int, uint16, ...)"
    if image in encodings and label in encodings:
        return f"{fault}, so convert the images anew"
    return f"{fault}; give the names of the columns, as in columns: {{image: {image}, label: {label}}}"


def _layout_of(shard: Any, image: str, label: str) -> _Layout:
    encodings = dict(zip(shard.column_names, shard.column_encodings, strict=True))
    if fault := fault_of_columns(encodings, image, label):
        raise RecordError(f"{shard.raw_data.basename}: {fault}")
    sizes = [size or None for size in shard.column_sizes]
    head_bytes, columns = 4 * sizes.count(None), {}
    for at, name in enumerate(shard.column_names):
        before = sizes[:at]
        columns[name] = _Column(head_bytes + sum(filter(None, before)), before.count(None), sizes[at])
    fixed_bytes = head_bytes + sum(filter(None, sizes))
    head = f"<{sizes.count(None)}I"
    ids = (columns["i"], encodings["i"]) if is_integer(encodings.get("i", "")) else (None, "")
    return _Layout(head, head_bytes, fixed_bytes, columns[image], columns[label], encodings[label], *ids)
