"""From undecoded samples to normalised batches on the device."""

import gc
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from composer.core import DataSpec
from composer.utils import dist
from torch.utils.data import DataLoader

from imagestream.cores import available_cores
from imagestream.data.buffers import Block, SharedBlocks
from imagestream.data.dataset import IGNORED_LABEL, Sample, StreamingImages
from imagestream.data.labels import Labels
from imagestream.data.watchdog import StallWatch
from imagestream.decode.backends import Decoder, open_decoder
from imagestream.decode.crops import View, center_view, random_resized_crop, sample_draws, view_hash
from imagestream.decode.pillow import DecodeError
from train.config.algorithms import PerSampleAlgorithm
from train.config.sections import DataConfig
from train.per_sample import PerSample
from train.resolution import Resolution
from train.signals import become_worker


class RawBatch(NamedTuple):
    """What a loader worker sends to its rank.

    Attributes:
        images: uint8 (B, H, W, 3), RGB, 0-255.
        labels: int64 (B,).
        view_hashes: int64 (B,), the ledger's entries.
        step: the training batch that it is, from 0 over the whole run; 0 at evaluation.
        stage_s: float64 (3,), seconds that the worker spent on it: waiting for shards, reading records, decoding.
        block: in which the images are, if they are in any.
    """

    images: torch.Tensor
    labels: torch.Tensor
    view_hashes: torch.Tensor
    step: int
    stage_s: torch.Tensor
    block: Block | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Send bytes, and a known block's number: a tensor between processes is a file descriptor, and half a ms."""
        known = self.block is not None and self.block.is_known
        small = [part.numpy() for part in (self.labels, self.view_hashes, self.stage_s)]
        return _received, (self.block, tuple(self.images.shape) if known else self.images, *small, self.step)


def _received(block: Block | None, images: Any, *rest: Any) -> RawBatch:
    labels, view_hashes, stage_s = map(torch.from_numpy, rest[:3])
    return RawBatch(
        images if block is None else SharedBlocks.arrived(block, images), labels, view_hashes, rest[3], stage_s, block
    )


MAX_AUTO_WORKERS = 12  # per rank; on 12 cores beside an H200, 11 gave 1.3 times what 8 did
BLOCKS_BEYOND_PREFETCH = 4  # one is filled, one used, one copied ahead, and one may be on its way


class TrainCollate:
    """Cut, decode, mirror and augment a batch as (seed, epoch, position) say, at the size that its step has."""

    blocks = SharedBlocks(0, 0)
    name_of: Callable[[int], str] = staticmethod("position {}".format)

    def __init__(
        self, cfg: DataConfig, seed: int, resolution: Resolution, algorithms: Sequence[PerSampleAlgorithm] = ()
    ) -> None:
        self.cfg, self.seed, self.resolution = cfg, seed, resolution
        self.per_sample = PerSample(algorithms, seed=seed)
        self.decoder = open_decoder(cfg.decoder, resize_in=cfg.resize_in)

    def __call__(self, samples: Sequence[Sample]) -> RawBatch:
        started = time.perf_counter()
        cfg, views, hashes, size = self.cfg, [], [], self.resolution(samples[0].step)
        for sample, (width, height) in zip(samples, _image_sizes(self.decoder, samples, self.name_of), strict=True):
            draw = sample_draws(self.seed, sample.epoch, sample.position)
            view = random_resized_crop(
                width, height, draw, scale=cfg.crop_scale, ratio=cfg.crop_ratio, flip_prob=cfg.flip_prob
            )
            views.append(view)
            hashes.append(view_hash(sample.epoch, sample.position, view, size))
        batch = _decode(self.decoder, samples, views, hashes, size, self.blocks, bounded=True, name_of=self.name_of)
        if self.per_sample:
            draws = self.per_sample(batch.images, [(sample.epoch, sample.position) for sample in samples])
            batch.view_hashes.add_(draws)  # wraps around, as it should
        batch.stage_s[2] = time.perf_counter() - started
        return batch


class EvalCollate:
    """Cut the centre out of each image and decode it."""

    blocks = SharedBlocks(0, 0)
    name_of: Callable[[int], str] = staticmethod("position {}".format)

    def __init__(self, cfg: DataConfig) -> None:
        self.cfg = cfg
        self.decoder = open_decoder(cfg.decoder, resize_in=cfg.resize_in)

    def __call__(self, samples: Sequence[Sample]) -> RawBatch:
        size = self.cfg.eval_crop_size
        sizes = _image_sizes(self.decoder, samples, self.name_of)
        views = [center_view(*edges, resize_size=self.cfg.eval_resize_size, crop_size=size) for edges in sizes]
        return _decode(
            self.decoder, samples, views, [0] * len(samples), size, self.blocks, bounded=False, name_of=self.name_of
        )


class TimedLoader(DataLoader[RawBatch]):
    """A DataLoader that knows how long its rank has waited for it, and when that is too long.

    Attributes:
        waited_seconds: of the rank, so far.
        copied_seconds: of the rank, handing batches to the device, so far.
        stage_seconds: [waiting for shards, reading, decoding] of all its workers together, so far.
        device: where batches go, if copies are to go ahead of their use.
        blocks: the memory in which workers hand over images.
        labels: which of them there may be, and what they mean; None: any, as they are.
    """

    waited_seconds = copied_seconds = 0.0
    stage_seconds: torch.Tensor = torch.zeros(3, dtype=torch.float64)
    watch: AbstractContextManager[None] = nullcontext()
    device: torch.device | None = None
    blocks = SharedBlocks(0, 0)
    labels: Labels | None = None

    def __iter__(self) -> Iterator[RawBatch]:  # type: ignore[override]  # torch promises its own iterator class
        batches = self._batches()
        return batches if self.device is None else copied_ahead(batches, self.device)

    def _batches(self) -> Iterator[RawBatch]:
        with self.watch:
            batches = super().__iter__()
        while True:
            self.blocks.give_back()
            start = time.perf_counter()
            try:
                with self.watch:
                    batch = next(batches)
            except StopIteration:
                return
            self.waited_seconds += time.perf_counter() - start
            self.stage_seconds = self.stage_seconds + batch.stage_s
            self.blocks.received(batch.images, batch.block)
            if self.labels is not None:  # here, before a copy to the GPU: to look at them there makes it wait
                batch = batch._replace(labels=self.labels(batch.labels))
            yield batch
            del batch  # or its memory would be in use until the next one is here


def copied_ahead(batches: Iterable[RawBatch], device: torch.device) -> Iterator[RawBatch]:
    """Yield batches that are on a CUDA device, the copy of each begun before the step of the one before it.

    The copies run in a stream of their own, beside the step's kernels. Each batch is asked for a step early, which is
    why workers keep one more ready.
    """
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch has no types there
    ahead: RawBatch | None = None
    for batch in batches:
        with torch.cuda.stream(stream):
            images, labels = (part.to(device, non_blocking=True) for part in (batch.images, batch.labels))
        if ahead is not None:
            yield _handed_over(ahead, stream, device)
        ahead = batch._replace(images=images, labels=labels)
    if ahead is not None:
        yield _handed_over(ahead, stream, device)


def _handed_over(batch: RawBatch, stream: "torch.cuda.Stream", device: torch.device) -> RawBatch:
    """Have the step's stream wait for the copy, and the allocator for the step before the memory is used again."""
    now = torch.cuda.current_stream(device)
    now.wait_stream(stream)
    for part in (batch.images, batch.labels):
        part.record_stream(now)
    return batch


class ToDevice:
    """Move a batch to the device and normalise it there.

    uint8 crosses the bus, a quarter of float32's bytes. Permuting (B, H, W, 3) gives (B, 3, H, W) in channels_last
    without a copy.
    """

    def __init__(self, cfg: DataConfig, device: torch.device) -> None:
        self.device = device
        self.mean = torch.tensor(cfg.mean, device=device).view(1, 3, 1, 1)
        self.std = torch.tensor(cfg.std, device=device).view(1, 3, 1, 1)

    def __call__(self, batch: RawBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images: float32 (B, 3, H, W), about -2 to 3, channels_last; labels: int64 (B,)."""
        images = batch.images.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
        labels = batch.labels.to(self.device, non_blocking=True)
        return torch.sub(images, self.mean).div_(self.std), labels


def build_train_spec(
    dataset: StreamingImages,
    cfg: DataConfig,
    *,
    seed: int,
    resolution: Resolution,
    device: torch.device,
    on_batch: Callable[[RawBatch], None],
    algorithms: Sequence[PerSampleAlgorithm] = (),
    labels: Labels | None = None,
) -> DataSpec:
    """Return the training data for Composer's Trainer.

    Args:
        resolution: the edge of each batch's images.
        on_batch: called in the rank with each batch before any of Composer's algorithms sees it.
        algorithms: those that change one image at a time.
        labels: which there may be; None: any.
    """
    to_device = ToDevice(cfg, device)

    def transform(batch: RawBatch) -> tuple[torch.Tensor, torch.Tensor]:
        on_batch(batch)
        started = time.perf_counter()
        moved = to_device(batch)
        loader.copied_seconds += time.perf_counter() - started
        return moved

    loader = _build_loader(dataset, TrainCollate(cfg, seed, resolution, algorithms), cfg, device, drop_last=True)
    loader.labels = labels
    return DataSpec(loader, batch_transforms=transform, get_num_samples_in_batch=lambda batch: len(batch[1]))


def build_eval_spec(
    dataset: StreamingImages, cfg: DataConfig, *, device: torch.device, labels: Labels | None = None
) -> DataSpec:
    """Return evaluation data for Composer's Trainer; repeats that fill the last batch are not counted as samples."""
    loader = _build_loader(dataset, EvalCollate(cfg), cfg, device, drop_last=False)
    loader.labels = labels
    return DataSpec(loader, batch_transforms=ToDevice(cfg, device), get_num_samples_in_batch=_count_real_samples)


def worker_count(cfg: DataConfig) -> int:
    """Return loader processes per rank: as configured, or the node's cores shared among its ranks."""
    if cfg.num_workers != "auto":
        return cfg.num_workers
    return max(1, min(MAX_AUTO_WORKERS, available_cores() // dist.get_local_world_size()))


def _build_loader(
    dataset: StreamingImages,
    collate: TrainCollate | EvalCollate,
    cfg: DataConfig,
    device: torch.device,
    *,
    drop_last: bool,
) -> TimedLoader:
    workers = worker_count(cfg)
    collate.name_of = dataset.name_of
    collate.blocks = SharedBlocks(workers, cfg.prefetch_factor + BLOCKS_BEYOND_PREFETCH)
    watch = StallWatch(cfg.stall_limit_s, workers=workers, rank=dist.get_global_rank(), doing=dataset.status)
    loader = TimedLoader(
        dataset,
        batch_size=dataset.batch_size,
        collate_fn=collate,
        num_workers=workers,
        prefetch_factor=cfg.prefetch_factor if workers else None,
        persistent_workers=workers > 0,
        worker_init_fn=partial(_start_worker, watch),
        pin_memory=device.type == "cuda",
        drop_last=drop_last,
    )
    loader.watch, loader.blocks = watch, collate.blocks
    loader.device = device if device.type == "cuda" else None
    return loader


def _start_worker(watch: StallWatch, worker: int) -> None:
    become_worker()
    gc.freeze()  # what the rank has made stays: to look through it copies the memory of a forked process, for 0.3 s
    torch.set_num_threads(1)  # workers are the parallelism; threads in each would fight over the cores
    watch.report_on_signal(worker)


def _image_sizes(decoder: Decoder, samples: Sequence[Sample], name_of: Callable[[int], str]) -> list[tuple[int, int]]:
    try:
        return decoder.image_sizes([s.image for s in samples])
    except DecodeError as error:
        raise _naming_the_sample(error, samples, name_of) from error


def _decode(
    decoder: Decoder,
    samples: Sequence[Sample],
    views: list[View],
    hashes: list[int],
    size: int,
    blocks: SharedBlocks,
    *,
    bounded: bool,
    name_of: Callable[[int], str],
) -> RawBatch:
    images, block = blocks.images_to_fill(len(samples), size)
    try:
        decoder.decode_batch([s.image for s in samples], views, size, bounded=bounded, out=images)
    except DecodeError as error:
        raise _naming_the_sample(error, samples, name_of) from error
    labels = torch.tensor([s.label for s in samples], dtype=torch.int64)
    stage_s = torch.tensor([sum(s.wait_s for s in samples), sum(s.read_s for s in samples), 0.0], dtype=torch.float64)
    return RawBatch(images, labels, torch.tensor(hashes, dtype=torch.int64), samples[0].step, stage_s, block)


def _naming_the_sample(error: DecodeError, samples: Sequence[Sample], name_of: Callable[[int], str]) -> DecodeError:
    bad = samples[error.index]
    return DecodeError(f"{name_of(bad.position)} cannot be decoded: {error}", error.index)


def _count_real_samples(batch: Any) -> int:
    return int((batch[1] != IGNORED_LABEL).sum())
