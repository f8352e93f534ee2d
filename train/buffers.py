"""Memory for batches of images that a loader worker fills and its rank reads, used again and again.

What a worker hands to its rank lies in shared memory. New pages of it cost a third of what it takes to decode a small
JPEG into them, so each worker keeps a few blocks, and takes one again once nothing in the rank refers to it.
"""

import math
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.data import get_worker_info

NO_BLOCK = -1
"""The memory is nobody's to use again."""


class SharedBlocks:
    """The blocks of a rank's loader workers.

    A worker marks a block as taken before it fills it. The rank notes each block that arrives, and gives it back once
    the last tensor on its memory is gone, so that a batch that somebody keeps stays as it is. A worker that finds no
    free block makes memory for that batch alone.

    Args:
        workers: loader processes; 0: batches are filled in the rank itself.
        blocks: of each worker; as many as batches can be on their way at once.
    """

    def __init__(self, workers: int, blocks: int) -> None:
        self._blocks = blocks
        self._taken = torch.zeros(workers * blocks, dtype=torch.uint8).share_memory_()  # type: ignore[no-untyped-call]
        self._memory: dict[int, torch.UntypedStorage] = {}  # of this worker
        self._in_use: list[tuple[int, Any]] = []  # by this rank

    def images_to_fill(self, count: int, size: int) -> tuple[torch.Tensor, int]:
        """Return uint8 (count, size, size, 3) of no certain content, and the number of its block."""
        shape = (count, size, size, 3)
        info = get_worker_info()
        make_shared = getattr(torch.UntypedStorage, "_new_shared", None)
        if info is None or make_shared is None:  # a later torch may lack it: then the worker's queue copies
            return torch.empty(shape, dtype=torch.uint8), NO_BLOCK
        block, memory = self._free_block(info.id), None
        if block != NO_BLOCK:
            self._taken[block] = 1
            memory = self._memory.get(block)
        if memory is None or memory.nbytes() < math.prod(shape):
            memory = make_shared(math.prod(shape))
            if block != NO_BLOCK:
                self._memory[block] = memory
        images = torch.empty(0, dtype=torch.uint8)
        return images.set_(memory, 0, shape), block  # type: ignore[call-overload]

    def received(self, images: torch.Tensor, block: int) -> None:
        """Note, in the rank, that a batch has arrived."""
        if block != NO_BLOCK:
            memory = StorageWeakRef(images.untyped_storage())  # type: ignore[no-untyped-call]
            self._in_use.append((block, memory))

    def give_back(self) -> None:
        """Let workers take the blocks that nothing in the rank refers to any more."""
        still = [(block, memory) for block, memory in self._in_use if not memory.expired()]
        if len(still) < len(self._in_use):
            kept = {block for block, _ in still}
            self._taken[[block for block, _ in self._in_use if block not in kept]] = 0
            self._in_use = still

    def _free_block(self, worker: int) -> int:
        first = worker * self._blocks
        free = (self._taken[first : first + self._blocks] == 0).nonzero()
        return first + int(free[0]) if len(free) else NO_BLOCK
