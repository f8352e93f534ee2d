"""The images to predict: files, folders and shards, on a disk or in S3, as batches of pixels in their order."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from imagestream.cores import available_cores
from imagestream.data.batches import EvalCollate, RawBatch, Tolerant
from imagestream.data.dataset_files import DatasetFiles
from imagestream.data.image_files import ImageFile, file_loader, image_files
from imagestream.data.source_paths import SourcePaths
from imagestream.decode.backends import open_decoder
from imagestream.decode.crops import CenterCrop
from imagestream.decode.limits import MAX_PIXELS
from imagestream.loader import Loader
from imagestream.storage.places import folder_and_name, open_place
from train.config.run_config import ConfigError

INDEX_NAME = "index.json"


@dataclass(frozen=True)
class Batch:
    """Images that are decoded.

    Attributes:
        paths: by which a person knows them.
        ids: of samples of shards that have them; else None.
        raw: their pixels; those of its `faults` are black.
    """

    paths: Sequence[str]
    ids: Sequence[int | None]
    raw: RawBatch


@dataclass(frozen=True)
class Reading:
    """How images are read.

    Attributes:
        crop: what the network sees of each.
        turn: files as their EXIF orientation says. (Shards are as they were converted.)
        batch_size: images.
        num_workers: loader processes; None: as many as there are cores, but for one.
        cache: folder for shards that are in S3.
    """

    crop: CenterCrop
    turn: bool
    batch_size: int
    num_workers: int | None
    cache: str | None


def crop_of(described: dict[str, Any]) -> CenterCrop:
    """Return the crop that config.json says."""
    pixels = described["pixels"]
    return CenterCrop(pixels["crop_px"], resize=pixels["resize_px"], interpolation=pixels["interpolation"])


def exif_of(described: dict[str, Any]) -> str:
    """Return what was done with the EXIF orientation of the training images, `ignore` or `apply`."""
    return str(described["pixels"].get("exif", "ignore"))


def are_shards(location: str) -> bool:
    """Return whether a location is a folder of MDS shards.

    Raises:
        ConfigError: it is a dataset of several splits.
        PlaceError: it cannot be read.
    """
    place = open_place(location)
    if place.stat(INDEX_NAME) is not None:
        return True
    if splits := [name for name in place.names() if name.endswith("/") and place.stat(name + INDEX_NAME) is not None]:
        raise ConfigError(
            f"{location} holds shards in {', '.join(splits)}; give one of them, as in {location}/{splits[0]}"
        )
    return False


def check_location(location: str) -> None:
    """Refuse a location with nothing to predict, before anything is written.

    Raises:
        ConfigError, PlaceError: it holds no images, or cannot be read.
    """
    if not are_shards(location):
        next(files_at(location))


def count_images(locations: Sequence[str]) -> int:
    """Return how many images there are; it lists all folders."""
    return sum(count_shards(at) if are_shards(at) else sum(1 for _ in files_at(at)) for at in locations)


def count_shards(location: str) -> int:
    """Return how many samples a folder of shards has."""
    data, split = folder_and_name(location.rstrip("/"))
    return DatasetFiles(data, data).count(split)


def files_at(location: str) -> Iterator[ImageFile]:
    """Yield the images of a folder, or the one file that a location names.

    Raises:
        ConfigError: there is nothing.
        PlaceError: it cannot be read.
    """
    where, name = folder_and_name(location.rstrip("/"))
    parent = open_place(where)
    if (seen := parent.stat(name)) is not None:
        yield ImageFile(parent, name, seen.size_bytes)
        return
    is_empty = True
    for file in image_files(open_place(location)):
        is_empty = False
        yield file
    if is_empty:
        raise ConfigError(f"{location} is not an image, a folder with images in it, or a folder of shards")


def batches_of(locations: Sequence[str], reading: Reading) -> Iterator[Batch]:
    """Yield the images in order, folder by folder, whatever their number.

    Raises:
        RefusedError: a location holds no images, or cannot be read.
    """
    files: list[str] = []
    for location in locations:
        if not are_shards(location):
            files.append(location)
            continue
        yield from _of_files(files, reading)
        files = []
        yield from _of_shards(location, reading)
    yield from _of_files(files, reading)


def _of_files(locations: Sequence[str], reading: Reading) -> Iterator[Batch]:
    if not locations:
        return
    loaded = file_loader(
        (file for location in locations for file in files_at(location)),
        open_decoder("auto"),
        reading.crop,
        batch_size=reading.batch_size,
        turn=reading.turn,
        num_workers=max(1, available_cores() - 1) if reading.num_workers is None else reading.num_workers,
    )
    for files, raw in loaded:
        yield Batch([str(file) for file in files], [None] * len(files), raw)


def _of_shards(location: str, reading: Reading) -> Iterator[Batch]:
    data, split = folder_and_name(location.rstrip("/"))
    loader = Loader(
        data,
        split=split,
        cache=reading.cache,
        batch_size=reading.batch_size,
        crop=reading.crop,
        normalize=None,
        num_workers="auto" if reading.num_workers is None else reading.num_workers,
    )
    assert isinstance(loader.collate_fn, EvalCollate)
    loader.collate_fn = Tolerant(loader.collate_fn, max_pixels=MAX_PIXELS)
    known = SourcePaths(open_place(data), split)
    begin = 0
    for raw in loader.raw_batches():
        positions = range(begin, begin + len(raw.labels))
        begin += len(raw.labels)
        ids = loader.dataset.sample_ids(positions)
        paths = known.of(ids) if ids is not None and known else [None] * len(positions)
        names = [path or f"{location.rstrip('/')}#{position}" for path, position in zip(paths, positions, strict=True)]
        yield Batch(names, ids or [None] * len(positions), raw)
