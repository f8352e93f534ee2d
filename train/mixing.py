"""MixUp and CutMix by turns, the same on any number of ranks."""

import hashlib

import numpy as np
from composer.core import Algorithm, Event, State
from composer.loggers import Logger
from torch import Tensor, nn


class MixUpOrCutMix(Algorithm):
    """Mixes each batch by MixUp (arXiv:1710.09412) or by CutMix (arXiv:1905.04899), images and targets, on the device.

    Which one, and how much, follows from the run's seed and the batch's number. An image is mixed with the one that is
    half a batch away. Both are on the same rank, and are the same two on another number of ranks, where each rank's
    part of the batch is an even number of images. (timm mixes an image with one of the same batch, too, in its mode
    "batch"; torchvision with the next one.)

    Args:
        mixup_alpha, cutmix_alpha: of the Beta(alpha, alpha) from which the share of an image, or of its area, is drawn.
        mixup_fraction: of the batches that are mixed, those by MixUp; 0 to 1.
        mixed_fraction: of all batches, those that are mixed; above 0, to 1.
    """

    def __init__(
        self, *, mixup_alpha: float, cutmix_alpha: float, mixup_fraction: float, mixed_fraction: float
    ) -> None:
        self.mixup_alpha, self.cutmix_alpha = mixup_alpha, cutmix_alpha
        self.mixup_fraction, self.mixed_fraction = mixup_fraction, mixed_fraction

    def match(self, event: Event, state: State) -> bool:
        return event == Event.AFTER_DATALOADER

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        draws = generator_of(state.rank_zero_seed, int(state.timestamp.batch))
        is_mixed, is_mixup = draws.random() < self.mixed_fraction, draws.random() < self.mixup_fraction
        if not is_mixed:
            return
        images, labels = state.batch_get_item(0), state.batch_get_item(1)
        if is_mixup:
            share = float(draws.beta(self.mixup_alpha, self.mixup_alpha))
            mixed = images * share + partners(images) * (1 - share)
        else:
            wanted = float(draws.beta(self.cutmix_alpha, self.cutmix_alpha))
            box = box_of(draws, height=images.shape[-2], width=images.shape[-1], kept_share=wanted)
            mixed, share = cut(images, box)
        targets = nn.functional.one_hot(labels, classes_of(state.model)).to(images.dtype)
        state.batch_set_item(0, mixed)
        state.batch_set_item(1, targets * share + partners(targets) * (1 - share))


def generator_of(seed: int, batch: int) -> np.random.Generator:
    """Return the generator of a batch's draws, the same on every rank."""
    digest = hashlib.blake2b(f"mixing/{seed}/{batch}".encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def partners(values: Tensor) -> Tensor:
    """Return for each sample of a batch, along the first dimension, the one half a batch away."""
    return values.roll(len(values) // 2, 0)


Box = tuple[slice, slice]
"""Rows and columns, px."""


def box_of(draws: np.random.Generator, *, height: int, width: int, kept_share: float) -> Box:
    """Return a box of an image's form around a point anywhere, without what is outside; CutMix's own way.

    Args:
        kept_share: of the area, what a whole box would leave; 0 to 1.
    """
    edge = float(np.sqrt(1.0 - kept_share))
    rows, columns = int(height * edge) // 2, int(width * edge) // 2
    row, column = int(draws.integers(height)), int(draws.integers(width))
    return slice(max(row - rows, 0), row + rows), slice(max(column - columns, 0), column + columns)


def cut(images: Tensor, box: Box) -> tuple[Tensor, float]:
    """Return images (B, C, H, W) with their partners' pixels in the box, and the share of each that is its own."""
    rows, columns = box
    mixed = images.clone()
    inside = mixed[..., rows, columns]
    inside.copy_(partners(images[..., rows, columns]))
    return mixed, 1.0 - inside[0, 0].numel() / images[0, 0].numel()


def classes_of(model: nn.Module) -> int:
    """Return how many classes an `ImageClassifier`, as it is or within DDP, tells apart."""
    return next(count for layer in model.modules() if isinstance(count := getattr(layer, "num_classes", None), int))
