"""The processes of a job: which one this is, by its launcher's variables, and what they tell each other."""

import os
from typing import TypeVar

from torch import distributed

T = TypeVar("T")


def local_rank() -> int:
    """Return this process's number on its node, from 0, by LOCAL_RANK."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def node_rank() -> int:
    """Return its node's number, from 0, by NODE_RANK (`composer`) or GROUP_RANK (`torchrun`)."""
    return int(os.environ.get("NODE_RANK") or os.environ.get("GROUP_RANK") or "0")


def barrier() -> None:
    """Wait until all processes are here."""
    if distributed.is_initialized():
        distributed.barrier()
    else:
        _check_alone()


def gathered(mine: T) -> list[T]:
    """Return what each process has given, by rank; collective. What is sent is pickled."""
    if not distributed.is_initialized():
        _check_alone()
        return [mine]
    everyone: list[T | None] = [None] * distributed.get_world_size()
    distributed.all_gather_object(everyone, mine)
    return everyone  # type: ignore[return-value]  # all are there now


def _check_alone() -> None:
    """Processes that take each other for absent would all do what one is to do."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size > 1:
        raise RuntimeError(
            f"WORLD_SIZE is {size}, but torch.distributed is not initialised; "
            "call torch.distributed.init_process_group first"
        )
