"""A run's data: the library's loader, as the configuration wants it."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from composer.core import DataSpec
from composer.utils import dist

from imagestream.data.dataset_files import DatasetFiles
from imagestream.data.opening import StreamOptions
from imagestream.decode.crops import CenterCrop, RandomResizedCrop
from imagestream.loader import Loader, Normalize, count_real, worker_count
from train.config.augmentations import PerSampleAlgorithm
from train.config.sections import DataConfig


def dataset_files(cfg: DataConfig) -> DatasetFiles:
    """Return the dataset that the configuration names."""
    return DatasetFiles(cfg.remote, str(cfg.local), columns=(cfg.columns.image, cfg.columns.label))


def train_loader(
    cfg: DataConfig,
    files: DatasetFiles,
    *,
    seed: int,
    batch_size: int,
    resolution: Callable[[int], int],
    device: torch.device,
    algorithms: Sequence[PerSampleAlgorithm] = (),
) -> Loader:
    """Open the training split; collective over all ranks.

    Args:
        batch_size: images of a batch of this rank.
        resolution: the edge, px, of each batch's images, by the batch's number.
        algorithms: those that change one image at a time.
    """
    crop = RandomResizedCrop(
        resolution,
        scale=cfg.crop_scale,
        ratio=cfg.crop_ratio,
        flip_prob=cfg.flip_prob,
        repeats=cfg.aug_repeats,
        interpolation=cfg.crop_interpolation,
    )
    transforms = [algorithm.policy(cfg.mean) for algorithm in algorithms]
    return _loader(cfg, files, cfg.train_split, crop, batch_size, device, seed=seed, transforms=transforms)


def eval_loader(cfg: DataConfig, files: DatasetFiles, split: str, *, batch_size: int, device: torch.device) -> Loader:
    """Open a split for evaluation; collective over all ranks."""
    crop = CenterCrop(cfg.eval_crop_size, resize=cfg.eval_resize_size, interpolation=cfg.eval_interpolation)
    return _loader(cfg, files, split, crop, batch_size, device)


def train_spec(loader: Loader, on_batch: Callable[[], None]) -> DataSpec:
    """Return the training data for Composer's Trainer.

    Args:
        on_batch: called in the rank when a batch has come, before any of Composer's algorithms sees it.
    """

    def transform(batch: Any) -> Any:
        on_batch()
        return batch

    return DataSpec(loader, batch_transforms=transform, get_num_samples_in_batch=lambda batch: len(batch[1]))


def eval_spec(loader: Loader) -> DataSpec:
    """Return evaluation data for Composer's Trainer; repeats that fill the last batch are not counted as samples."""
    return DataSpec(loader, get_num_samples_in_batch=lambda batch: count_real(batch[1]))


def workers_of(cfg: DataConfig) -> int:
    """Return loader processes per rank."""
    return worker_count(cfg.num_workers, dist.get_local_world_size())


def _loader(
    cfg: DataConfig,
    files: DatasetFiles,
    split: str,
    crop: RandomResizedCrop | CenterCrop,
    batch_size: int,
    device: torch.device,
    **training: Any,
) -> Loader:
    options = StreamOptions(**{name: getattr(cfg, name) for name in StreamOptions.__dataclass_fields__})
    return Loader(
        files,
        split=split,
        batch_size=batch_size,
        crop=crop,
        normalize=Normalize(cfg.mean, cfg.std),
        device=device,
        num_workers=cfg.num_workers,
        decoder=cfg.decoder,
        resize_in=cfg.resize_in,
        options=options,
        **training,
    )
