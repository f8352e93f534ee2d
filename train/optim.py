"""The optimizer and the learning-rate schedule that a config names."""

from typing import Any

import torch
from composer.optim import (
    CosineAnnealingWithWarmupScheduler,
    LinearWithWarmupScheduler,
    MultiStepWithWarmupScheduler,
)
from composer.optim.scheduler import ComposerScheduler
from torch import nn

from train.config.sections import LinearSchedule, Optimizer, Scheduler, StepSchedule
from train.step.optimizers import SGD, AdamW, DecoupledSGDW, Lamb

KINDS = {"adamw": AdamW, "decoupled_sgdw": DecoupledSGDW, "lamb": Lamb, "sgd": SGD}


def build_optimizer(model: nn.Module, cfg: Optimizer, *, is_fused: bool) -> torch.optim.Optimizer:
    """Return an optimizer of all parameters of `model`: in one group, or with BatchNorm's in a second without decay.

    Args:
        is_fused: whether it takes one operation for all (`train.step.optimizers`), as it does on a GPU.
    """
    groups = parameter_groups(model, decay_batchnorm=cfg.decay_batchnorm)
    return KINDS[cfg.name](groups, is_fused=is_fused, **cfg.model_dump(exclude={"name", "decay_batchnorm"}))


def parameter_groups(model: nn.Module, *, decay_batchnorm: bool) -> list[dict[str, Any]]:
    """Return torch's parameter groups; which parameters are BatchNorm's is told by their modules' type."""
    norms = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        for parameter in module.parameters()
    }
    if decay_batchnorm:
        return [{"params": list(model.parameters())}]
    return [
        {"params": [parameter for parameter in model.parameters() if id(parameter) not in norms]},
        {"params": [parameter for parameter in model.parameters() if id(parameter) in norms], "weight_decay": 0.0},
    ]


def build_scheduler(cfg: Scheduler) -> ComposerScheduler:
    """Return a linear warm-up from 0 over `t_warmup`, and then what the section's docstring says."""
    if isinstance(cfg, StepSchedule):
        return MultiStepWithWarmupScheduler(t_warmup=cfg.t_warmup, milestones=list(cfg.milestones), gamma=cfg.gamma)
    kind = LinearWithWarmupScheduler if isinstance(cfg, LinearSchedule) else CosineAnnealingWithWarmupScheduler
    return kind(t_warmup=cfg.t_warmup, t_max="1dur", alpha_f=cfg.alpha_f)
