"""A loop of a user of the library on several ranks, for tests/integration/test_library_ranks.py.

Its one argument is the settings, as JSON. Ranks are forked and told of each other by torch.distributed alone: none of a
launcher's variables is set. Each rank writes what it gets to OUT/<rank>.jsonl, rank 0 the loader's state after each
step to OUT/state.json.
"""

import hashlib
import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.multiprocessing.spawn import start_processes

from imagestream import CenterCrop, Loader, RandomResizedCrop, World

LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")


def main(argv: Sequence[str]) -> int:
    """Run the loop on settings["ranks"] ranks, in a process group of its own."""
    settings: dict[str, Any] = json.loads(argv[0])
    for name in LAUNCHER:
        os.environ.pop(name, None)
    start_processes(rank_of, (settings,), nprocs=settings["ranks"], start_method="fork")
    return 0


def rank_of(rank: int, settings: dict[str, Any]) -> None:
    """One rank: `out`, `data`, `cache`, `ranks`, `batch`, `workers`, `epochs`, `kill_at` of the settings count."""
    torch.set_num_threads(1)
    out, world = Path(settings["out"]), None
    if settings.get("alone"):
        world = World(rank, settings["ranks"])
    else:
        store = f"file://{out}/store-{os.getppid()}"
        distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=settings["ranks"])
    evaluates = settings.get("split") == "val"
    loader = Loader(
        settings["data"],
        split=settings.get("split", "train"),
        cache=settings.get("cache"),
        batch_size=settings["batch"],
        seed=settings.get("seeds", [3] * settings["ranks"])[rank],
        crop=CenterCrop(32) if evaluates else RandomResizedCrop(32),
        num_workers=settings["workers"],
        world=world,
    )
    state = out / "state.json"
    if state.exists():
        loader.load_state_dict(json.loads(state.read_text()))
    with open(out / f"{rank}.jsonl", "a") as log:
        for _ in range(loader.epoch, settings["epochs"]):
            for images, labels in loader:
                log.write(json.dumps({"step": loader.step, "samples": samples_of(images, labels)}) + "\n")
                log.flush()
                if settings.get("reads_ledger"):
                    _ = loader.ledger
                if not world:
                    distributed.barrier()
                if rank == 0 and loader.step == settings.get("kill_at"):
                    os.killpg(0, signal.SIGKILL)
                if rank == 0 and not evaluates and not world:
                    state.with_suffix(".part").write_text(json.dumps(loader.state_dict()))
                    state.with_suffix(".part").replace(state)
        log.write(json.dumps({"ledger": None if world or evaluates else loader.ledger}) + "\n")


def samples_of(images: torch.Tensor, labels: torch.Tensor) -> list[str]:
    """Each sample's pixels and label."""
    pairs = zip(images.contiguous().numpy(), labels.tolist(), strict=True)
    return [f"{label} {hashlib.sha256(image.tobytes()).hexdigest()[:12]}" for image, label in pairs]
