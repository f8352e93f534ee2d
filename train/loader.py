"""From undecoded samples to normalised batches on the device."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from composer.core import DataSpec
from composer.utils import dist
from torch.utils.data import DataLoader

from train.algorithms import PerSampleAlgorithm
from train.augment import View, center_view, random_resized_crop, sample_rng, view_hash
from train.dataset import IGNORED_LABEL, MAX_AUTO_WORKERS, Sample, StreamingImages
from train.decode.backends import Decoder, open_decoder
from train.decode.pillow import DecodeError
from train.per_sample import PerSample
from train.sections import DataConfig
from train.watchdog import StallWatch


class RawBatch(NamedTuple):
    """What a loader worker sends to its rank.

    Attributes:
        images: uint8 (B, H, W, 3), RGB, 0-255.
        labels: int64 (B,).
        view_hashes: int64 (B,), the ledger's entries.
    """

    images: torch.Tensor
    labels: torch.Tensor
    view_hashes: torch.Tensor


class TrainCollate:
    """Cut, decode, mirror and augment a batch as (seed, epoch, sample id) say."""

    def __init__(self, cfg: DataConfig, seed: int, algorithms: Sequence[PerSampleAlgorithm] = ()) -> None:
        self.cfg, self.seed, self.per_sample = cfg, seed, PerSample(algorithms, seed=seed)
        self.decoder = open_decoder(cfg.decoder, dct_scaling=cfg.dct_scaling)

    def __call__(self, samples: Sequence[Sample]) -> RawBatch:
        cfg, views, hashes = self.cfg, [], []
        for sample, (width, height) in zip(samples, _image_sizes(self.decoder, samples), strict=True):
            rng = sample_rng(self.seed, sample.epoch, sample.sample_id)
            view = random_resized_crop(
                width, height, rng, scale=cfg.crop_scale, ratio=cfg.crop_ratio, flip_prob=cfg.flip_prob
            )
            views.append(view)
            hashes.append(view_hash(sample.epoch, sample.sample_id, view))
        batch = _decode(self.decoder, samples, views, hashes, cfg.crop_size, bounded=True)
        if self.per_sample:
            draws = self.per_sample(batch.images, [(sample.epoch, sample.sample_id) for sample in samples])
            batch.view_hashes.add_(draws)  # wraps around, as it should
        return batch


class EvalCollate:
    """Cut the centre out of each image and decode it."""

    def __init__(self, cfg: DataConfig) -> None:
        self.cfg = cfg
        self.decoder = open_decoder(cfg.decoder, dct_scaling=cfg.dct_scaling)

    def __call__(self, samples: Sequence[Sample]) -> RawBatch:
        size = self.cfg.eval_crop_size
        sizes = _image_sizes(self.decoder, samples)
        views = [center_view(*edges, resize_size=self.cfg.eval_resize_size, crop_size=size) for edges in sizes]
        return _decode(self.decoder, samples, views, [0] * len(samples), size, bounded=False)


class TimedLoader(DataLoader[RawBatch]):
    """A DataLoader that knows how long its rank has waited for it, `waited_seconds`, and when that is too long."""

    waited_seconds = 0.0
    watch: AbstractContextManager[None] = nullcontext()

    def __iter__(self) -> Iterator[RawBatch]:  # type: ignore[override]  # torch promises its own iterator class
        with self.watch:
            batches = super().__iter__()
        while True:
            start = time.perf_counter()
            try:
                with self.watch:
                    batch = next(batches)
            except StopIteration:
                return
            self.waited_seconds += time.perf_counter() - start
            yield batch


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
        return (images.float() - self.mean) / self.std, labels


def build_train_spec(
    dataset: StreamingImages,
    cfg: DataConfig,
    *,
    seed: int,
    device: torch.device,
    on_batch: Callable[[RawBatch], None],
    algorithms: Sequence[PerSampleAlgorithm] = (),
) -> DataSpec:
    """Return the training data for Composer's Trainer.

    Args:
        on_batch: called in the rank with each batch before any of Composer's algorithms sees it.
        algorithms: those that change one image at a time.
    """
    to_device = ToDevice(cfg, device)

    def transform(batch: RawBatch) -> tuple[torch.Tensor, torch.Tensor]:
        on_batch(batch)
        return to_device(batch)

    loader = _build_loader(dataset, TrainCollate(cfg, seed, algorithms), cfg, device, drop_last=True)
    return DataSpec(loader, batch_transforms=transform, get_num_samples_in_batch=lambda batch: len(batch[1]))


def build_eval_spec(dataset: StreamingImages, cfg: DataConfig, *, device: torch.device) -> DataSpec:
    """Return evaluation data for Composer's Trainer; repeats that fill the last batch are not counted as samples."""
    loader = _build_loader(dataset, EvalCollate(cfg), cfg, device, drop_last=False)
    return DataSpec(loader, batch_transforms=ToDevice(cfg, device), get_num_samples_in_batch=_count_real_samples)


def worker_count(cfg: DataConfig) -> int:
    """Return loader processes per rank: as configured, or the node's cores shared among its ranks."""
    if cfg.num_workers != "auto":
        return cfg.num_workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MAX_AUTO_WORKERS, cores // dist.get_local_world_size()))


def _build_loader(
    dataset: StreamingImages,
    collate: Callable[[Sequence[Sample]], RawBatch],
    cfg: DataConfig,
    device: torch.device,
    *,
    drop_last: bool,
) -> TimedLoader:
    workers = worker_count(cfg)
    watch = StallWatch(cfg.stall_limit_s, workers=workers, rank=dist.get_global_rank(), doing=dataset.says_what_it_does)
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
    loader.watch = watch
    return loader


def _start_worker(watch: StallWatch, worker: int) -> None:
    torch.set_num_threads(1)  # workers are the parallelism; threads in each would fight over the cores
    watch.report_on_signal(worker)


def _image_sizes(decoder: Decoder, samples: Sequence[Sample]) -> list[tuple[int, int]]:
    try:
        return decoder.image_sizes([s.image for s in samples])
    except DecodeError as error:
        raise _naming_the_sample(error, samples) from error


def _decode(
    decoder: Decoder, samples: Sequence[Sample], views: list[View], hashes: list[int], size: int, *, bounded: bool
) -> RawBatch:
    try:
        images = decoder.decode_batch([s.image for s in samples], views, size, bounded=bounded)
    except DecodeError as error:
        raise _naming_the_sample(error, samples) from error
    labels = torch.tensor([s.label for s in samples], dtype=torch.int64)
    return RawBatch(images, labels, torch.tensor(hashes, dtype=torch.int64))


def _naming_the_sample(error: DecodeError, samples: Sequence[Sample]) -> DecodeError:
    bad = samples[error.index]
    return DecodeError(f"sample {bad.sample_id} cannot be decoded: {error}", error.index)


def _count_real_samples(batch: Any) -> int:
    return int((batch[1] != IGNORED_LABEL).sum())
