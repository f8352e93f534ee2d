"""Composer's Trainer for a run."""

import contextlib
import logging
import os
from collections.abc import Iterator

import torch
from composer import Trainer
from composer.core import Callback, Evaluator, Event
from composer.devices import Device
from composer.utils import reproducibility

from imagestream.data.labels import Labels
from imagestream.loader import Loader
from train.config.run_config import Config
from train.data import eval_loader, eval_spec, train_loader, train_spec
from train.facts import Facts, sizes_of
from train.loggers import build_loggers
from train.model import build_model, parameter_count
from train.optim import build_optimizer, build_scheduler
from train.process import microbatch_size_of, precision_on, searches_microbatch
from train.resolution import Resolution
from train.resume.checkpoint_file import CheckpointError, one_line
from train.resume.guard import ResumeGuard
from train.resume.start import RefusedError
from train.step.trainer import StepTrainer
from train.stopping import BatchWatch
from train.weights.beginning import begin

log = logging.getLogger(__name__)


def open_loaders(cfg: Config, facts: Facts, device: torch.device) -> tuple[Loader, Loader]:
    """Open the training and the validation split; collective over all ranks."""
    resolution = Resolution(cfg.data.crop_size, facts.steps_per_epoch, cfg.max_duration, cfg.size_schedule)
    train_batches = train_loader(
        cfg.data,
        facts.files,
        seed=cfg.seed,
        batch_size=facts.device_batch_size,
        resolution=resolution,
        device=device,
        algorithms=cfg.per_sample_algorithms,
    )
    val_batches = eval_loader(
        cfg.data, facts.files, cfg.data.val_split, batch_size=facts.eval_device_batch_size, device=device
    )
    for loader in (train_batches, val_batches):
        loader.labels = Labels(facts.num_classes, where=facts.files.where(loader.split))
    return train_batches, val_batches


def build_trainer(
    cfg: Config,
    device: Device,
    facts: Facts,
    train_batches: Loader,
    val_batches: Loader,
    callbacks: list[Callback],
    load_path: str | None,
) -> Trainer:
    """Return Composer's Trainer for a run, with the checkpoint loaded where there is one."""
    guard = next(callback for callback in callbacks if isinstance(callback, ResumeGuard))
    watch = next(callback for callback in callbacks if isinstance(callback, BatchWatch))
    reproducibility.seed_all(cfg.seed)  # the same initial weights on every rank and for every world size
    model = build_model(
        cfg.model,
        facts.num_classes,
        image_px=cfg.data.crop_size,
        training_step=cfg.training_step,
        syncs_batchnorm=cfg.model.sync_batchnorm and facts.world_size > 1,
    )
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
    begin(
        model,
        cfg.model,
        cfg.algorithms,
        facts.weights if load_path is None else None,
        num_classes=facts.num_classes,
        classes=facts.classes,
    )
    with refusing(load_path):
        return StepTrainer(
            watch=watch,
            gradient_compression=cfg.gradient_compression,
            sizes_px=sizes_of(cfg, facts),
            searches_microbatch=searches_microbatch(device, cfg),
            model=model,
            train_dataloader=train_spec(train_batches, guard.on_batch),
            eval_dataloader=Evaluator(label="eval", dataloader=eval_spec(val_batches)),
            max_duration=cfg.max_duration,
            eval_interval=cfg.eval_interval,
            optimizers=build_optimizer(model, cfg.optimizer, is_fused=device.name == "gpu"),
            schedulers=build_scheduler(cfg.scheduler),
            algorithms=cfg.build_algorithms(),
            callbacks=callbacks,
            loggers=build_loggers(cfg),
            progress_bar=False,
            log_to_console=False,
            run_name=cfg.run_name,
            device=device,
            precision=precision_on(device, cfg),
            device_train_microbatch_size=microbatch_size_of(cfg),
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
        if load_path is None or isinstance(error, (*RefusedError, torch.OutOfMemoryError, torch.distributed.DistError)):
            raise
        raise CheckpointError(
            f"{os.path.basename(load_path)} cannot be resumed from: {one_line(error)}; something has changed it "
            "after it was written, or it is of another model. Move it away, and the run resumes from the one before"
        ) from error


def is_finished(trainer: Trainer) -> bool:
    """Return whether the loaded checkpoint is the run's last."""
    state = trainer.state
    assert state.max_duration is not None
    return state.timestamp.get(state.max_duration.unit) >= state.max_duration


def end_last_epoch(trainer: Trainer, steps_per_epoch: int) -> None:
    """For a finished run whose last checkpoint was saved at its last batch, make up for the end of the last epoch.

    `Trainer.fit` does not resume from there, and what is noted at an epoch's end would be missing from the record.
    """
    state = trainer.state
    if int(state.timestamp.batch_in_epoch) == steps_per_epoch:
        state.previous_timestamp, state.timestamp = state.timestamp, state.timestamp.to_next_epoch()
        trainer.engine.run_event(Event.EPOCH_END)
