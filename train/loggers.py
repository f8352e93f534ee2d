"""What a run's figures are shown by, and where they go, by its configuration."""

import hashlib
import os
import time
from pathlib import Path

from composer.loggers import LoggerDestination
from composer.utils import dist

from imagestream.storage.places import open_place
from imagestream.storage.protocol import Place
from train.config.run_config import Config
from train.facts import Facts
from train.record.log_files import LogFile
from train.record.metrics import Curves, Metrics
from train.record.metrics_csv import MetricsFile
from train.record.mlflow_run import MlflowRun
from train.record.progress import Progress
from train.record.run_record import RunRecord
from train.record.tensorboard_curve import TensorBoardCurve
from train.record.wandb_run import WandbRun
from train.step.statistics import StepStatistics


def build_loggers(cfg: Config) -> list[LoggerDestination]:
    """Return Composer's loggers, of which there is one at most: the log file."""
    if not cfg.loggers.file:
        return []
    started = time.strftime("%Y%m%d-%H%M%S")
    return [LogFile(os.path.join(root_of(cfg), "logs", started + "-rank{rank}.txt"))]


def build_metrics(cfg: Config, facts: Facts, folder: Place, record: RunRecord, statistics: StepStatistics) -> Metrics:
    """Return what collects the figures of steps.

    Args:
        folder: the save folder; on rank 0, claimed for this run.
    """
    is_first = dist.get_global_rank() == 0
    return Metrics(
        record,
        statistics,
        steps_per_epoch=facts.steps_per_epoch,
        table=MetricsFile(folder) if is_first else None,
        curves=curves_of(cfg, folder) if is_first else [],
    )


def curves_of(cfg: Config, folder: Place) -> list[Curves]:
    """Return the places beside metrics.csv that the configuration names."""
    curves: list[Curves] = []
    if cfg.loggers.tensorboard:
        curves.append(TensorBoardCurve(Path(root_of(cfg), "tensorboard", curve_name(cfg))))
    if cfg.loggers.wandb:
        curves.append(WandbRun(cfg.loggers.wandb, cfg, folder, root_of(cfg)))
    if cfg.loggers.mlflow:
        curves.append(MlflowRun(cfg.loggers.mlflow, cfg, folder))
    return curves


def build_progress(cfg: Config, facts: Facts, metrics: Metrics, record: RunRecord) -> Progress:
    """Return the bar, or the lines."""
    interval = cfg.loggers.console_interval
    count = int(interval[:-2]) * (facts.steps_per_epoch if interval.endswith("ep") else 1) if interval else None
    return Progress(
        metrics,
        record,
        total_steps=facts.total_steps,
        steps_per_epoch=facts.steps_per_epoch,
        has_bar=shows_progress_bar(cfg),
        line_every_steps=count,
    )


def shows_progress_bar(cfg: Config) -> bool:
    """Return whether a progress bar is drawn: as configured, or where somebody is looking."""
    wanted = cfg.loggers.progress_bar
    return os.isatty(2) if wanted == "auto" else wanted


def root_of(cfg: Config) -> str:
    """Return the folder for files that grow: the save folder, or one below runs/ when that is in S3."""
    folder = open_place(cfg.checkpoint.save_folder)
    return os.path.join("runs", cfg.run_name) if folder.path is None else str(folder.path)


def curve_name(cfg: Config) -> str:
    """Return what TensorBoard calls the curve; runs of one name that save to S3 have one each, by where they save."""
    where = cfg.checkpoint.save_folder
    if open_place(where).path is not None:
        return cfg.run_name
    return f"{cfg.run_name}-{hashlib.sha256(where.encode()).hexdigest()[:8]}"
