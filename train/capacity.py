"""Does a run fit the machines that it was started on: their shared memory, their number, and each one's part?"""

import logging
import math
import os
import shutil
import socket
import time
from collections.abc import Callable

from composer.utils import dist

from imagestream.data.dataset_files import DatasetFiles
from imagestream.loader import BLOCKS_BEYOND_PREFETCH
from train.config.algorithms import SizeSchedule
from train.config.run_config import Config, ConfigError
from train.data import workers_of

SHARED_MEMORY = "/dev/shm"
GB = 1e9
NETWORK_STRIDE_PX = 32  # of each ResNet: its last layer has one pixel for so many of the image
FEWEST_FOR_BATCHNORM = 16
"""A ResNet-50's error on ImageNet, by images a GPU from which BatchNorm has its statistics: 23.6 % for 32, 23.7 for 16,
24.8 for 8, 27.3 for 4, 34.7 for 2 (Wu & He 2018, arXiv:1803.08494)."""
SECONDS_TO_BE_FREED = 10.0  # by the processes of a run that was killed just before

log = logging.getLogger(__name__)


def loader_bytes(cfg: Config, *, workers: int, device_batch_size: int, eval_device_batch_size: int) -> int:
    """Return the most shared memory that the loader workers of one rank fill with images.

    Each worker has its blocks (imagestream/data/buffers.py), and keeps them; those of the evaluation stay beside
    the training's. Images that grow during a run are counted at their largest, data.crop_size.
    """
    data = cfg.data
    blocks = workers * (data.prefetch_factor + BLOCKS_BEYOND_PREFETCH)
    train, evaluation = device_batch_size * data.crop_size**2, eval_device_batch_size * data.eval_crop_size**2
    return blocks * 3 * (train + evaluation)


def needed_shared_memory(cfg: Config, *, device_batch_size: int, eval_device_batch_size: int) -> int:
    """Return the bytes that the ranks of this node will need of it."""
    workers = workers_of(cfg.data)
    one = loader_bytes(
        cfg, workers=workers, device_batch_size=device_batch_size, eval_device_batch_size=eval_device_batch_size
    )
    return one * dist.get_local_world_size()


def free_shared_memory() -> int:
    """Return the bytes that are free."""
    found = os.statvfs(SHARED_MEMORY)
    return found.f_bavail * found.f_frsize


def check_shared_memory(needed: int) -> None:
    """Raise ConfigError, on all ranks, where a node has too little for its loader workers: they would die of SIGBUS."""
    for fault in _of_each_node(lambda: _shortage(needed)):
        raise ConfigError(fault)


def _of_each_node(look: Callable[[], str]) -> list[str]:
    """Return what each node's first rank finds amiss, where it is something. Collective."""
    found = "" if dist.get_local_rank() else look()
    return [fault for fault in (dist.all_gather_object(found) if dist.is_initialized() else [found]) if fault]


def _shortage(needed: int) -> str:
    if not os.path.isdir(SHARED_MEMORY):
        return ""
    until = time.monotonic() + SECONDS_TO_BE_FREED
    while (free := free_shared_memory()) < needed and time.monotonic() < until:
        time.sleep(0.5)
    if free >= needed:
        return ""
    return (
        f"{socket.gethostname()}: {free / 1e9:.3g} GB are free in {SHARED_MEMORY}, and the loader workers of this node "
        f"will need up to {needed / 1e9:.3g} GB; start the container with --ipc=host or --shm-size="
        f"{math.ceil(needed / 1e9 * 1.1)}g, or lower data.num_workers or data.prefetch_factor"
    )


def cache_bytes(cfg: Config, files: DatasetFiles) -> int:
    """Return the bytes that data.local, as a cache, will hold of both splits and does not hold yet."""
    if cfg.data.remote is None:
        return 0
    limit = math.inf if cfg.data.cache_limit_gb is None else cfg.data.cache_limit_gb * GB
    missing = 0.0
    for split in {cfg.data.train_split, cfg.data.val_split}:
        folder = os.path.join(files.local, split)
        there = {entry.name: entry.stat().st_size for entry in os.scandir(folder)} if os.path.isdir(folder) else {}
        shards = [shard["raw_data"] for shard in files.index(split)["shards"]]
        total = min(limit, sum(shard["bytes"] for shard in shards))
        missing += max(0.0, total - sum(there.get(shard["basename"], 0) for shard in shards))
    return int(missing)


def free_bytes(folder: str) -> int:
    """Return the bytes that are free where a folder is or will be made."""
    place = os.path.abspath(folder)
    while not os.path.isdir(place):
        place = os.path.dirname(place)
    return shutil.disk_usage(place).free


def warn_of_a_small_cache(cfg: Config, files: DatasetFiles) -> None:
    """Warn of each node whose disk cannot take what data.local will hold: it would fail hours later. Collective."""
    faults = _of_each_node(lambda: _shortage_of_disk(cfg, files))
    if dist.get_global_rank() == 0:
        for fault in faults:
            log.warning("warning: %s", fault)


def room_for_cache(cfg: Config, files: DatasetFiles) -> tuple[int, int] | None:
    """Return the bytes still to come to data.local, and those free there; None where it cannot be looked at."""
    try:
        return cache_bytes(cfg, files), free_bytes(files.local)
    except OSError:  # whoever reads the folder says what is wrong with it
        return None


def _shortage_of_disk(cfg: Config, files: DatasetFiles) -> str:
    room = room_for_cache(cfg, files)
    if room is None or room[0] <= room[1]:
        return ""
    missing, free = room
    return (
        f"{socket.gethostname()}: data.local: {files.local} has {free / GB:.3g} GB free, and {missing / GB:.3g} GB of "
        "shards are still to come; give a folder on a larger disk, or data.cache_limit_gb"
    )


def check_smallest_pass(cfg: Config, device_batch_size: int) -> None:
    """Raise ConfigError where a training pass would have one value a channel, of which BatchNorm has no variance."""
    images = smallest_pass(cfg, device_batch_size)
    sized = (algorithm for algorithm in cfg.algorithms if isinstance(algorithm, SizeSchedule))
    first = next(sized, None)
    px = first.image_px(cfg.data.crop_size, epoch=0, elapsed_fraction=0.0) if first else cfg.data.crop_size
    if images > 1 or px > NETWORK_STRIDE_PX:
        return
    raise ConfigError(
        f"global_batch_size: with {device_batch_size:,} images on each rank one forward pass would hold a single image "
        f"of {px} px, which the network reduces to one pixel, and BatchNorm needs more than one; raise "
        "global_batch_size or data.crop_size, or give another device_train_microbatch_size"
    )


def smallest_pass(cfg: Config, device_batch_size: int) -> int:
    """Return the images of a rank's smallest forward pass, where `auto` has all of them in one."""
    wanted = cfg.device_train_microbatch_size
    return device_batch_size if wanted == "auto" else device_batch_size % wanted or min(device_batch_size, wanted)


def too_few_for_batchnorm(cfg: Config, *, device_batch_size: int, world_size: int) -> str:
    """Return what is wrong where BatchNorm's statistics are of too few images, and what helps; '' where nothing is."""
    alone = smallest_pass(cfg, device_batch_size)
    together = alone * world_size
    images = together if cfg.model.sync_batchnorm else alone
    if images >= FEWEST_FOR_BATCHNORM:
        return ""
    ways = ["a larger global_batch_size"]
    if device_batch_size > alone:
        ways.append("a larger device_train_microbatch_size")
    if world_size > 1:
        ways.append("fewer GPUs")
    if images < together >= FEWEST_FOR_BATCHNORM:
        ways.append("model.sync_batchnorm=true")
    return (
        f"BatchNorm takes its statistics from {images} images at a time, and from fewer than {FEWEST_FOR_BATCHNORM} "
        f"accuracy falls (arXiv:1803.08494); what helps is {' or '.join(ways)}"
    )


def node_count() -> int:
    """Return the number of nodes, as Streaming counts them."""
    return max(1, dist.get_world_size() // dist.get_local_world_size())
