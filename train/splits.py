"""A split of the dataset that the config names: its index read, its cache prepared, opened to train or evaluate on."""

import contextlib
import json
import logging
import math
import os
import uuid
from pathlib import Path
from typing import Any

from composer.utils import dist
from streaming.base.hashing import is_hash

from imagestream.data.dataset import StreamingEvalImages, StreamingImages
from imagestream.data.downloads import CheckedStream, least_cache_bytes
from imagestream.data.job_dir import link_for_this_job, one_at_a_time
from imagestream.mds.index import DataError, fault_of_index
from imagestream.mds.manifest import MANIFEST_NAME, Manifest, ManifestError, index_fingerprint, parse_manifest
from imagestream.mds.records import fault_of_columns
from imagestream.storage.folders import FolderError, open_folder
from train.config.sections import DataConfig
from train.loader import MAX_AUTO_WORKERS

log = logging.getLogger(__name__)

FAST_HASHES = ("xxh64", "xxh3_64", "xxh128", "sha1", "md5", "sha256")


def open_train(cfg: DataConfig, *, global_batch_size: int, device_batch_size: int, seed: int) -> StreamingImages:
    """Open the training split; collective over all ranks."""
    dataset = _open(
        StreamingImages,
        cfg,
        cfg.train_split,
        global_batch_size=global_batch_size,
        batch_size=device_batch_size,
        shuffle=True,
        shuffle_algo=cfg.shuffle_algo,
        shuffle_seed=seed,
        shuffle_block_size=cfg.shuffle_block_size,
    )
    if dataset.steps_per_epoch == 0:
        raise DataError(
            f"{describe(cfg, cfg.train_split)} holds {dataset.num_samples} samples, fewer than one global batch of "
            f"{global_batch_size}; lower global_batch_size"
        )
    return dataset


def open_eval(cfg: DataConfig, split: str, *, device_batch_size: int) -> StreamingEvalImages:
    """Open a split for evaluation; collective over all ranks."""
    return _open(StreamingEvalImages, cfg, split, global_batch_size=1, batch_size=device_batch_size, shuffle=False)


def _open(kind: type[Any], cfg: DataConfig, split: str, **kwargs: Any) -> Any:
    index = read_index(cfg, split)
    _check_index(cfg, split, index)
    try:
        local = link_for_this_job(str(cfg.local))
        if cfg.remote is not None:
            _prepare_cache(cfg, split, index)
            _check_cache_limit(cfg, index, shuffled=bool(kwargs["shuffle"]))
        stream = CheckedStream(
            remote=cfg.remote,
            local=local,
            split=split or None,
            validate_hash=_hash_to_check(cfg.validate_hash, index),
            hash_found=cfg.hash_found_shards,
            empty_cache=cfg.cache_limit_gb is not None,
            patience_s=cfg.download_patience_s,
            download_timeout=cfg.download_timeout_s,
        )
        with one_at_a_time():
            return kind(
                streams=[stream],
                columns=(cfg.columns.image, cfg.columns.label),
                predownload=cfg.predownload,
                cache_limit=None if cfg.cache_limit_gb is None else int(cfg.cache_limit_gb * 1e9),
                num_canonical_nodes=cfg.num_canonical_nodes,
                **kwargs,
            )
    except (RuntimeError, OSError, ValueError) as error:  # RecordError is one
        raise DataError(f"{describe(cfg, split)} cannot be opened: {error}") from error


def _check_index(cfg: DataConfig, split: str, index: dict[str, Any]) -> None:
    """Compare an index with the manifest, where there is one: all hashes are taken from the index, which has none."""
    manifest = read_manifest(cfg)
    if manifest and split in manifest.splits and manifest.splits[split].fingerprint != index_fingerprint(index):
        where = describe(cfg, os.path.join(split, "index.json"))
        raise DataError(
            f"{where} is not the index that {MANIFEST_NAME} describes; copy or convert the dataset again, or remove "
            f"{MANIFEST_NAME} if the shards were changed on purpose"
        )


def _prepare_cache(cfg: DataConfig, split: str, index: dict[str, Any]) -> None:
    """Put the index into the cache; called by every rank, of which one is enough.

    Raises:
        ValueError: the cache is another dataset's, or is the dataset itself.
    """
    if "://" not in str(cfg.remote) and os.path.realpath(str(cfg.remote)) == os.path.realpath(str(cfg.local)):
        raise ValueError("data.local is the same folder; to read the shards in place set data.remote=null")
    folder = Path(str(cfg.local), split)
    path = folder / "index.json"
    with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
        if json.loads(path.read_text()) == index:
            return
        raise ValueError(
            f"{path}, in the cache, is another dataset's; give data.local another folder, or delete this one"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"data.local: the cache {folder} cannot be made: {error.strerror}") from error
    part = folder / f".index.json.{uuid.uuid4().hex[:12]}.part"
    part.write_text(json.dumps(index))
    os.replace(part, path)


def _check_cache_limit(cfg: DataConfig, index: dict[str, Any], *, shuffled: bool) -> None:
    """Raise ValueError where a cache of this size would fetch each shard again and again."""
    if cfg.cache_limit_gb is None:
        return
    nodes = max(1, dist.get_world_size() // dist.get_local_world_size())
    workers = MAX_AUTO_WORKERS if cfg.num_workers == "auto" else max(1, cfg.num_workers)
    sizes = [
        sum(shard[part]["bytes"] for part in ("raw_data", "zip_data") if shard.get(part)) for shard in index["shards"]
    ]
    needed = least_cache_bytes(
        sizes,
        samples=count_samples(index),
        block_samples=cfg.shuffle_block_size if shuffled else 1,
        canonical_nodes=math.ceil(cfg.num_canonical_nodes / nodes) if shuffled else 1,
        readers=workers * dist.get_local_world_size(),
    )
    if cfg.cache_limit_gb * 1e9 < needed:
        raise ValueError(
            f"data.cache_limit_gb: {cfg.cache_limit_gb:g} is less than the {needed / 1e9:.3g} GB that this run reads "
            f"from at a time; raise it (the split has {sum(sizes) / 1e9:.3g} GB in all), or lower "
            "data.shuffle_block_size, data.num_canonical_nodes or data.num_workers"
        )


def describe(cfg: DataConfig, split: str) -> str:
    """Return where a split's shards are, for messages."""
    return os.path.join(cfg.remote or str(cfg.local), split)


def read_index(cfg: DataConfig, split: str) -> dict[str, Any]:
    """Return a split's index.json.

    Raises:
        DataError: when there is none, it is not an MDS index, or its shards hold no images with labels.
    """
    text = _read_text(cfg, os.path.join(split, "index.json"))
    where = os.path.join(describe(cfg, split), "index.json")
    if text is None:
        raise DataError(f"{where} does not exist; convert the images first, or correct data.remote / data.local")
    try:
        index: dict[str, Any] = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not an MDS index: {error}; copy or convert the dataset again") from error
    fault = fault_of_index(index)
    if fault:
        raise DataError(f"{where} is not an MDS index: {fault}; copy or convert the dataset again")
    for number, shard in enumerate(index["shards"]):
        encodings = dict(zip(shard["column_names"], shard["column_encodings"], strict=True))
        if fault := fault_of_columns(encodings, cfg.columns.image, cfg.columns.label):
            raise DataError(f"{where}: shard {number} cannot be trained on: {fault}")
    return index


def count_samples(index: dict[str, Any]) -> int:
    """Return how many samples an index's shards hold."""
    return sum(int(shard["samples"]) for shard in index["shards"])


def read_manifest(cfg: DataConfig) -> Manifest | None:
    """Return the dataset's manifest, or None for one that this project did not convert."""
    text = _read_text(cfg, MANIFEST_NAME)
    try:
        return None if text is None else parse_manifest(text.encode(), where=describe(cfg, MANIFEST_NAME))
    except ManifestError as error:
        raise DataError(str(error)) from error


def class_names(cfg: DataConfig) -> tuple[str, ...] | None:
    """Return the names of the dataset's classes (ImageNet's: wnids) by label, or None where it has no manifest."""
    manifest = read_manifest(cfg)
    return None if manifest is None else tuple(info.wnid for info in manifest.classes)


def _read_text(cfg: DataConfig, name: str) -> str | None:
    """Return a small file of the dataset, or None when it is not there.

    Raises:
        DataError: it cannot be read, or is no text.
    """
    where = describe(cfg, name)
    if "://" not in where and os.path.isdir(where):
        raise DataError(f"{where} is a folder; a file is expected, so copy or convert the dataset again")
    try:
        data = open_folder(cfg.remote or str(cfg.local)).read(name)
        return None if data is None else data.decode()
    except FolderError as error:
        raise DataError(f"{error}; correct its permissions or copy it again") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is damaged: {error}; copy or convert the dataset again") from error


def _hash_to_check(wanted: str | None, index: dict[str, Any]) -> str | None:
    """Return the hash by which downloads are checked; `auto` takes the fastest that the index has."""
    known = index["shards"][0].get("hashes", [])
    if wanted is None:
        return None
    if wanted != "auto":
        if wanted not in known:
            raise DataError(f"data.validate_hash: {wanted} is not among the index's hashes {known}")
        return wanted
    found = next((name for name in FAST_HASHES if name in known and is_hash(name)), None)
    if found is None and dist.get_global_rank() == 0:
        log.warning("the shards carry no hash that can be checked, so a corrupt download would be read as it is")
    return found
