"""Workers use their memory again when the rank is done with it, and never before."""

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from imagestream.data.batches import RawBatch
from imagestream.data.buffers import Block, SharedBlocks
from imagestream.data.timed_loader import TimedLoader

WORKERS, BLOCKS, BATCHES, EDGE = 2, 3, 24, 16


class Numbers:
    """A collate function whose images are full of their batch's number."""

    def __init__(self, blocks: SharedBlocks) -> None:
        self.blocks = blocks

    def __call__(self, samples: Sequence[int]) -> RawBatch:
        images, block = self.blocks.images_to_fill(len(samples), EDGE)
        images.fill_(samples[0])
        labels = torch.tensor(samples)
        return RawBatch(images, labels, labels, samples[0], torch.zeros(3), block)


class Growing(Numbers):
    """The same, with images of that size too."""

    def __call__(self, samples: Sequence[int]) -> RawBatch:
        (edge,) = samples
        images, block = self.blocks.images_to_fill(1, edge)
        return RawBatch(images.fill_(edge), torch.tensor([0]), torch.tensor([0]), 0, torch.zeros(3), block)


def loader_of(workers: int, **more: Any) -> TimedLoader:
    blocks = SharedBlocks(workers, BLOCKS)
    numbers: Any = range(BATCHES)
    loader = TimedLoader(numbers, batch_size=1, collate_fn=Numbers(blocks), num_workers=workers, **more)
    loader.blocks = blocks
    return loader


def test_memory_is_used_again_once_a_batch_is_gone() -> None:
    seen: list[int] = []
    new: list[int] = []
    again: list[int] = []
    for batch in loader_of(WORKERS):
        assert batch.images.unique().tolist() == [batch.step]
        assert batch.block
        seen.append(batch.step)
        (again if batch.block.is_known else new).append(batch.block.number)
        del batch
    assert seen == list(range(BATCHES))
    assert len(new) == len(set(new)) <= WORKERS * BLOCKS
    assert set(again) <= set(new) and len(again) == BATCHES - len(new)


@pytest.mark.slow
def test_a_loop_that_is_left_early_keeps_no_memory() -> None:
    """What is under way then is thrown away by torch, after the next iteration has asked for its first batches."""
    loader = loader_of(WORKERS, persistent_workers=True)
    for _ in range(4):
        next(itertools.islice(loader, 2, None))
    blocks = []
    for batch in loader:
        blocks.append(batch.block)
        del batch
    assert len(blocks) == BATCHES and None not in blocks[BATCHES // 2 :]


@pytest.mark.slow
@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.exhaustive)])
def test_images_may_grow_and_shrink_from_batch_to_batch(context: str) -> None:
    """As in progressive resizing; a block that has become too small is sent anew."""
    edges = [8, 8, 8, 8, 16, 8, 16, 8, 16, 32, 8, 8, 32, 16, 32, 32]
    blocks = SharedBlocks(1, BLOCKS)
    loader = TimedLoader(
        edges,  # type: ignore[arg-type]  # a list is a dataset
        batch_size=1,
        collate_fn=Growing(blocks),
        num_workers=1,
        prefetch_factor=1,
        multiprocessing_context=context,
    )
    loader.blocks = blocks
    known = []
    for edge, batch in zip(edges, loader, strict=True):
        assert batch.images.shape == (1, edge, edge, 3)
        assert batch.images.unique().tolist() == [edge]
        known.append(batch.block.is_known if batch.block else None)
        del batch
    assert {True, False} <= set(known)


@pytest.mark.parametrize("what", ["batch", "view", "one image"])
def test_what_somebody_keeps_stays_as_it_is(what: str) -> None:
    kept = []
    for batch in loader_of(WORKERS):
        kept.append(
            {"batch": batch.images, "view": batch.images.permute(0, 3, 1, 2), "one image": batch.images[0]}[what]
        )
        block = batch.block
        del batch
    assert block is None, "there were enough blocks for all, so nothing was tried"
    assert [images.unique().tolist() for images in kept] == [[number] for number in range(BATCHES)]


def test_in_the_rank_itself_there_are_no_blocks() -> None:
    batches = list(loader_of(0))
    assert [(batch.images.unique().tolist(), batch.block) for batch in batches] == [
        ([number], None) for number in range(BATCHES)
    ]


def test_a_block_grows_with_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagestream.data.buffers.get_worker_info", lambda: type("Info", (), {"id": 0}))
    blocks = SharedBlocks(1, 1)
    sizes = []
    for edge in (8, 16, 8, 32):
        images, block = blocks.images_to_fill(2, edge)
        assert images.shape == (2, edge, edge, 3) and images.is_contiguous()
        assert block and block.number == 0
        sizes.append((images.untyped_storage().nbytes(), block.is_known))
        assert blocks.images_to_fill(2, edge)[1] is None  # the only one is taken
        blocks._taken[:] = 0  # as the rank does, which is another process
    assert sizes == [(384, False), (1536, False), (1536, True), (6144, False)]


def test_a_block_that_the_rank_knows_is_sent_by_its_number() -> None:
    blocks, images = SharedBlocks(1, 1), torch.full((2, 8, 8, 3), 7, dtype=torch.uint8)
    numbers = torch.tensor([0, 0])
    first = RawBatch(images, numbers, numbers, 0, torch.zeros(3), Block(blocks._owner, 0, is_known=False))
    again = RawBatch(images[:1], numbers, numbers, 0, torch.zeros(3), Block(blocks._owner, 0, is_known=True))
    assert [part for part in first.__reduce__()[1] if isinstance(part, torch.Tensor)] == [images]
    assert not [part for part in again.__reduce__()[1] if isinstance(part, torch.Tensor)]
    build, parts = first.__reduce__()
    received = build(*parts)
    images.fill_(9)
    build, parts = again.__reduce__()
    assert torch.equal(received.images, images) and torch.equal(build(*parts).images, images[:1])
    assert len({part.images.untyped_storage()._cdata for part in (received, build(*parts), first)}) == 3
