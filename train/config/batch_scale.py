"""A recipe at another batch than the one its figures are meant for.

With `scale_with_batch: N` the figures of a recipe are those for a batch of N images. At another `global_batch_size` an
epoch has other steps, so three things change together, by `global_batch_size / N`:

- the learning rate, linearly (Goyal et al. 2017, arXiv:1706.02677);
- the decay of `decoupled_sgdw`, which is taken once a step whatever the learning rate, so that an epoch decays the
  weights as much as before. Other optimizers multiply the decay by the learning rate, which is scaled already;
- what is counted in batches, so that it takes as many images as before: the run, warm-up, milestones and averages.
"""

from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from train.config.algorithm import AlgorithmConfig
from train.config.algorithms import EMA, SWA
from train.config.config_file import Mark, Node
from train.config.run_config import Config, faults_as_error
from train.config.sections import DecoupledSGDWConfig, Optimizer, Scheduler, StepSchedule


def scaled(cfg: Config) -> Config:
    """Return the configuration with the figures for its own batch, for which they are then meant.

    Raises:
        ConfigError: a scaled figure is out of its range.
    """
    meant_for, batch = cfg.scale_with_batch, cfg.global_batch_size
    if meant_for is None or meant_for == batch:
        return cfg
    share = batch / meant_for
    changes: dict[str, Any] = {
        "scale_with_batch": batch,
        "max_duration": scaled_time(cfg.max_duration, share),
        "optimizer": _optimizer(cfg.optimizer, share),
        "scheduler": _scheduler(cfg.scheduler, share),
        "algorithms": tuple(_algorithm(algorithm, share) for algorithm in cfg.algorithms),
    }
    try:
        return Config.model_validate(cfg.model_copy(update=changes).model_dump(mode="json"))
    except ValidationError as error:
        place = Mark(False, f"scaled from a batch of {meant_for:,} to {batch:,}", 0)
        raise faults_as_error(error, Node(None, place)) from None


def scaled_time(time: str, share: float) -> str:
    """Return a time in batches for a batch of that share, at least one; another time as it is."""
    if not time.endswith("ba") or int(time[:-2]) == 0:
        return time
    return f"{max(1, round(int(time[:-2]) / share))}ba"


def scaling_in_words(before: Config, after: Config) -> str:
    """Return each figure that `scaled` has changed, such as "optimizer.lr 2.048 -> 0.256"; '' where none has."""
    changes = [
        f"{key} {one:g} -> {other:g}" if isinstance(one, float) else f"{key} {one} -> {other}"
        for key, one, other in _differences(before.model_dump(mode="json"), after.model_dump(mode="json"), "")
        if key != "scale_with_batch"
    ]
    return ", ".join(changes)


def _optimizer(cfg: Optimizer, share: float) -> Optimizer:
    changes = {"lr": cfg.lr * share}
    if isinstance(cfg, DecoupledSGDWConfig):
        changes["weight_decay"] = cfg.weight_decay * share
    return cfg.model_copy(update=changes)


def _scheduler(cfg: Scheduler, share: float) -> Scheduler:
    changes: dict[str, Any] = {"t_warmup": scaled_time(cfg.t_warmup, share)}
    if isinstance(cfg, StepSchedule):
        changes["milestones"] = tuple(scaled_time(time, share) for time in cfg.milestones)
    return cfg.model_copy(update=changes)


def _algorithm(cfg: AlgorithmConfig, share: float) -> AlgorithmConfig:
    if isinstance(cfg, EMA):
        return _average(cfg, share)
    if isinstance(cfg, SWA):
        return cfg.model_copy(update={"update_interval": scaled_time(cfg.update_interval, share)})
    return cfg


def _average(cfg: EMA, share: float) -> EMA:
    """Keep the images that an average looks back on, also where the time between two updates is rounded."""
    changes: dict[str, Any] = {"ema_start": scaled_time(cfg.ema_start, share)}
    if cfg.half_life is not None:
        changes["half_life"] = scaled_time(cfg.half_life, share)
    if cfg.update_interval is not None:
        interval = changes["update_interval"] = scaled_time(cfg.update_interval, share)
        if cfg.smoothing is not None and interval.endswith("ba"):
            images = share * int(interval[:-2]) / int(cfg.update_interval[:-2])  # of an update, to those before
            changes["smoothing"] = cfg.smoothing**images
    return cfg.model_copy(update=changes)


def _differences(before: Any, after: Any, key: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(before, dict):
        for name in before:
            yield from _differences(before[name], after[name], f"{key}.{name}".lstrip("."))
    elif isinstance(before, list) and any(isinstance(item, dict) for item in before):
        for place, pair in enumerate(zip(before, after, strict=True)):
            yield from _differences(*pair, f"{key}.{place}")
    elif before != after:
        yield key, before, after
