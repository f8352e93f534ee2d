"""Batches: what a worker makes of samples, and what the device makes of a batch."""

import gc
import io
import pickle
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import IterableDataset

from imagestream.data.batches import EvalCollate, RawBatch, TrainCollate
from imagestream.data.dataset import EncodedSample
from imagestream.data.timed_loader import TimedLoader, start_worker
from imagestream.data.watchdog import StallWatch
from imagestream.decode import pillow
from imagestream.decode.backends import open_decoder
from imagestream.decode.crops import CenterCrop, RandomResizedCrop, random_resized_crop, sample_draws, view_hash
from imagestream.decode.pillow import DecodeError
from imagestream.loader import Normalize, ToDevice
from train.config.algorithms import ProgressiveResizing
from train.resolution import Resolution

CROP = RandomResizedCrop(32)


def collate_of(crop: RandomResizedCrop = CROP) -> TrainCollate:
    return TrainCollate(open_decoder("auto"), crop, seed=17)


def eval_collate() -> EvalCollate:
    return EvalCollate(open_decoder("auto"), CenterCrop(64, resize=72))


def samples(count: int, epoch: int = 0) -> list[EncodedSample]:
    rng = np.random.default_rng(0)
    images = []
    for _ in range(count):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, size=(90, 120, 3), dtype=np.uint8)).save(buffer, "JPEG")
        images.append(buffer.getvalue())
    return [EncodedSample(image, label, 100 + label, epoch) for label, image in enumerate(images)]


def test_a_batch_is_its_samples_cut_by_their_own_keys() -> None:
    batch = collate_of()(samples(5, epoch=2))
    assert batch.images.shape == (5, 32, 32, 3)
    assert batch.labels.tolist() == [0, 1, 2, 3, 4]
    for at, sample in enumerate(samples(5)):
        draw = sample_draws(17, 2, sample.position)
        view = random_resized_crop(120, 90, draw, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), flip_prob=0.5)
        assert torch.equal(batch.images[at], pillow.decode_batch([sample.image], [view], 32, bounded=True)[0])
        assert batch.view_hashes[at].item() == view_hash(2, sample.position, view, 32)


def test_an_image_that_is_repeated_is_cut_anew_each_time_by_a_key_of_its_own() -> None:
    once, batch = collate_of()(samples(3, epoch=2)), collate_of(replace(CROP, repeats=4))(samples(3, epoch=2))
    assert batch.images.shape == (12, 32, 32, 3)
    assert batch.labels.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    assert torch.equal(batch.images[::4], once.images) and torch.equal(batch.view_hashes[::4], once.view_hashes)
    assert len(set(batch.view_hashes.tolist())) == 12
    third_of_second = random_resized_crop(
        120, 90, sample_draws(17, 2, 101 + (2 << 40)), scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), flip_prob=0.5
    )
    jpeg = samples(3)[1].image
    assert torch.equal(batch.images[6], pillow.decode_batch([jpeg], [third_of_second], 32, bounded=True)[0])
    read = collate_of(replace(CROP, repeats=4))([one._replace(read_s=1.0, wait_s=2.0) for one in samples(3)])
    assert read.stage_s[:2].tolist() == [6.0, 3.0]  # each was read once


def test_a_batch_is_the_same_in_another_process() -> None:
    sent = collate_of()([one._replace(step=4) for one in samples(3)])
    got = pickle.loads(pickle.dumps(sent))
    assert type(got) is type(sent) and (got.step, got.block) == (4, sent.block)
    for name in ("images", "labels", "view_hashes", "stage_s"):
        assert torch.equal(getattr(got, name), getattr(sent, name)), name
    by_descriptor = [part for part in sent.__reduce__()[1] if isinstance(part, torch.Tensor)]
    assert len(by_descriptor) == 1 and by_descriptor[0] is sent.images


def test_a_batch_is_decoded_at_the_size_of_its_step() -> None:
    grows = ProgressiveResizing(name="progressive_resizing", mode="decode", initial_scale=0.5, size_increment=16)
    collate = collate_of(RandomResizedCrop(Resolution(32, 5, "10ba", grows)))
    sizes = []
    for step in range(10):
        batch = collate([sample._replace(step=step) for sample in samples(2)])
        sizes.append(batch.images.shape[1])
        assert batch.step == step
    assert sizes == [16] * 7 + [32] * 3  # half-size for 0.5 of the run, growing for 0.3, rounded to 16
    with_size = {
        collate([sample._replace(step=step) for sample in samples(1)]).view_hashes[0].item() for step in (0, 9)
    }
    assert len(with_size) == 2  # the ledger tells sizes apart


def test_a_broken_image_is_named_as_the_dataset_names_it() -> None:
    for collate in (collate_of(), eval_collate()):
        collate.name_of = lambda position: f"sample {position + 900}"
        for broken in (b"", b"not an image", samples(1)[0].image[:2000]):
            batch = samples(3)
            batch[2] = batch[2]._replace(image=broken)
            with pytest.raises(DecodeError, match="sample 1002 cannot be decoded: "):
                collate(batch)


class SamplesInAWorker(IterableDataset[EncodedSample]):
    """What a loader asks of a dataset, without streaming."""

    def __iter__(self) -> Iterator[EncodedSample]:
        return iter(samples(4))


def test_workers_collect_no_garbage_among_the_objects_of_their_rank() -> None:
    def counting(batch: list[EncodedSample]) -> RawBatch:
        return collate(batch)._replace(view_hashes=torch.tensor([gc.get_freeze_count()]))

    before = gc.get_freeze_count()  # Python 3.12 has some frozen from its start
    collate, watch = eval_collate(), StallWatch(60, workers=1, rank=0, doing=str)
    setup = partial(start_worker, watch)  # as Loader has it
    (batch,) = TimedLoader(SamplesInAWorker(), batch_size=4, collate_fn=counting, num_workers=1, worker_init_fn=setup)
    assert batch.view_hashes.item() > before + 10_000  # torch's and Composer's
    assert gc.get_freeze_count() == before


@pytest.mark.slow
def test_images_reach_the_network_normalised_and_channels_last() -> None:
    raw, statistics = eval_collate()(samples(3)), Normalize()
    images, labels = ToDevice(torch.device("cpu"), statistics)(raw)
    assert images.shape == (3, 3, 64, 64)
    assert images.is_contiguous(memory_format=torch.channels_last)
    green = (raw.images[1, 7, 5, 1].item() - statistics.mean[1]) / statistics.std[1]
    assert images[1, 1, 7, 5].item() == pytest.approx(green, rel=1e-6)
    assert torch.equal(labels, raw.labels)
    plain, _ = ToDevice(torch.device("cpu"), None)(raw)
    assert plain.dtype == torch.uint8 and torch.equal(plain.permute(0, 2, 3, 1), raw.images)
