"""One training run, from its configuration to its record."""

import contextlib
import logging
import os
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from composer import Trainer
from composer.core import Callback, Evaluator, Event, Precision
from composer.devices import Device
from composer.loggers import LoggerDestination, WandBLogger
from composer.utils import dist, get_device, reproducibility

from imagestream.cores import threads_per_rank
from imagestream.data.dataset import StreamingEvalImages, StreamingImages
from imagestream.data.labels import Labels
from imagestream.decode.backends import open_decoder
from imagestream.mds.index import DataError
from imagestream.mds.manifest import index_fingerprint
from imagestream.storage.folders import Folder, FolderError, LocalFolder, open_folder
from train.capacity import (
    check_canonical_nodes,
    check_samples,
    check_shared_memory,
    check_smallest_pass,
    free_shared_memory,
    needed_shared_memory,
    node_count,
)
from train.config.run_config import Config, ConfigError, device_batch_size, resolved_yaml
from train.loader import build_eval_spec, build_train_spec, worker_count
from train.model import build_model, parameter_count
from train.optim import build_optimizer, build_scheduler
from train.record.heartbeat import Heartbeat
from train.record.log_files import LogFile, TensorboardFiles, refuse_wandb_without_key
from train.record.run_record import RunRecord
from train.resolution import Resolution
from train.resume.checkpoint_file import CheckpointError, one_line, only_load_safely
from train.resume.checkpoints import (
    DurableCheckpointSaver,
    list_checkpoints,
    on_every_node,
    use_averaged_weights,
)
from train.resume.contract import Contract, contract_of
from train.resume.environment import environment_of
from train.resume.fence import TakenOverError, release
from train.resume.guard import ResumeGuard
from train.resume.start import RefusedError, find_start
from train.run_length import what_comes_too_late
from train.signals import listen
from train.splits import (
    class_names,
    count_samples,
    open_eval,
    open_train,
    read_index,
    read_manifest,
)
from train.splits import describe as where_is
from train.stopping import BatchWatch, StopRequested

log = logging.getLogger(__name__)

HARMLESS_WARNINGS = (
    "Some targets have less than 1 total probability",  # Composer's label smoothing, by float32's rounding
    "Cannot split tensor of length",  # the last batch of an evaluation is a short one
)


@dataclass(frozen=True)
class Facts:
    """What the dataset and the world make of a configuration."""

    fingerprint: str
    val_fingerprint: str
    num_classes: int
    classes: tuple[str, ...] | None
    train_samples: int
    val_samples: int
    world_size: int
    device_batch_size: int
    eval_device_batch_size: int
    steps_per_epoch: int
    total_steps: int
    decoder: str
    decoder_version: str


def train(cfg: Config, *, allowed: set[str]) -> dict[str, Any]:
    """Train, evaluate and write the record; resume where an earlier call was killed.

    Args:
        allowed: settings that may differ from those of the checkpoint that is resumed.

    Returns:
        The run's record, as in run.json.

    Raises:
        RefusedError: before anything is trained.
        StopRequested: a signal has ended it; a checkpoint is saved.
        NonFiniteError: loss or gradients are not finite any more.
    """
    device = start_process(cfg.dist_timeout)
    signals = listen(saves=True)
    choose_kernels(cfg, device)
    facts = gather_facts(cfg)
    folder = open_folder(cfg.checkpoint.save_folder)
    check_shared_memory(shared_memory_of(cfg, facts))
    start = find_start(cfg, folder, contract_for(cfg, facts, device), allowed)
    folder = start.folder
    if start.checkpoint is None:  # a run that goes on may do so on any number of nodes
        check_canonical_nodes(cfg.data.num_canonical_nodes, node_count())
    if device.name == "cpu":
        torch.set_num_threads(int(start.contract.environment["threads_per_rank"].partition(" ")[0]))

    train_set = open_train(
        cfg.data, global_batch_size=cfg.global_batch_size, device_batch_size=facts.device_batch_size, seed=cfg.seed
    )
    val_set = open_eval(cfg.data, cfg.data.val_split, device_batch_size=facts.eval_device_batch_size)
    guard = ResumeGuard(start.contract, seed=cfg.seed, train_set=train_set, changes=start.changes)
    record = RunRecord(describe(cfg, facts), folder, guard)
    saver = DurableCheckpointSaver(folder, save_interval=cfg.checkpoint.save_interval, keep=cfg.checkpoint.keep)
    watch = BatchWatch(signals, saver, skips=cfg.nonfinite_skips)

    with on_every_node(folder, start.checkpoint) as load_path:
        trainer = build_trainer(
            cfg, device, facts, train_set, val_set, [watch, guard, record, saver, Heartbeat()], load_path
        )
    with saving(trainer, folder):
        if is_finished(trainer):
            end_last_epoch(trainer, train_set.steps_per_epoch)
        else:
            trainer.fit()
        use_averaged_weights(trainer.state)
        record.note_weights(trainer.state)
        if not record.is_evaluated(int(trainer.state.timestamp.batch)):
            trainer.eval()
        result = record.finish()
    log.info(
        "done: top-1 %.2f%%, top-5 %.2f%% on %d samples, weights %s",
        100 * result["top1"],
        100 * result["top5"],
        result["samples_evaluated"],
        result["weights_sha256"][:16],
    )
    trainer.close()
    return result


class SavingFailedError(RuntimeError):
    """The save folder was there at the start, and now cannot be written."""


@contextlib.contextmanager
def saving(trainer: Trainer, folder: Folder) -> Iterator[None]:
    """Give the save folder back at the end, and say of a run that could not save what it has ended for.

    Raises:
        SavingFailedError: a checkpoint or the record cannot be stored, or another run has taken over the folder.
    """
    try:
        yield
    except StopRequested:
        release(folder)
        raise
    except TakenOverError as error:
        raise SavingFailedError(
            f"the run has ended after batch {int(trainer.state.timestamp.batch)}: {error}"
        ) from error
    except FolderError as error:
        raise SavingFailedError(
            f"the run has ended after batch {int(trainer.state.timestamp.batch)}: {error}; once that is mended, the "
            "same command goes on from the newest checkpoint"
        ) from error
    release(folder)


def plan(cfg: Config) -> str:
    """Return the resolved configuration and the arithmetic of the run, after checking data and save folder."""
    facts = gather_facts(cfg)
    folder = open_folder(cfg.checkpoint.save_folder)
    folder.check_writable()
    if not list_checkpoints(folder):
        check_canonical_nodes(cfg.data.num_canonical_nodes, node_count())
    needed = shared_memory_of(cfg, facts)
    check_shared_memory(needed)
    epochs = facts.total_steps / facts.steps_per_epoch
    left_out = facts.train_samples - facts.steps_per_epoch * cfg.global_batch_size
    return "\n".join(
        [
            resolved_yaml(cfg),
            f"# data         {facts.train_samples:,} train and {facts.val_samples:,} val samples, "
            f"{facts.num_classes} classes, fingerprint {facts.fingerprint[:16]}",
            f"# batch        {cfg.global_batch_size:,} = {facts.world_size} ranks x {facts.device_batch_size:,}",
            f"# steps        {facts.total_steps:,} = {epochs:g} epochs x {facts.steps_per_epoch:,}; "
            f"{left_out:,} samples of each epoch are left out, others each time",
            f"# images       {facts.total_steps * cfg.global_batch_size:,} in all",
            f"# decoder      {facts.decoder_version}; {worker_count(cfg.data)} loader workers a rank",
            f"# /dev/shm     up to {needed / 1e9:.3g} GB a node for batches; "
            f"{free_shared_memory() / 1e9:.3g} GB are free here",
            f"# save_folder  {cfg.checkpoint.save_folder} is writable",
        ]
    )


def shared_memory_of(cfg: Config, facts: Facts) -> int:
    """Return the bytes of shared memory that a node will need."""
    return needed_shared_memory(
        cfg, device_batch_size=facts.device_batch_size, eval_device_batch_size=facts.eval_device_batch_size
    )


def start_process(dist_timeout: float) -> Device:
    """Join the process group, and set what holds for the whole process.

    Args:
        dist_timeout: seconds that a rank waits for the others before it gives up.
    """
    device = get_device(None)
    if not dist.is_initialized():
        dist.initialize_dist(device, timeout=dist_timeout)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    for ours in ("train", "imagestream"):
        logging.getLogger(ours).setLevel(logging.INFO if dist.get_global_rank() == 0 else logging.WARNING)
    for harmless in HARMLESS_WARNINGS:
        warnings.filterwarnings("ignore", message=harmless)
    only_load_safely()
    if device.name == "cpu":
        torch.set_num_threads(threads_per_rank(dist.get_local_world_size()))
    return device


def choose_kernels(cfg: Config, device: Device) -> None:
    """Let cuDNN search for its fastest kernels, unless the result must be the same bit for bit.

    Raises:
        ConfigError: a setting that cannot give the same result twice goes with `deterministic: true`.
    """
    if device.name != "gpu":
        return
    if cfg.deterministic and cfg.device_train_microbatch_size == "auto":
        raise ConfigError(
            "device_train_microbatch_size: 'auto' depends on the memory that happens to be free, which "
            "deterministic: true rules out; give a number"
        )
    torch.backends.cudnn.benchmark = not cfg.deterministic


def gather_facts(cfg: Config) -> Facts:
    """Read what the dataset says of itself, and do the arithmetic.

    Raises:
        ConfigError: a batch does not divide over the ranks, or something in the recipe does not fit the run.
        DataError: the shards or their labels are not usable.
    """
    precision_on(get_device(None), cfg)
    refuse_wandb_without_key(cfg.loggers)
    world_size = dist.get_world_size()
    per_device = device_batch_size(cfg, world_size)
    indices = [read_index(cfg.data, split) for split in (cfg.data.train_split, cfg.data.val_split)]
    train_samples, val_samples = map(count_samples, indices)
    fingerprint, val_fingerprint = map(index_fingerprint, indices)
    steps = train_samples // cfg.global_batch_size
    if steps == 0:
        raise DataError(
            f"the training split holds {train_samples:,} samples, fewer than one global batch of "
            f"{cfg.global_batch_size:,}; lower global_batch_size"
        )
    if dist.get_global_rank() == 0:
        for warning in what_comes_too_late(cfg, steps):
            log.warning("%s", warning)
    check_smallest_pass(cfg, per_device)
    check_samples(cfg.data.num_canonical_nodes, train_samples)
    length = int(cfg.max_duration[:-2])
    decoder = open_decoder(cfg.data.decoder, resize_in=cfg.data.resize_in)
    return Facts(
        fingerprint=fingerprint,
        val_fingerprint=val_fingerprint,
        num_classes=count_classes(cfg),
        classes=class_names(cfg.data),
        train_samples=train_samples,
        val_samples=val_samples,
        world_size=world_size,
        device_batch_size=per_device,
        eval_device_batch_size=max(1, cfg.data.eval_batch_size // world_size),
        steps_per_epoch=steps,
        total_steps=length * steps if cfg.max_duration.endswith("ep") else length,
        decoder=decoder.name,
        decoder_version=decoder.version,
    )


def count_classes(cfg: Config) -> int:
    """Return the number of classes: as configured, or as the dataset's manifest says."""
    manifest = read_manifest(cfg.data)
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
        environment=environment_of(device, decoder_version=facts.decoder_version),
        is_bit_exact=device.name == "cpu" or cfg.deterministic,
    )


def build_trainer(
    cfg: Config,
    device: Device,
    facts: Facts,
    train_set: StreamingImages,
    val_set: StreamingEvalImages,
    callbacks: list[Callback],
    load_path: str | None,
) -> Trainer:
    """Return Composer's Trainer for a run, with the checkpoint loaded where there is one."""
    guard = next(callback for callback in callbacks if isinstance(callback, ResumeGuard))
    train_spec = build_train_spec(
        train_set,
        cfg.data,
        seed=cfg.seed,
        resolution=Resolution(cfg.data.crop_size, facts.steps_per_epoch, cfg.max_duration, cfg.size_schedule),
        device=torch_device(device),
        on_batch=guard.on_batch,
        algorithms=cfg.per_sample_algorithms,
        labels=Labels(facts.num_classes, where=where_is(cfg.data, cfg.data.train_split)),
    )
    val_labels = Labels(facts.num_classes, where=where_is(cfg.data, cfg.data.val_split))
    eval_spec = build_eval_spec(val_set, cfg.data, device=torch_device(device), labels=val_labels)
    reproducibility.seed_all(cfg.seed)  # the same initial weights on every rank and for every world size
    model = build_model(cfg.model, facts.num_classes)
    log.info(
        "train: %s, %s parameters, %d classes; %s samples, global batch %d = %d ranks x %d, %s steps",
        cfg.model.name,
        f"{parameter_count(model):,}",
        facts.num_classes,
        f"{facts.train_samples:,}",
        cfg.global_batch_size,
        facts.world_size,
        facts.device_batch_size,
        f"{facts.total_steps:,}",
    )
    with refusing(load_path):
        return Trainer(
            model=model,
            train_dataloader=train_spec,
            eval_dataloader=Evaluator(label="eval", dataloader=eval_spec),
            max_duration=cfg.max_duration,
            eval_interval=cfg.eval_interval,
            optimizers=build_optimizer(model, cfg.optimizer),
            schedulers=build_scheduler(cfg.scheduler),
            algorithms=cfg.build_algorithms(),
            callbacks=callbacks,
            loggers=build_loggers(cfg),
            progress_bar=shows_progress_bar(cfg),
            log_to_console=cfg.loggers.console_interval is not None,
            console_log_interval=cfg.loggers.console_interval or "1ep",
            run_name=cfg.run_name,
            device=device,
            precision=precision_on(device, cfg),
            device_train_microbatch_size=microbatch_size_on(device, cfg),
            seed=cfg.seed,
            deterministic_mode=cfg.deterministic,
            load_path=load_path,
            spin_dataloaders=False,  # the dataset finds its place by itself, and no generator needs winding forward
            dist_timeout=cfg.dist_timeout,
        )


@contextlib.contextmanager
def refusing(load_path: str | None) -> Iterator[None]:
    """Have Composer's errors over a checkpoint that is whole, but not what it expects, name the file.

    Raises:
        CheckpointError: it cannot be continued from.
    """
    try:
        yield
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        if load_path is None or isinstance(error, RefusedError):
            raise
        raise CheckpointError(
            f"{os.path.basename(load_path)} cannot be continued from: {one_line(error)}; something has changed it "
            "after it was written, or it is of another model. Move it away, and the run goes on from the one before"
        ) from error


def build_loggers(cfg: Config) -> list[LoggerDestination]:
    """Return the loggers that the config asks for; files go to the save folder, or to runs/ when that is in S3."""
    folder = open_folder(cfg.checkpoint.save_folder)
    root = str(folder.path) if isinstance(folder, LocalFolder) else os.path.join("runs", cfg.run_name)
    loggers: list[LoggerDestination] = []
    if cfg.loggers.file:
        started = time.strftime("%Y%m%d-%H%M%S")
        loggers.append(LogFile(os.path.join(root, "logs", started + "-rank{rank}.txt")))
    if cfg.loggers.tensorboard:
        loggers.append(TensorboardFiles(os.path.join(root, "tensorboard")))
    if wandb := cfg.loggers.wandb:
        loggers.append(
            WandBLogger(
                project=wandb.project,
                name=cfg.run_name,
                entity=wandb.entity,
                tags=list(wandb.tags),
                init_kwargs={"mode": wandb.mode, "dir": root, "config": cfg.model_dump(mode="json")},
            )
        )
    return loggers


def shows_progress_bar(cfg: Config) -> bool:
    """Return whether a progress bar is drawn: as configured, or where somebody is looking."""
    wanted = cfg.loggers.progress_bar
    return os.isatty(2) if wanted == "auto" else wanted


def torch_device(device: Device) -> torch.device:
    """Return this rank's device as torch names it."""
    return torch.device("cuda", dist.get_local_rank()) if device.name == "gpu" else torch.device("cpu")


def precision_on(device: Device, cfg: Config) -> Precision:
    """Return the arithmetic to train in.

    Raises:
        ConfigError: this device has no such arithmetic.
    """
    if cfg.precision == "auto":
        return Precision.AMP_BF16 if device.name == "gpu" else Precision.FP32
    if cfg.precision != "fp32" and device.name != "gpu":
        raise ConfigError(f"precision: '{cfg.precision}' needs a GPU, and here is none; give precision=fp32, or auto")
    return Precision(cfg.precision)


def microbatch_size_on(device: Device, cfg: Config) -> int | str | None:
    """Return images per forward pass; None is the whole device batch, which `auto` means on a CPU."""
    wanted = cfg.device_train_microbatch_size
    return None if wanted == "auto" and device.name != "gpu" else wanted


def is_finished(trainer: Trainer) -> bool:
    """Return whether the loaded checkpoint is the run's last."""
    state = trainer.state
    assert state.max_duration is not None
    return state.timestamp.get(state.max_duration.unit) >= state.max_duration


def end_last_epoch(trainer: Trainer, steps_per_epoch: int) -> None:
    """For a finished run whose last checkpoint was saved at its last batch, make up for the end of the last epoch.

    `Trainer.fit` does not go on from there, and what is noted at an epoch's end would be missing from the record.
    """
    state = trainer.state
    if int(state.timestamp.batch_in_epoch) == steps_per_epoch:
        state.previous_timestamp, state.timestamp = state.timestamp, state.timestamp.to_next_epoch()
        trainer.engine.run_event(Event.EPOCH_END)


def describe(cfg: Config, facts: Facts) -> dict[str, Any]:
    """Return the part of the run's record that is known before the first step."""
    return {
        "config": cfg.model_dump(mode="json"),
        "dataset": {
            "remote": cfg.data.remote,
            "local": cfg.data.local,
            "fingerprint": facts.fingerprint,
            "num_classes": facts.num_classes,
            "classes": None if facts.classes is None else list(facts.classes),
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
