"""What the dataset and the world make of a configuration, and the plan that `--dry-run` prints."""

import logging
from dataclasses import dataclass
from typing import Any

from composer.devices import Device
from composer.utils import dist, get_device

from imagestream.data.dataset_files import DatasetFiles
from imagestream.data.opening import check_nodes, check_samples
from imagestream.decode.backends import open_decoder
from imagestream.mds.index import DataError
from imagestream.storage.places import open_place
from train.capacity import (
    GB,
    check_shared_memory,
    check_smallest_pass,
    free_shared_memory,
    needed_shared_memory,
    node_count,
    room_for_cache,
    too_few_for_batchnorm,
    warn_of_a_small_cache,
)
from train.config.algorithms import SizeSchedule
from train.config.batch_scale import scaled, scaling_in_words
from train.config.run_config import Config, device_batch_size, resolved_yaml
from train.data import dataset_files, workers_of
from train.model import build_model, parameter_count
from train.networks import check_timms, environment_of_network, normalises_by_batches
from train.process import check_smallest_image, check_training_step, precision_on
from train.record.logger_ids import check_loggers
from train.resolution import Resolution
from train.resume.checkpoints import (
    list_checkpoints,
)
from train.resume.contract import Contract, contract_of
from train.resume.environment import environment_of
from train.run_length import what_comes_too_late
from train.weights.beginning import InitialWeights, begin, read_initial_weights

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Facts:
    """What the dataset and the world make of a configuration."""

    files: DatasetFiles
    fingerprint: str
    val_fingerprint: str
    num_classes: int
    classes: tuple[str, ...] | None
    exif: str | None
    train_samples: int
    val_samples: int
    world_size: int
    device_batch_size: int
    eval_device_batch_size: int
    steps_per_epoch: int
    total_steps: int
    decoder: str
    decoder_version: str
    weights: InitialWeights | None = None


def gather_facts(cfg: Config) -> Facts:
    """Read what the dataset says of itself, and do the arithmetic.

    Raises:
        ConfigError: a batch does not divide over the ranks, or something in the recipe does not fit the run.
        DataError: the shards or their labels are not usable.
    """
    precision_on(get_device(None), cfg)
    check_training_step(get_device(None), cfg)
    check_loggers(cfg.loggers)
    check_timms(cfg)
    world_size = dist.get_world_size()
    per_device = device_batch_size(cfg, world_size)
    files, splits = dataset_files(cfg.data), (cfg.data.train_split, cfg.data.val_split)
    train_samples, val_samples = map(files.count, splits)
    fingerprint, val_fingerprint = map(files.fingerprint, splits)
    steps = train_samples // cfg.global_batch_size
    if steps == 0:
        raise DataError(
            f"the training split holds {train_samples:,} samples, fewer than one global batch of "
            f"{cfg.global_batch_size:,}; lower global_batch_size"
        )
    has_norms = normalises_by_batches(cfg)
    if dist.get_global_rank() == 0:
        for warning in what_comes_too_late(cfg, steps):
            log.warning("warning: this takes no effect: %s", warning)
        if has_norms and (few := too_few_for_batchnorm(cfg, device_batch_size=per_device, world_size=world_size)):
            log.warning("warning: %s", few)
    warn_of_a_small_cache(cfg, files)
    if has_norms:
        check_smallest_pass(cfg, per_device)
    check_samples(cfg.data.num_canonical_nodes, train_samples)
    length = int(cfg.max_duration[:-2])
    decoder = open_decoder(cfg.data.decoder, resize_in=cfg.data.resize_in)
    manifest = files.manifest()
    converted = manifest.splits.get(cfg.data.train_split) if manifest is not None else None
    facts = Facts(
        files=files,
        fingerprint=fingerprint,
        val_fingerprint=val_fingerprint,
        num_classes=count_classes(cfg, files),
        classes=files.class_names(),
        exif=None if converted is None else converted.options.exif,
        train_samples=train_samples,
        val_samples=val_samples,
        world_size=world_size,
        device_batch_size=per_device,
        eval_device_batch_size=max(1, cfg.data.eval_batch_size // world_size),
        steps_per_epoch=steps,
        total_steps=length * steps if cfg.max_duration.endswith("ep") else length,
        decoder=decoder.name,
        decoder_version=decoder.version,
        weights=read_initial_weights(cfg.model),
    )
    check_smallest_image(get_device(None), cfg, lambda: min(sizes_of(cfg, facts)))
    return facts


def sizes_of(cfg: Config, facts: Facts) -> list[int]:
    """Return the edges, px, of the images that are trained on, wherever they are made so small."""
    schedule = next((algorithm for algorithm in cfg.algorithms if isinstance(algorithm, SizeSchedule)), None)
    sizes = Resolution(cfg.data.crop_size, facts.steps_per_epoch, cfg.max_duration, schedule)
    return sorted({sizes(step) for step in range(facts.total_steps)})


def count_classes(cfg: Config, files: DatasetFiles) -> int:
    """Return the number of classes: as configured, or as the dataset's manifest says."""
    manifest = files.manifest()
    known = None if manifest is None else len(manifest.classes)
    if cfg.model.num_classes == "auto":
        if known is None:
            raise DataError(
                "model.num_classes: 'auto' takes the number from manifest.json, which this dataset has not; "
                "give it, as in model.num_classes=1000"
            )
        return known
    if known is not None and known > cfg.model.num_classes:
        raise DataError(f"model.num_classes: {cfg.model.num_classes} is fewer than the dataset's {known} classes")
    if known is not None and known < cfg.model.num_classes:
        log.warning(
            "model.num_classes: %d, and the dataset has %d classes; the model's others have no images",
            cfg.model.num_classes,
            known,
        )
    return cfg.model.num_classes


def contract_for(cfg: Config, facts: Facts, device: Device) -> Contract:
    """Return what a checkpoint has to agree with; collective."""
    return contract_of(
        cfg,
        fingerprint=facts.fingerprint,
        val_fingerprint=facts.val_fingerprint,
        decoder=facts.decoder,
        num_classes=facts.num_classes,
        precision=precision_on(device, cfg).value,
        world_size=facts.world_size,
        environment=environment_of(device, decoder_version=facts.decoder_version)
        | environment_of_network(cfg.model.name),
        is_bit_exact=device.name == "cpu" or cfg.deterministic,
        weights=facts.weights,
    )


def shared_memory_of(cfg: Config, facts: Facts) -> int:
    """Return the bytes of shared memory that a node will need."""
    return needed_shared_memory(
        cfg, device_batch_size=facts.device_batch_size, eval_device_batch_size=facts.eval_device_batch_size
    )


def plan(given: Config) -> str:
    """Return the resolved configuration and the arithmetic of the run, after checking data and save folder."""
    cfg = scaled(given)
    changes = scaling_in_words(given, cfg)
    facts = gather_facts(cfg)
    folder = open_place(cfg.checkpoint.save_folder)
    folder.check_writable()
    begins = not list_checkpoints(folder)
    if begins:
        check_nodes(cfg.data.num_canonical_nodes, node_count())
    needed = shared_memory_of(cfg, facts)
    check_shared_memory(needed)
    epochs = facts.total_steps / facts.steps_per_epoch
    left_out = facts.train_samples - facts.steps_per_epoch * (cfg.global_batch_size // cfg.data.aug_repeats)
    return "\n".join(
        [
            resolved_yaml(cfg),
            f"# data         {facts.train_samples:,} train and {facts.val_samples:,} val samples, "
            f"{facts.num_classes} classes, fingerprint {facts.fingerprint[:16]}",
            f"# batch        {cfg.global_batch_size:,} = {facts.world_size} ranks x {facts.device_batch_size:,}",
            *([f"# scaled       from a batch of {given.scale_with_batch:,}: {changes}"] if changes else []),
            f"# steps        {facts.total_steps:,} = {epochs:g} epochs x {facts.steps_per_epoch:,}; "
            f"{left_out:,} samples of each epoch are left out, others each time",
            f"# images       {facts.total_steps * cfg.global_batch_size:,} in all",
            *(beginning_in_words(cfg, facts) if begins else []),
            f"# decoder      {facts.decoder_version}; {workers_of(cfg.data)} loader workers a rank",
            f"# /dev/shm     up to {needed / GB:.3g} GB a node for batches; "
            f"{free_shared_memory() / GB:.3g} GB are free here",
            *(cache_in_words(cfg, facts.files) if cfg.data.remote else []),
            f"# save_folder  {cfg.checkpoint.save_folder} is writable",
        ]
    )


def cache_in_words(cfg: Config, files: DatasetFiles) -> list[str]:
    """Return a line of a plan: what the cache will take, and what is free there; none where it cannot be looked at."""
    if (room := room_for_cache(cfg, files)) is None:
        return []
    missing, free = room
    return [f"# cache        {missing / GB:.3g} GB to come to {files.local}; {free / GB:.3g} GB are free there"]


def beginning_in_words(cfg: Config, facts: Facts) -> list[str]:
    """Return lines of a plan: what model.weights gives the network, and how much of it is trained. Collective.

    Raises:
        WeightsError: they are not there, or of another network.
        ConfigError: model.freeze names what is not there, or everything.
    """
    if cfg.model.weights is None and not cfg.model.freeze:
        return []
    model = build_model(cfg.model, facts.num_classes, image_px=cfg.data.crop_size)
    matched = begin(
        model, cfg.model, cfg.algorithms, facts.weights, num_classes=facts.num_classes, classes=facts.classes
    )
    lines = [f"# weights      {cfg.model.weights}: {matched}"] if matched else []
    if cfg.model.freeze:
        total = sum(parameter.numel() for parameter in model.parameters())
        lines.append(
            f"# frozen       {', '.join(cfg.model.freeze)}; trained: {parameter_count(model):,} of {total:,} weights"
        )
    return lines


def describe(cfg: Config, facts: Facts, contract: Contract) -> dict[str, Any]:
    """Return the part of the run's record that is known before the first step."""
    return {
        "config": cfg.model_dump(mode="json"),
        "began_with": {"weights": cfg.model.weights, "sha256": contract.settings["model.weights"]},
        "dataset": {
            "remote": cfg.data.remote,
            "local": cfg.data.local,
            "fingerprint": facts.fingerprint,
            "num_classes": facts.num_classes,
            "classes": None if facts.classes is None else list(facts.classes),
            "exif": facts.exif,
            "train_samples": facts.train_samples,
            "val_samples": facts.val_samples,
            "decoder": facts.decoder_version,
        },
        "batch": {
            "world_size": facts.world_size,
            "device_batch_size": facts.device_batch_size,
            "steps_per_epoch": facts.steps_per_epoch,
            "total_steps": facts.total_steps,
        },
    }
