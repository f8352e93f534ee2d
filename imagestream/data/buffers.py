"""Memory for batches of images that a loader worker fills and its rank reads, used again and again.

What a worker hands to its rank lies in shared memory. New pages of it cost a third of what it takes to decode a small
JPEG into them, so each worker keeps a few blocks, and takes one again once nothing in the rank refers to it. A block is
sent to the rank once, as a tensor with a file descriptor, which takes a talk between the two; from then on by number.
"""

import itertools
import math
from collections import deque
from typing import Any, ClassVar, NamedTuple
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.data import get_worker_info


class Block(NamedTuple):
    """The memory that a batch's images are in.

    Attributes:
        owner: which `SharedBlocks` of the rank.
        number: from 0, over all of its workers.
        is_known: the rank has received it before, and can do with the number.
    """

    owner: int
    number: int
    is_known: bool


class SharedBlocks:
    """The blocks of a rank's loader workers.

    A worker marks a block as taken before it fills it. The rank notes each block that arrives, and gives it back once
    the last tensor on its memory is gone, so that a batch that somebody keeps stays as it is. A worker that finds no
    free block makes memory for that batch alone.

    Args:
        workers: loader processes; 0: batches are filled in the rank itself.
        blocks: of each worker; as many as batches can be on their way at once.
    """

    _numbers = itertools.count()
    _of_this_rank: ClassVar["WeakValueDictionary[int, SharedBlocks]"] = WeakValueDictionary()

    def __init__(self, workers: int, blocks: int) -> None:
        self._blocks = blocks
        self._owner = next(self._numbers)
        self._of_this_rank[self._owner] = self
        taken = torch.zeros(workers * blocks, dtype=torch.uint8)
        self._taken = taken.share_memory_()
        self._images: dict[int, torch.Tensor] = {}  # of this worker, as last filled
        self._known: dict[int, npt.NDArray[np.uint8]] = {}  # to this rank
        self._arrived: deque[tuple[int, Any]] = deque()  # in this rank; where memory is pinned, by a thread of torch's
        self._in_use: list[tuple[int, Any]] = []  # by this rank

    def images_to_fill(self, count: int, size: int) -> tuple[torch.Tensor, Block | None]:
        """Return uint8 (count, size, size, 3) of no certain content, and its block, if it is in any."""
        shape = (count, size, size, 3)
        info = get_worker_info()
        make_shared = getattr(torch.UntypedStorage, "_new_shared", None)
        if info is None or make_shared is None:  # a later torch may lack it: then the worker's queue copies
            return torch.empty(shape, dtype=torch.uint8), None
        number = self._take_block(info.id)
        images = None if number is None else self._images.get(number)
        is_known = images is not None and images.untyped_storage().nbytes() >= math.prod(shape)
        if images is None or not is_known:
            images = _tensor_in(make_shared(math.prod(shape)), shape)
        elif images.shape != shape:
            images = _tensor_in(images.untyped_storage(), shape)
        if number is not None:
            self._images[number] = images
        return images, None if number is None else Block(self._owner, number, is_known)

    @classmethod
    def arrived(cls, block: Block, images: torch.Tensor | tuple[int, ...]) -> torch.Tensor:
        """Return, in the rank, a batch's images, given themselves or the shape of those in a known block.

        Their storage is theirs alone, so that its end says that the batch is gone; the memory stays.
        """
        blocks = cls._of_this_rank[block.owner]
        if isinstance(images, torch.Tensor):
            blocks._known[block.number] = images.numpy().reshape(-1)
        shape = tuple(images.shape if isinstance(images, torch.Tensor) else images)
        arrived = torch.from_numpy(blocks._known[block.number][: math.prod(shape)]).view(shape)
        # Here, since torch throws away what is under way where a loop is left early, and nobody else sees it.
        blocks._arrived.append((block.number, StorageWeakRef(arrived.untyped_storage())))
        return arrived

    def give_back(self) -> None:
        """Let workers take the blocks that nothing in the rank refers to any more."""
        while self._arrived:
            self._in_use.append(self._arrived.popleft())
        still = []
        for number, memory in self._in_use:
            if memory.expired():
                self._taken[number] = 0
            else:
                still.append((number, memory))
        self._in_use = still

    def _take_block(self, worker: int) -> int | None:
        taken, first = self._taken.numpy(), worker * self._blocks
        for number in range(first, first + self._blocks):
            if not taken[number]:
                taken[number] = 1
                return number
        return None


def _tensor_in(memory: torch.UntypedStorage, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8).set_(memory, 0, shape)  # type: ignore[call-overload]  # a form its types lack
