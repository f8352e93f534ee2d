"""Batches as a worker makes them: samples cut, decoded and augmented by their own keys."""

import base64
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from imagestream.data.buffers import Block, SharedBlocks
from imagestream.data.dataset import EncodedSample
from imagestream.data.per_sample import ImageFunction, PerSample
from imagestream.decode.backends import Decoder
from imagestream.decode.crops import CenterCrop, RandomResizedCrop, View, sample_draws, view_hash
from imagestream.decode.native.decoder import NativeDecoder
from imagestream.decode.pillow import DecodeError

BLACK = base64.b64decode("R0lGODdhAQABAIAAAAAAAAAAACwAAAAAAQABAAACAkQBADs=")
"""One black pixel, as a GIF."""


class RawBatch(NamedTuple):
    """What a loader worker sends to its rank.

    Attributes:
        images: uint8 (B, H, W, 3), RGB, 0-255.
        labels: int64 (B,).
        view_hashes: int64 (B,), the ledger's entries.
        step: the training batch that it is, from 0 over the whole run; 0 at evaluation.
        stage_s: float64 (3,), seconds that the worker spent on it: waiting for shards, reading records, decoding.
        block: in which the images are, if they are in any.
        faults: of images that could not be decoded and are black, their places in the batch and why; see `Tolerant`.
    """

    images: torch.Tensor
    labels: torch.Tensor
    view_hashes: torch.Tensor
    step: int
    stage_s: torch.Tensor
    block: Block | None = None
    faults: tuple[tuple[int, str], ...] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        """Send bytes, and a known block's number: a tensor between processes is a file descriptor, and half a ms."""
        known = self.block is not None and self.block.is_known
        small = [part.numpy() for part in (self.labels, self.view_hashes, self.stage_s)]
        return _received, (
            self.block,
            tuple(self.images.shape) if known else self.images,
            *small,
            self.step,
            self.faults,
        )


def _received(block: Block | None, images: Any, *rest: Any) -> RawBatch:
    labels, view_hashes, stage_s = map(torch.from_numpy, rest[:3])
    arrived = images if block is None else SharedBlocks.arrived(block, images)
    return RawBatch(arrived, labels, view_hashes, rest[3], stage_s, block, rest[4])


class TrainCollate:
    """Cut, decode, mirror and augment a batch as (seed, epoch, position) say, at the size that its step has."""

    blocks = SharedBlocks(0, 0)
    name_of: Callable[[int], str] = staticmethod("position {}".format)

    def __init__(
        self, decoder: Decoder, crop: RandomResizedCrop, *, seed: int, transforms: Sequence[ImageFunction] = ()
    ) -> None:
        self.decoder, self.crop, self.seed = decoder, crop, seed
        self.per_sample = PerSample(transforms, seed=seed, in_c=isinstance(decoder, NativeDecoder))

    def __call__(self, samples: Sequence[EncodedSample]) -> RawBatch:
        started = time.perf_counter()
        # Side by side: mixing pairs an image with one half a batch away, which then is never itself.
        samples = [copy for sample in samples for copy in sample.copies(self.crop.repeats)]
        views, hashes, size = [], [], self.crop.size_at(samples[0].step)
        for sample, (width, height) in zip(samples, _image_sizes(self.decoder, samples, self.name_of), strict=True):
            view = self.crop.view(width, height, sample_draws(self.seed, sample.epoch, sample.key))
            views.append(view)
            hashes.append(view_hash(sample.epoch, sample.key, view, size))
        batch = _decode(self.decoder, samples, views, hashes, size, self.blocks, bounded=True, name_of=self.name_of)
        if self.per_sample:
            draws = self.per_sample(batch.images, [(sample.epoch, sample.key) for sample in samples])
            batch.view_hashes.add_(draws)  # wraps around, as it should
        batch.stage_s[2] = time.perf_counter() - started
        return batch


class EvalCollate:
    """Cut the centre out of each image and decode it."""

    blocks = SharedBlocks(0, 0)
    name_of: Callable[[int], str] = staticmethod("position {}".format)

    def __init__(self, decoder: Decoder, crop: CenterCrop) -> None:
        self.decoder, self.crop = decoder, crop

    def __call__(self, samples: Sequence[EncodedSample]) -> RawBatch:
        sizes, size = _image_sizes(self.decoder, samples, self.name_of), self.crop.size
        views = [self.crop.view(*edges) for edges in sizes]
        return _decode(
            self.decoder, samples, views, [0] * len(samples), size, self.blocks, bounded=False, name_of=self.name_of
        )


class Tolerant:
    """An `EvalCollate` that leaves images black which cannot be decoded, and says which and why.

    Args:
        max_pixels: of an image; a larger one is not decoded.
    """

    def __init__(self, collate: EvalCollate, *, max_pixels: int) -> None:
        self.collate, self.max_pixels = collate, max_pixels

    def __call__(self, samples: Sequence[EncodedSample]) -> RawBatch:
        faults = {index: reason for index, sample in enumerate(samples) if (reason := self._fault(sample))}
        while True:
            kept = [sample._replace(image=BLACK) if index in faults else sample for index, sample in enumerate(samples)]
            try:
                return self.collate(kept)._replace(faults=tuple(sorted(faults.items())))
            except DecodeError as error:
                if error.index in faults:
                    raise
                faults[error.index] = str(error.__cause__ or error)

    def _fault(self, sample: EncodedSample) -> str:
        if sample.fault:
            return sample.fault
        try:
            ((width, height),) = self.collate.decoder.image_sizes([sample.image])
        except DecodeError as error:
            return str(error)
        if width * height > self.max_pixels:
            return f"{width:,} x {height:,} px are more than the {self.max_pixels:,} allowed"
        return ""


def _image_sizes(
    decoder: Decoder, samples: Sequence[EncodedSample], name_of: Callable[[int], str]
) -> list[tuple[int, int]]:
    try:
        return decoder.image_sizes([s.image for s in samples])
    except DecodeError as error:
        raise _naming_the_sample(error, samples, name_of) from error


def _decode(
    decoder: Decoder,
    samples: Sequence[EncodedSample],
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


def _naming_the_sample(
    error: DecodeError, samples: Sequence[EncodedSample], name_of: Callable[[int], str]
) -> DecodeError:
    bad = samples[error.index]
    return DecodeError(f"{name_of(bad.position)} cannot be decoded: {error}", error.index)
