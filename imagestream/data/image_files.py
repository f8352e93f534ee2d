"""Images that lie as files in folders, read and decoded by loader processes as samples of shards are."""

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import torch
from torch.utils.data import Dataset

from imagestream.data.batches import EvalCollate, RawBatch, Tolerant
from imagestream.data.buffers import SharedBlocks
from imagestream.data.dataset import IGNORED_LABEL, EncodedSample
from imagestream.data.timed_loader import TimedLoader, start_worker
from imagestream.data.watchdog import StallWatch
from imagestream.decode.backends import Decoder
from imagestream.decode.crops import CenterCrop
from imagestream.decode.limits import MAX_FILE_BYTES, MAX_PIXELS
from imagestream.decode.pillow import DecodeError, upright
from imagestream.storage.errors import PlaceError
from imagestream.storage.protocol import Place

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
PREFETCH_FACTOR = 2
BLOCKS_BEYOND_PREFETCH = 3  # one is filled, one used, and one may be on its way


class ImageFile(NamedTuple):
    """A file of a place."""

    place: Place
    name: str
    size_bytes: int

    def __str__(self) -> str:
        return f"{self.place}/{self.name}"


def image_files(place: Place, folder: str = "") -> Iterator[ImageFile]:
    """Yield the images in a folder and below it, by the endings of their names, in order of their names.

    At any time one folder's names are in memory. A folder that links to one around it is passed over, and names that
    begin with a dot.

    Raises:
        PlaceError: the place cannot be read.
    """
    yield from _below(place, folder, ())


def _below(place: Place, folder: str, around: tuple[str, ...]) -> Iterator[ImageFile]:
    if place.path is not None:
        real = os.path.realpath(place.path / folder)
        if real in around:
            return
        around = (*around, real)
    for name, size_bytes in place.sizes(folder).items():
        if name.lower().endswith(SUFFIXES) and not name.startswith("."):
            yield ImageFile(place, f"{folder}{name}", size_bytes)
    for name in place.names(folder):
        if name.endswith("/") and not name.startswith("."):
            yield from _below(place, f"{folder}{name}", around)


def file_loader(
    files: Iterable[ImageFile],
    decoder: Decoder,
    crop: CenterCrop,
    *,
    batch_size: int,
    num_workers: int,
    turn: bool = False,
    stall_limit_s: float = 600.0,
) -> Iterator[tuple[list[ImageFile], RawBatch]]:
    """Yield batches of files, in their order, with their pixels.

    What cannot be read or decoded is black, and is in the batch's `faults`. A few batches are in memory at any time,
    however many files there are.

    Args:
        num_workers: loader processes; 0: none.
        turn: as their EXIF orientation says.
        stall_limit_s: how long a batch may take.
    """
    waiting: list[list[ImageFile]] = []

    def batches() -> Iterator[list[ImageFile]]:
        batch: list[ImageFile] = []
        for file in files:
            batch.append(file)
            if len(batch) == batch_size:
                waiting.append(batch)
                yield batch
                batch = []
        if batch:
            waiting.append(batch)
            yield batch

    collate = EvalCollate(decoder, crop)
    collate.blocks = SharedBlocks(num_workers, PREFETCH_FACTOR + BLOCKS_BEYOND_PREFETCH)
    watch = StallWatch(stall_limit_s, workers=num_workers, rank=0, doing=lambda: "reading image files")
    loader = TimedLoader(
        _Files(turn),
        batch_sampler=batches(),
        collate_fn=Tolerant(collate, max_pixels=MAX_PIXELS),
        num_workers=num_workers,
        prefetch_factor=PREFETCH_FACTOR if num_workers else None,
        worker_init_fn=partial(start_worker, watch),
        multiprocessing_context="fork" if num_workers else None,
        generator=torch.Generator(),
    )
    loader.watch, loader.blocks = watch, collate.blocks
    for raw in loader.raw_batches():
        yield waiting.pop(0), raw


class _Files(Dataset[EncodedSample]):
    """Reads files, several at once from a place that takes its time to answer."""

    def __init__(self, turn: bool) -> None:
        self.turn = turn

    def __getitem__(self, file: ImageFile) -> EncodedSample:
        return _read(file, turn=self.turn)

    def __getitems__(self, files: Sequence[ImageFile]) -> list[EncodedSample]:
        at_once = max(file.place.concurrency for file in files)
        if at_once == 1:
            return [self[file] for file in files]
        with ThreadPoolExecutor(at_once) as pool:
            return list(pool.map(self.__getitem__, files))


def _read(file: ImageFile, *, turn: bool) -> EncodedSample:
    sample = EncodedSample(b"", IGNORED_LABEL, 0, 0)
    if file.size_bytes > MAX_FILE_BYTES:
        return sample._replace(fault=f"{file.size_bytes:,} bytes are more than the {MAX_FILE_BYTES:,} allowed")
    try:
        image = file.place.read(file.name)
        return sample._replace(image=upright(image) if turn else image)
    except (OSError, PlaceError, DecodeError) as error:
        return sample._replace(fault=str(error))
