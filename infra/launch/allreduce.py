"""How fast all ranks together add up their numbers, before a run relies on it; infra/launch/preflight.py starts it.

Each rank is a process, told by torch's usual variables which one (RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE,
MASTER_ADDR, MASTER_PORT). The first rank of each machine prints a line of JSON: the bus bandwidth over the machine's
own ranks and over all of them in GB/s, or null where there is one rank or one machine alone. Bus bandwidth is what
nccl-tests calls so: bytes / seconds x 2 (n - 1) / n, which is comparable for any number of ranks n.
"""

import json
import os
import sys
import time
from datetime import timedelta
from typing import Any

import torch
from torch import distributed as dist

# Of float32: where bandwidth no longer grows with the size (nccl-tests), and what a CPU adds up in milliseconds.
GPU_BYTES, CPU_BYTES = 1 << 30, 4 << 20
GPU_SECONDS, CPU_SECONDS = (5.0, 20.0), (0.5, 0.5)  # on the machine, and over all
SECONDS_TO_MEET = float(os.environ.get("PREFLIGHT_MEET_S", "180"))
"""How long a rank waits for the others to have started; importing torch takes a minute on a disk that is new."""


def main() -> int:
    """Measure, and print what was found; return the exit status."""
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    local_rank, local_world = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    on_gpu = os.environ.get("CUDA_VISIBLE_DEVICES") != ""
    if on_gpu and torch.cuda.device_count() < local_world:
        print(f"torch can use {torch.cuda.device_count()} GPUs here, not {local_world}", file=sys.stderr)
        return 1
    if on_gpu:
        torch.cuda.set_device(local_rank)
    limit = timedelta(seconds=SECONDS_TO_MEET)
    dist.init_process_group("nccl" if on_gpu else "gloo", rank=rank, world_size=world, timeout=limit)
    machines = [list(range(first, first + local_world)) for first in range(0, world, local_world)]
    groups = [dist.new_group(ranks) for ranks in machines]  # each rank has to make each of them
    numbers = torch.ones((GPU_BYTES if on_gpu else CPU_BYTES) // 4, device="cuda" if on_gpu else "cpu")
    own_s, all_s = GPU_SECONDS if on_gpu else CPU_SECONDS
    own = bus_bandwidth(numbers, groups[rank // local_world], local_world, own_s)
    of_all = bus_bandwidth(numbers, None, world, all_s) if len(machines) > 1 else None
    if local_rank == 0:
        print(json.dumps({"machine_gb_per_sec": own, "all_gb_per_sec": of_all}), flush=True)
    dist.barrier()
    dist.destroy_process_group()
    return 0


def bus_bandwidth(numbers: torch.Tensor, group: Any, ranks: int, seconds: float) -> float | None:
    """GB/s over so many ranks, measured for about so long; None of one rank alone. Collective."""
    if ranks == 1:
        return None
    timed(numbers, group, 2)  # connections are made at the first one
    one = torch.tensor([timed(numbers, group, 1)], device=numbers.device)
    dist.all_reduce(one, op=dist.ReduceOp.MAX, group=group)  # all have to do as many
    times = max(1, int(seconds / one.item()))
    bytes_per_sec = numbers.numel() * 4 * times / timed(numbers, group, times)
    return bytes_per_sec * 2 * (ranks - 1) / ranks / 1e9


def timed(numbers: torch.Tensor, group: Any, times: int) -> float:
    """Seconds that so many all-reduces take."""
    _wait(numbers)
    began = time.perf_counter()
    for _ in range(times):
        dist.all_reduce(numbers, op=dist.ReduceOp.MAX, group=group)  # which leaves the ones as they are
    _wait(numbers)
    return time.perf_counter() - began


def _wait(numbers: torch.Tensor) -> None:
    if numbers.is_cuda:
        torch.cuda.synchronize()


if __name__ == "__main__":
    sys.exit(main())
