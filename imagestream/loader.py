"""`imagestream.Loader`: batches of images out of MDS shards, in an order and with crops that survive any restart."""

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch

from imagestream import world as worlds
from imagestream.augment.policy import Policy
from imagestream.cores import available_cores
from imagestream.data.batches import EvalCollate, RawBatch, TrainCollate
from imagestream.data.buffers import SharedBlocks
from imagestream.data.dataset import IGNORED_LABEL, StreamingEvalImages, StreamingImages
from imagestream.data.dataset_files import DatasetFiles
from imagestream.data.ledger import Ledger
from imagestream.data.opening import StreamOptions, check_nodes, open_eval, open_train
from imagestream.data.per_sample import ImageFunction
from imagestream.data.timed_loader import TimedLoader, start_worker
from imagestream.data.watchdog import StallWatch
from imagestream.decode.backends import Decoder, open_decoder
from imagestream.decode.crops import ALGORITHM, CenterCrop, RandomResizedCrop
from imagestream.decode.native.decoder import ResizeIn
from imagestream.limits import MAX_WORKERS, check_whole
from imagestream.world import World

STATE_FORMAT = 1
MAX_AUTO_WORKERS = 12  # per rank; on 12 cores beside an H200, 11 gave 1.3 times what 8 did
BLOCKS_BEYOND_PREFETCH = 4  # one is filled, one used, one copied ahead, and one may be on its way


class StateError(ValueError):
    """A loader's state cannot be resumed from: it is damaged, or of a loader with other data or settings."""


class BatchOrderError(RuntimeError):
    """A batch has come that is not the next one."""


@dataclass(frozen=True)
class Normalize:
    """(pixel - mean) / std, by channel.

    Args:
        mean: RGB, on the scale of the pixels, 0 to 255; ImageNet's by default.
        std: likewise.

    Raises:
        ValueError: they are on another scale, such as 0 to 1.
    """

    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)

    def __post_init__(self) -> None:
        if not (0 <= min(self.mean) <= max(self.mean) <= 255 and 1 <= min(self.std) <= max(self.std) <= 255):
            raise ValueError(
                f"mean: {self.mean} and std: {self.std} must be on the scale of 0 to 255, std from 1; multiply values "
                "on the scale of 0 to 1 by 255"
            )


class ToDevice:
    """Move a batch to the device, and normalise it there if wanted.

    uint8 crosses the bus, a quarter of float32's bytes. Permuting (B, H, W, 3) gives (B, 3, H, W) in channels_last
    without a copy.
    """

    def __init__(self, device: torch.device, normalize: Normalize | None) -> None:
        self.device = device
        self._statistics: tuple[torch.Tensor, torch.Tensor] | None = None
        if normalize is not None:
            mean, std = (torch.tensor(one, device=device).view(1, 3, 1, 1) for one in (normalize.mean, normalize.std))
            self._statistics = mean, std

    def __call__(self, batch: RawBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images (B, 3, H, W), channels_last, float32 of about -2 to 3 or uint8; labels: int64 (B,)."""
        images = batch.images.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
        labels = batch.labels.to(self.device, non_blocking=True)
        if self._statistics is None:
            return images, labels
        mean, std = self._statistics
        return torch.sub(images, mean).div_(std), labels


class Loader(TimedLoader):
    """Images and labels out of MDS shards, on a disk or in S3, for training or evaluation.

    Yields `(images, labels)`: images (B, 3, H, W), channels_last, RGB, float32 normalised or uint8; labels int64 (B,).

    The crop decides what a pass is. With `RandomResizedCrop` it is an epoch of training: shuffled by (seed, epoch), cut
    into whole global batches, the incomplete last one left out; each iteration is the next epoch. With `CenterCrop` it
    is an evaluation: in order, each sample once over all ranks, as many batches on each rank; where the count does not
    divide, the last sample of some ranks is a repeat with the label -100, which torch's losses leave out by default.

    Nothing random is carried along: a sample's crop depends on (seed, epoch, sample) alone. So `state_dict()` is a few
    numbers, and a loop that was killed continues with the same batches, pixel for pixel, on any number of workers and,
    where `batch_size` times the ranks stays the same, on any number of ranks.

    Args:
        data: the dataset: a folder of shards, or s3://bucket/path. A `DatasetFiles` is taken as it is.
        split: the dataset's subfolder; '' for none.
        cache: folder to which shards are fetched; needed for S3. None: they are read where they are.
        batch_size: images of a batch of this process.
        seed: of the order and of the crops.
        crop: `RandomResizedCrop` to train, `CenterCrop` to evaluate.
        transforms: applied after crop and mirror while training: augmentations such as `RandAugment`, in C where the
            native decoder is used, and functions of one PIL image in RGB that return one of the same size. They draw
            from the global generators of `random`, numpy and torch, which are seeded for each sample.
        normalize: None: images stay uint8, 0 to 255.
        device: where batches go; `cuda` is the current one. Copies run ahead of their use.
        num_workers: loader processes of this process; `auto`: the machine's cores shared among its ranks, at most 12.
            0: none, for debugging.
        columns: the names of the shards' columns of images and of labels.
        decoder: `native`, `pillow`, or `auto`: native where it is built.
        resize_in: `rgb`: Pillow's pixels; `ycbcr` and `dct`: faster, near them (docs/performance.md).
        options: how shards are fetched and samples ordered.
        world: which process of a job this is. None: torch.distributed's where it is initialised, else a job of one.
            Give it to processes that do without torch.distributed; each then keeps shared memory of its own.

    Raises:
        DataError: the dataset is not there, is damaged, or does not fit the settings.
        DecoderError: the decoder that is asked for is not built.
        ValueError: a setting is out of range.

    Construction is collective: with torch.distributed, all ranks construct the same loader at the same time.
    """

    dataset: StreamingImages | StreamingEvalImages

    def __init__(
        self,
        data: str | os.PathLike[str] | DatasetFiles,
        *,
        split: str = "train",
        cache: str | os.PathLike[str] | None = None,
        batch_size: int,
        seed: int = 0,
        crop: RandomResizedCrop | CenterCrop,
        transforms: Sequence[ImageFunction] = (),
        normalize: Normalize | None = Normalize(),  # it is frozen
        device: str | torch.device = "cpu",
        num_workers: int | Literal["auto"] = "auto",
        columns: tuple[str, str] = ("x", "y"),
        decoder: Literal["auto", "native", "pillow"] = "auto",
        resize_in: ResizeIn = "rgb",
        options: StreamOptions = StreamOptions(),  # noqa: B008  # it is frozen
        world: World | None = None,
    ) -> None:
        _check_count("batch_size", batch_size, least=1)
        _check_count("seed", seed, least=0)
        _check_crop(crop, transforms, batch_size, resize_in)
        place = worlds.detect() if world is None else _checked(world)
        workers, target = worker_count(num_workers, place.local_size), _device(device)
        self.files, self.split, self.world, self._options = files_of(data, cache, columns), split, place, options
        self.is_training = isinstance(crop, RandomResizedCrop)
        found = open_decoder(decoder, resize_in=resize_in)
        self._settings = {
            "fingerprint": self.files.fingerprint(split),
            "seed": seed,
            "global_batch_size": batch_size * place.size,
            "shuffle": [options.shuffle_algo, options.shuffle_block_size, options.num_canonical_nodes],
            "decoder": found.name,
            "augmentation": ALGORITHM,
            "crop": _describe(crop),
            "columns": list(self.files.columns),
        }
        if policies := [repr(function) for function in transforms if isinstance(function, Policy)]:
            self._settings["transforms"] = policies
        # Before anything is opened together, for the ranks would wait for each other.
        _check_same_everywhere(self._settings | {"split": split, "options": repr(options)})
        dataset, collate = self._open(crop, found, transforms, batch_size=batch_size, seed=seed, workers=workers)
        self.watch = StallWatch(options.stall_limit_s, workers=workers, rank=place.rank, doing=dataset.status)
        super().__init__(
            dataset,
            batch_size=int(dataset.batch_size),  # of different images
            collate_fn=collate,
            num_workers=workers,
            prefetch_factor=options.prefetch_factor if workers else None,
            persistent_workers=workers > 0,
            worker_init_fn=partial(start_worker, self.watch),
            pin_memory=target.type == "cuda",
            drop_last=self.is_training,
            multiprocessing_context="fork" if workers else None,
            generator=torch.Generator(),  # or each iteration would draw from the global one, which loops restore
        )
        self.blocks, self.book, self._to_device = collate.blocks, Ledger(target), ToDevice(target, normalize)
        self.device = target if target.type == "cuda" else None
        self._epoch = self._batch = self._iterations = 0
        self._is_fresh, self._was_loaded = True, False  # no iteration has begun at this place; it is a state's

    def _open(
        self,
        crop: RandomResizedCrop | CenterCrop,
        decoder: Decoder,
        transforms: Sequence[ImageFunction],
        *,
        batch_size: int,
        seed: int,
        workers: int,
    ) -> tuple[StreamingImages | StreamingEvalImages, TrainCollate | EvalCollate]:
        """Return the split as the crop wants it, and what makes batches of its samples; collective."""
        where = (self.files, self.split, self._options)
        opening: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "place": self.world}
        dataset: StreamingImages | StreamingEvalImages
        collate: TrainCollate | EvalCollate
        if isinstance(crop, RandomResizedCrop):
            dataset = open_train(*where, repeats=crop.repeats, seed=seed, **opening)
            collate = TrainCollate(decoder, crop, seed=seed, transforms=transforms)
        else:
            dataset, collate = open_eval(*where, **opening), EvalCollate(decoder, crop)
        collate.name_of = dataset.name_of
        collate.blocks = SharedBlocks(workers, self._options.prefetch_factor + BLOCKS_BEYOND_PREFETCH)
        return dataset, collate

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:  # type: ignore[override]  # as above
        if self.is_training and not self._is_fresh and self._batch:
            self._epoch, self._batch = self._epoch + 1, 0  # the loop before this one was left early
        if self.is_training and not self._was_loaded:  # an order that was begun continues, on any number of machines
            check_nodes(self._options.num_canonical_nodes, self.world.nodes)
        self._is_fresh = False
        self._iterations += 1
        mine = self._iterations
        batches = self.raw_batches()
        while True:
            if mine != self._iterations:
                raise BatchOrderError(
                    "this loader has a newer iterator, so this one cannot continue; use one at a time"
                )
            batch = next(batches, None)
            if batch is None:
                break
            if self.is_training:
                self._note(batch)
            started = time.perf_counter()
            moved = self._to_device(batch)
            self.copied_seconds += time.perf_counter() - started
            del batch  # or its memory would be in use until the next one is here
            yield moved
            del moved
        if self.is_training:
            self._epoch, self._batch = self._epoch + 1, 0

    def _note(self, batch: RawBatch) -> None:
        if batch.step != self.step + 1:
            raise BatchOrderError(
                f"rank {self.world.rank}: the loader gave batch {batch.step} where {self.step + 1} is the next"
            )
        self._batch += 1
        self.book.add(batch.view_hashes)

    @property
    def epoch(self) -> int:
        """The epoch of the next batch, from 0; after an epoch's last one, the same until its iteration has ended."""
        return self._epoch

    @property
    def step(self) -> int:
        """The number of the last training batch that was handed out, from 0 over all epochs; -1 before the first."""
        return self._epoch * self.steps_per_epoch + self._batch - 1

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch."""
        return len(self)

    @property
    def ledger(self) -> str | None:
        """SHA-256 (hex) over all global batches so far: samples, crops and mirrors; collective.

        None: a state without one was loaded (see `state_dict`).
        """
        return self.book.settle() or None

    def state_dict(self) -> dict[str, Any]:
        """Return where this loader is, to resume from after the batch that was handed out last; {} for an evaluation.

        It is the same on all ranks, of plain numbers and text, and not collective: one rank may call it alone. With
        several ranks it holds the ledger only if each of them has read `ledger` since the last batch.
        """
        if not self.is_training:
            return {}
        is_known = self.book.is_settled or self.world.size == 1
        return {
            "format": STATE_FORMAT,
            "epoch": self._epoch,
            "batch": self._batch,
            "settings": dict(self._settings),
            "order": self.dataset.order(),
            "ledger": (self.ledger or "") if is_known else "",
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state, here or in another process, in the next iteration; each rank loads the same one.

        Raises:
            StateError: it is of a loader with other data or settings, each named with both values; or it is damaged.
        """
        if not self.is_training and not state:
            return
        _check_state(state, self.steps_per_epoch)
        before = {"columns": self._settings["columns"]} | state["settings"]  # older ones have none
        if differences := [
            f"{name} was {before.get(name)!r} and is {self._settings.get(name)!r}"
            for name in {**self._settings, **before}
            if before.get(name) != self._settings.get(name)
        ]:
            raise StateError(f"the state is another loader's: {'; '.join(differences)}")
        self.begin_at(state["epoch"], state["batch"], state["order"])
        self.book.load(state["ledger"], [])

    def begin_at(self, epoch: int, batch: int, order: dict[str, Any] | None = None) -> None:
        """Have the next iteration begin at a batch of an epoch, both from 0; each rank does so."""
        self.dataset.begin_at(epoch, batch, order)
        self._epoch, self._batch, self._is_fresh, self._was_loaded = epoch, batch, True, True


def files_of(
    data: str | os.PathLike[str] | DatasetFiles, cache: str | os.PathLike[str] | None, columns: tuple[str, str]
) -> DatasetFiles:
    """Return the dataset at a place.

    Raises:
        ValueError: a bucket is given, and no cache.
    """
    if isinstance(data, DatasetFiles):
        return data
    place = os.fspath(data)
    if cache is not None:
        return DatasetFiles(place, os.fspath(cache), columns=columns)
    if "://" in place:
        raise ValueError(f"cache: {place} needs a folder to which shards are fetched, as in cache='/tmp/mds-cache'")
    return DatasetFiles(None, place, columns=columns)


def worker_count(wanted: int | Literal["auto"], local_ranks: int) -> int:
    """Return loader processes per rank: as wanted, or the machine's cores shared among its ranks."""
    if wanted != "auto":
        check_whole("num_workers", wanted, 0, MAX_WORKERS)
        return wanted
    return max(1, min(MAX_AUTO_WORKERS, available_cores() // local_ranks))


def count_real(labels: torch.Tensor) -> int:
    """Return how many of a batch's samples count: repeats that fill the last batch of an evaluation do not."""
    return int((labels != IGNORED_LABEL).sum())


def _check_same_everywhere(mine: dict[str, Any]) -> None:
    """Raise ValueError, on all ranks, where they construct different loaders: together they would give nonsense."""
    everywhere = worlds.gathered(mine) if torch.distributed.is_initialized() else [mine]
    for rank, theirs in enumerate(everywhere):
        if other := [name for name in mine if theirs[name] != everywhere[0][name]]:
            name = other[0]
            raise ValueError(f"{name}: {everywhere[0][name]!r} on rank 0, and {theirs[name]!r} on rank {rank}")


def _checked(world: World) -> World:
    if torch.distributed.is_initialized() and world != (found := worlds.detect()):
        raise ValueError(f"world: {world} is given, and torch.distributed has {found}; leave it out")
    if not (0 <= world.rank < world.size and world.size % world.local_size == 0):
        raise ValueError(f"world: {world} must have a rank from 0 to its size - 1, and a size that local_size divides")
    if world.local_size > 1 and not torch.distributed.is_initialized():
        raise ValueError(
            f"world: {world} has several processes on a machine, which need torch.distributed to share memory; "
            "initialise it, or give rank and size alone"
        )
    return world


def _device(wanted: str | torch.device) -> torch.device:
    device = torch.device(wanted)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _describe(crop: RandomResizedCrop | CenterCrop) -> list[Any]:
    way = [] if crop.interpolation == "bilinear" else [crop.interpolation]  # of states that are older it is not noted
    if isinstance(crop, CenterCrop):
        return [crop.size, crop.resize, *way]
    size = crop.size if isinstance(crop.size, int) else "by step"
    described = [size, *map(float, (*crop.scale, *crop.ratio, crop.flip_prob)), *way]
    return described if crop.repeats == 1 else [*described, crop.repeats]


def _check_crop(crop: Any, transforms: Sequence[ImageFunction], batch_size: int, resize_in: str) -> None:
    if not isinstance(crop, RandomResizedCrop | CenterCrop):
        raise ValueError(f"crop: {crop!r} must be imagestream.RandomResizedCrop or imagestream.CenterCrop")
    if not isinstance(transforms, Sequence) or not all(callable(function) for function in transforms):
        raise ValueError(f"transforms: {transforms!r} must be a list of functions")
    if transforms and isinstance(crop, CenterCrop):
        raise ValueError("transforms: they are for training; with CenterCrop leave them out")
    if isinstance(crop, RandomResizedCrop) and batch_size % crop.repeats:
        raise ValueError(f"batch_size: {batch_size} must be a multiple of the crop's repeats, which are {crop.repeats}")
    if crop.interpolation == "bicubic" and resize_in != "rgb":
        raise ValueError(f"resize_in: {resize_in!r} must be 'rgb' with a crop whose interpolation is bicubic")


def _check_count(name: str, value: Any, *, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name}: {value!r} must be a whole number from {least}")


def _check_state(state: Any, steps_per_epoch: int) -> None:
    if not isinstance(state, dict) or state.get("format") != STATE_FORMAT:
        seen = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise StateError(f"this is no state of a training loader of format {STATE_FORMAT} (seen: {seen!r})")
    kinds = {"epoch": int, "batch": int, "settings": dict, "order": dict, "ledger": str}
    if odd := [name for name, kind in kinds.items() if not isinstance(state.get(name), kind)]:
        raise StateError(f"the loader's state is damaged: {', '.join(odd)}")
    if state["epoch"] < 0 or not 0 <= state["batch"] <= steps_per_epoch:
        raise StateError(
            f"the loader's state is damaged: epoch {state['epoch']}, batch {state['batch']} of {steps_per_epoch}"
        )
