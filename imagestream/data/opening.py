"""A split of a dataset, opened to train or to evaluate on: its cache prepared, its order fixed."""

import contextlib
import json
import logging
import math
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from streaming.base.hashing import is_hash
from torch import distributed

from imagestream import world
from imagestream.data.dataset import StreamingEvalImages, StreamingImages
from imagestream.data.dataset_files import DatasetFiles
from imagestream.data.downloads import CheckedStream, least_cache_bytes
from imagestream.data.job_dir import link_for_this_job, one_at_a_time, remember_prefix
from imagestream.limits import (
    MAX_CACHE_GB,
    MAX_PREFETCH_FACTOR,
    MAX_SAMPLES,
    MAX_SECONDS,
    ShuffleAlgo,
    check_above_zero,
    check_whole,
)
from imagestream.mds.index import DataError
from imagestream.world import World

log = logging.getLogger(__name__)

FAST_HASHES = ("xxh64", "xxh3_64", "xxh128", "sha1", "md5", "sha256")


@dataclass(frozen=True)
class StreamOptions:
    """How shards are fetched and samples ordered; the defaults suit one machine and a set of ImageNet's size.

    Args:
        shuffle_algo: Streaming's: py1e, py1s, py2s, py1br or naive.
        shuffle_block_size: samples that are shuffled together.
        num_canonical_nodes: the order of the samples is fixed for so many machines. It and the machines of a job have
            to divide each other.
        predownload: samples that each worker fetches ahead; None: 8 batches.
        validate_hash: by which each shard is checked; `auto`: the fastest that the index has; None: none.
        hash_found_shards: whether shards that are found in the cache are hashed at their first use in a job; else only
            their size is compared.
        download_timeout_s: seconds before one attempt to fetch a shard counts as failed.
        download_patience_s: seconds for which a failing download is tried again.
        stall_limit_s: seconds without a batch before `StalledLoaderError`.
        cache_limit_gb: most that the cache keeps of a split, GB of 10^9 bytes; None: all of it.
        prefetch_factor: batches that each worker keeps ready.

    Raises:
        ValueError: one of them is out of range.
    """

    shuffle_algo: ShuffleAlgo = "py1e"
    shuffle_block_size: int = 262_144
    num_canonical_nodes: int = 1
    predownload: int | None = None
    validate_hash: str | None = "auto"
    hash_found_shards: bool = True
    download_timeout_s: float = 120.0
    download_patience_s: float = 300.0
    stall_limit_s: float = 450.0
    cache_limit_gb: float | None = None
    prefetch_factor: int = 2

    def __post_init__(self) -> None:
        if self.shuffle_algo not in get_args(ShuffleAlgo):
            raise ValueError(f"shuffle_algo: {self.shuffle_algo!r} must be one of {', '.join(get_args(ShuffleAlgo))}")
        check_whole("shuffle_block_size", self.shuffle_block_size, 1, MAX_SAMPLES)
        check_whole("num_canonical_nodes", self.num_canonical_nodes, 1, MAX_SAMPLES)
        check_whole("prefetch_factor", self.prefetch_factor, 1, MAX_PREFETCH_FACTOR)
        if self.predownload is not None:
            check_whole("predownload", self.predownload, 1, MAX_SAMPLES)
        for name in ("download_timeout_s", "download_patience_s", "stall_limit_s"):
            check_above_zero(name, getattr(self, name), MAX_SECONDS)
        if self.stall_limit_s <= self.download_patience_s:
            raise ValueError(
                f"stall_limit_s: {self.stall_limit_s!r} must be above download_patience_s, which is "
                f"{self.download_patience_s:g}"
            )
        if self.cache_limit_gb is not None:
            check_above_zero("cache_limit_gb", self.cache_limit_gb, MAX_CACHE_GB)


def open_train(
    files: DatasetFiles,
    split: str,
    options: StreamOptions,
    *,
    batch_size: int,
    repeats: int = 1,
    seed: int,
    workers: int,
    place: World,
) -> StreamingImages:
    """Open a split to train on; collective over all processes.

    Args:
        batch_size: images of a batch of each process.
        repeats: how often each image is in a batch; a divisor of `batch_size`.
        workers: loader processes of each, from 0.
    """
    global_batch_size = batch_size // repeats * place.size  # of different images
    check_samples(options.num_canonical_nodes, files.count(split))
    dataset: StreamingImages = _open(
        StreamingImages,
        *(files, split, options, workers, place),
        global_batch_size=global_batch_size,
        repeats=repeats,
        batch_size=batch_size // repeats,
        shuffle=True,
        shuffle_algo=options.shuffle_algo,
        shuffle_seed=seed,
        shuffle_block_size=options.shuffle_block_size,
    )
    if dataset.steps_per_epoch == 0:
        raise DataError(
            f"{files.where(split)} holds {dataset.num_samples} samples, fewer than one global batch of "
            f"{global_batch_size * repeats}; lower the batch size",
            about=("batch_size",),
        )
    return dataset


def open_eval(
    files: DatasetFiles, split: str, options: StreamOptions, *, batch_size: int, workers: int, place: World
) -> StreamingEvalImages:
    """Open a split to evaluate on; collective over all processes."""
    opened: StreamingEvalImages = _open(
        StreamingEvalImages,
        *(files, split, options, workers, place),
        global_batch_size=1,
        batch_size=batch_size,
        shuffle=False,
    )
    return opened


def check_nodes(canonical_nodes: int, nodes: int) -> None:
    """Raise DataError where Streaming cannot spread the samples over the nodes.

    One number must divide the other (streaming/base/partition/orig.py).
    """
    if _go_together(canonical_nodes, nodes):
        return
    fewer = next(n for n in range(nodes, 0, -1) if _go_together(canonical_nodes, n))
    more = next(n for n in range(nodes, nodes + canonical_nodes) if _go_together(canonical_nodes, n))
    raise DataError(
        f"num_canonical_nodes: {canonical_nodes} and the {nodes} nodes of this run do not go together: one must be a "
        f"multiple of the other; run on {fewer} or {more} nodes or, for a new run, give a multiple or a divisor of "
        f"{nodes}, as in num_canonical_nodes={nodes * max(1, canonical_nodes // nodes)}",
        about=("num_canonical_nodes",),
    )


def check_samples(canonical_nodes: int, samples: int) -> None:
    """Raise DataError where Streaming would have canonical nodes without a sample."""
    if canonical_nodes > samples:
        raise DataError(
            f"num_canonical_nodes: {canonical_nodes:,} is more than the {samples:,} samples of the split; lower it",
            about=("num_canonical_nodes",),
        )


def _go_together(canonical_nodes: int, nodes: int) -> bool:
    return canonical_nodes % nodes == 0 or nodes % canonical_nodes == 0


def _open(
    kind: type[Any], files: DatasetFiles, split: str, options: StreamOptions, workers: int, place: World, **kwargs: Any
) -> Any:
    index = files.index(split)
    files.check_against_manifest(split)
    if files.remote is None and options.cache_limit_gb is not None:
        raise DataError(
            f"cache_limit_gb: {options.cache_limit_gb:g} would delete shards of {files.local}, which holds the "
            "only copy of them; leave it out or, to read from a cache, give a folder as cache=",
            about=("cache_limit_gb",),
        )
    try:
        # Without torch.distributed a process shares no memory with others: to Streaming it is alone, but for the order.
        with world.in_environment(place if distributed.is_initialized() else World()):
            local = link_for_this_job(files.local)
            if files.remote is not None:
                _prepare_cache(files, split, index)
                _check_cache_limit(options, index, readers=max(1, workers), place=place, shuffled=kwargs["shuffle"])
            stream = CheckedStream(
                remote=files.remote,
                local=local,
                split=split or None,
                validate_hash=_hash_to_check(options.validate_hash, index, place),
                hash_found=options.hash_found_shards,
                empty_cache=options.cache_limit_gb is not None,
                patience_s=options.download_patience_s,
                download_timeout=options.download_timeout_s,
            )
            with one_at_a_time():
                dataset = kind(
                    streams=[stream],
                    columns=files.columns,
                    place=place,
                    predownload=options.predownload,
                    cache_limit=None if options.cache_limit_gb is None else int(options.cache_limit_gb * 1e9),
                    num_canonical_nodes=options.num_canonical_nodes,
                    **kwargs,
                )
                remember_prefix(dataset._shm_prefix_int)
                return dataset
    except DataError:
        raise
    except (RuntimeError, OSError, ValueError) as error:  # RecordError is one
        raise DataError(f"{files.where(split)} cannot be opened: {error}") from error


def _prepare_cache(files: DatasetFiles, split: str, index: dict[str, Any]) -> None:
    """Put the index into the cache; called by every rank, of which one is enough.

    Raises:
        DataError: the cache is another dataset's, or is the dataset itself.
    """
    if "://" not in str(files.remote):
        for name in {"", split}:
            if _is_same_folder(Path(str(files.remote), name), Path(files.local, name)):
                raise DataError(
                    f"{Path(str(files.remote), name)}: the cache is the same folder; to read the shards in place leave "
                    "out cache=",
                    about=("cache",),
                )
    folder = Path(files.local, split)
    path = folder / "index.json"
    with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
        if json.loads(path.read_text()) == index:
            return
        raise DataError(
            f"{path}, in the cache, is another dataset's; give another folder as cache=, or delete this one",
            about=("cache",),
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"the cache {folder} cannot be made: {error.strerror}; give another folder as cache=", about=("cache",)
        ) from error
    part = folder / f".index.json.{uuid.uuid4().hex[:12]}.part"
    part.write_text(json.dumps(index))
    os.replace(part, path)


def _is_same_folder(one: Path, other: Path) -> bool:
    """Return whether two paths lead to one folder, by a link or a mount too."""
    return one.exists() and other.exists() and one.samefile(other)


def _check_cache_limit(
    options: StreamOptions, index: dict[str, Any], *, readers: int, place: World, shuffled: bool
) -> None:
    """Raise DataError where a cache of this size would fetch each shard again and again."""
    if options.cache_limit_gb is None:
        return
    sizes = [
        sum(shard[part]["bytes"] for part in ("raw_data", "zip_data") if shard.get(part)) for shard in index["shards"]
    ]
    needed = least_cache_bytes(
        sizes,
        samples=sum(int(shard["samples"]) for shard in index["shards"]),
        block_samples=options.shuffle_block_size if shuffled else 1,
        canonical_nodes=math.ceil(options.num_canonical_nodes / place.nodes) if shuffled else 1,
        readers=readers * place.local_size,
    )
    if options.cache_limit_gb * 1e9 < needed:
        raise DataError(
            f"cache_limit_gb: {options.cache_limit_gb:g} is less than the {needed / 1e9:.3g} GB that this run reads "
            f"from at a time; raise it (the split has {sum(sizes) / 1e9:.3g} GB in all), or lower shuffle_block_size, "
            "num_canonical_nodes or num_workers",
            about=("cache_limit_gb",),
        )


def _hash_to_check(wanted: str | None, index: dict[str, Any], place: World) -> str | None:
    """Return the hash by which downloads are checked; `auto` takes the fastest that the index has."""
    known = index["shards"][0].get("hashes", [])
    if wanted is None:
        return None
    if wanted != "auto":
        if wanted not in known:
            raise DataError(
                f"validate_hash: {wanted} is not among the index's hashes {known}", about=("validate_hash",)
            )
        return wanted
    found = next((name for name in FAST_HASHES if name in known and is_hash(name)), None)
    if found is None and place.rank == 0:
        log.warning("the shards carry no hash that can be checked, so a corrupt download would be read as it is")
    return found
