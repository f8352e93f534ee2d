"""One training run, from its configuration to its record."""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import torch
from composer import Trainer

from imagestream.data.opening import check_nodes
from imagestream.storage.errors import PlaceError
from imagestream.storage.places import open_place
from imagestream.storage.protocol import Place
from train.capacity import check_shared_memory, node_count
from train.config.batch_scale import scaled, scaling_in_words
from train.config.run_config import Config
from train.facts import contract_for, describe, gather_facts, shared_memory_of
from train.loggers import build_metrics, build_progress
from train.process import choose_kernels, start_process, torch_device
from train.record.heartbeat import Heartbeat
from train.record.reading import RECORD_NAME
from train.record.run_record import RunRecord
from train.record.stragglers import Stragglers
from train.resume.checkpoints import (
    DurableCheckpointSaver,
    on_every_node,
    use_averaged_weights,
)
from train.resume.fence import TakenOverError, release
from train.resume.guard import ResumeGuard
from train.resume.start import find_start
from train.signals import listen
from train.step.statistics import StepStatistics
from train.stopping import BatchWatch, StopRequested
from train.trainer import build_trainer, end_last_epoch, is_finished, open_loaders

log = logging.getLogger(__name__)


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
    cfg = at_its_batch(cfg)
    facts = gather_facts(cfg)
    folder = open_place(cfg.checkpoint.save_folder)
    check_shared_memory(shared_memory_of(cfg, facts))
    start = find_start(cfg, folder, contract_for(cfg, facts, device), allowed)
    folder = start.folder
    if start.checkpoint is None:  # a run that resumes may do so on any number of nodes
        check_nodes(cfg.data.num_canonical_nodes, node_count())
    if device.name == "cpu":
        torch.set_num_threads(int(start.contract.environment["threads_per_rank"].partition(" ")[0]))

    train_batches, val_batches = open_loaders(cfg, facts, torch_device(device))
    statistics = StepStatistics()
    guard = ResumeGuard(
        start.contract, seed=cfg.seed, loader=train_batches, statistics=statistics, changes=start.changes
    )
    record = RunRecord(describe(cfg, facts, start.contract), folder, guard, statistics)
    metrics = build_metrics(cfg, facts, folder, record, statistics)
    progress = build_progress(cfg, facts, metrics, record)
    statistics.tell(Stragglers().take)
    saver = DurableCheckpointSaver(
        folder,
        statistics,
        save_interval=cfg.checkpoint.save_interval,
        keep=cfg.checkpoint.keep,
        scores=record.scores if cfg.checkpoint.keep_best else None,
        before_each=metrics.save,
    )
    watch = BatchWatch(signals, saver, statistics, skips=cfg.nonfinite_skips)

    with on_every_node(folder, start.checkpoint) as load_path:
        callbacks = [watch, guard, record, metrics, progress, saver, Heartbeat()]
        trainer = build_trainer(cfg, device, facts, train_batches, val_batches, callbacks, load_path)
    batch = int(trainer.state.timestamp.batch)
    with saving(trainer, folder, record), metrics.kept(batch), progress.shown(batch):
        if is_finished(trainer):
            end_last_epoch(trainer, train_batches.steps_per_epoch)
        else:
            trainer.fit()
        use_averaged_weights(trainer.state)
        record.note_weights(trainer.state)
        if not record.is_evaluated(int(trainer.state.timestamp.batch)):
            trainer.eval()
        result = record.finish()
        metrics.finish()
    log.info(
        "done: top-1 %.2f%%, top-5 %.2f%% on %d samples, weights %s",
        100 * result["top1"],
        100 * result["top5"],
        result["samples_evaluated"],
        result["weights_sha256"][:16],
    )
    trainer.close()
    return result


def at_its_batch(given: Config) -> Config:
    """Return the configuration with the figures for its batch, and say which ones were scaled."""
    cfg = scaled(given)
    if changes := scaling_in_words(given, cfg):
        log.info(
            "scale_with_batch: from a batch of %d to one of %d: %s",
            given.scale_with_batch,
            cfg.global_batch_size,
            changes,
        )
    return cfg


class SavingFailedError(RuntimeError):
    """The save folder was there at the start, and now cannot be written."""


class EvictedError(SavingFailedError):
    """Another run has the save folder now. To start this one again would take the folder from that one."""


@contextlib.contextmanager
def saving(trainer: Trainer, folder: Place, record: RunRecord) -> Iterator[None]:
    """Give the save folder back at the end, and say of a run that could not save what it has ended for.

    A run that a signal has stopped says so in its record; its checkpoint is safe by then.

    Raises:
        SavingFailedError: a checkpoint or the record cannot be stored.
        EvictedError: another run has taken over the folder.
    """
    try:
        yield
    except StopRequested:
        try:
            record.note_stop()
        except PlaceError as error:
            log.warning("%s does not say that the run has stopped: %s", RECORD_NAME, error)
        release(folder)
        raise
    except TakenOverError as error:
        raise EvictedError(f"the run has ended after batch {int(trainer.state.timestamp.batch)}: {error}") from error
    except PlaceError as error:
        raise SavingFailedError(
            f"the run has ended after batch {int(trainer.state.timestamp.batch)}: {error}; once that is mended, the "
            "same command resumes from the newest checkpoint"
        ) from error
    release(folder)
