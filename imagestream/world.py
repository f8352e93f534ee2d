"""The processes of a job: which one this is, on which machine, and what they tell each other."""

import contextlib
import os
import socket
from collections.abc import Iterator
from typing import NamedTuple, TypeVar

from torch import distributed

from imagestream.process_identity import boot_id

T = TypeVar("T")


class World(NamedTuple):
    """Which process of a job this is.

    Attributes:
        rank: from 0, over all machines.
        size: processes in all.
        local_rank: from 0, on this machine.
        local_size: processes on this machine, as many as on each other one.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def node(self) -> int:
        """This machine's number, from 0."""
        return self.rank // self.local_size

    @property
    def nodes(self) -> int:
        """Machines in all."""
        return self.size // self.local_size


def detect() -> World:
    """Return the world of torch.distributed where it is initialised, else one process alone; collective.

    Raises:
        RuntimeError: there are several processes by WORLD_SIZE, and torch.distributed is not initialised; or the
            processes are spread unevenly over the machines.
    """
    if not distributed.is_initialized():
        _check_alone()
        return World()
    rank, size = distributed.get_rank(), distributed.get_world_size()
    told = _of_environment()
    if told is not None and told[:2] == (rank, size):
        return told
    # torch.multiprocessing.spawn and Lightning do not say who is where.
    machines = gathered((boot_id(), socket.gethostname()))
    mine = [other for other in range(size) if machines[other] == machines[rank]]
    world = World(rank, size, mine.index(rank), len(mine))
    whole = all(machines.count(machine) == len(mine) for machine in machines)
    if not whole or mine != list(range(mine[0], mine[0] + len(mine))) or mine[0] % len(mine):
        raise RuntimeError(
            f"the {size} processes are spread over machines as {[machines.index(one) for one in machines]} (by rank); "
            "start as many on each machine, with ranks that follow each other"
        )
    return world


def _of_environment() -> World | None:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if not all(os.environ.get(name, "").isdecimal() for name in names):
        return None
    return World(*(int(os.environ[name]) for name in names))


@contextlib.contextmanager
def in_environment(world: World) -> Iterator[None]:
    """Have the launcher's variables say `world`: Streaming 0.13.0 reads them alone (streaming/base/distributed.py)."""
    told = dict(zip(("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"), map(str, world), strict=True))
    told["NODE_RANK"] = str(world.node)
    before = {name: os.environ.get(name) for name in told}
    os.environ.update(told)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


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
