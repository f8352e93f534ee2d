"""Workers use their memory again when the rank is done with it, and never before."""

from collections.abc import Sequence

import pytest
import torch

from train.buffers import NO_BLOCK, SharedBlocks
from train.loader import RawBatch, TimedLoader

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


def loader_of(workers: int) -> TimedLoader:
    blocks = SharedBlocks(workers, BLOCKS)
    loader = TimedLoader(range(BATCHES), batch_size=1, collate_fn=Numbers(blocks), num_workers=workers)  # type: ignore[arg-type]
    loader.blocks = blocks
    return loader


def test_memory_is_used_again_once_a_batch_is_gone() -> None:
    seen, used = [], set()
    for batch in loader_of(WORKERS):
        assert batch.images.unique().tolist() == [batch.step]
        seen.append(batch.step)
        used.add(batch.block)
        del batch
    assert seen == list(range(BATCHES))
    assert NO_BLOCK not in used and len(used) <= WORKERS * BLOCKS


@pytest.mark.parametrize("what", ["batch", "view", "one image"])
def test_what_somebody_keeps_stays_as_it_is(what: str) -> None:
    kept = []
    for batch in loader_of(WORKERS):
        kept.append(
            {"batch": batch.images, "view": batch.images.permute(0, 3, 1, 2), "one image": batch.images[0]}[what]
        )
        blocks = batch.block
        del batch
    assert blocks == NO_BLOCK, "there were enough blocks for all, so nothing was tried"
    assert [images.unique().tolist() for images in kept] == [[number] for number in range(BATCHES)]


def test_in_the_rank_itself_there_are_no_blocks() -> None:
    batches = list(loader_of(0))
    assert [(batch.images.unique().tolist(), batch.block) for batch in batches] == [
        ([number], NO_BLOCK) for number in range(BATCHES)
    ]


def test_a_block_grows_with_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.buffers.get_worker_info", lambda: type("Info", (), {"id": 0}))
    blocks = SharedBlocks(1, 1)
    sizes = []
    for edge in (8, 16, 8, 32):
        images, block = blocks.images_to_fill(2, edge)
        assert images.shape == (2, edge, edge, 3) and images.is_contiguous() and block == 0
        sizes.append(images.untyped_storage().nbytes())
        assert blocks.images_to_fill(2, edge)[1] == NO_BLOCK  # the only one is taken
        blocks._taken[:] = 0  # as the rank does, which is another process
    assert sizes == [2 * 8 * 8 * 3, 2 * 16 * 16 * 3, 2 * 16 * 16 * 3, 2 * 32 * 32 * 3]
