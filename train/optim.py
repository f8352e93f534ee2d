"""The optimizer and the learning-rate schedule that a config names."""

import torch
from composer.optim import CosineAnnealingWithWarmupScheduler, DecoupledSGDW
from composer.optim.scheduler import ComposerScheduler
from torch import nn

from train.sections import DecoupledSGDWConfig, Optimizer, SchedulerConfig


def build_optimizer(model: nn.Module, cfg: Optimizer) -> torch.optim.Optimizer:
    """Return SGD over all parameters of `model`."""
    kind = DecoupledSGDW if isinstance(cfg, DecoupledSGDWConfig) else torch.optim.SGD
    return kind(
        model.parameters(), lr=cfg.lr, momentum=cfg.momentum, weight_decay=cfg.weight_decay, nesterov=cfg.nesterov
    )


def build_scheduler(cfg: SchedulerConfig) -> ComposerScheduler:
    """Return a linear warm-up from 0 over `t_warmup`, then a cosine to `alpha_f` times the peak at the run's end."""
    return CosineAnnealingWithWarmupScheduler(t_warmup=cfg.t_warmup, t_max="1dur", alpha_f=cfg.alpha_f)
