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
from train.layers import depths
from train.step.optimizers import SGD, AdamW, DecoupledSGDW, Lamb

OF_GROUPS = ("decay_batchnorm", "layer_decay")
"""Settings of an optimizer section that are about its parameter groups, and that no optimizer knows."""

KINDS = {"adamw": AdamW, "decoupled_sgdw": DecoupledSGDW, "lamb": Lamb, "sgd": SGD}


def build_optimizer(model: nn.Module, cfg: Optimizer, *, is_fused: bool) -> torch.optim.Optimizer:
    """Return an optimizer of all parameters of `model`: in one group, or with BatchNorm's in a second without decay.

    Args:
        is_fused: whether it takes one operation for all (`train.step.optimizers`), as it does on a GPU.
    """
    groups = parameter_groups(model, decay_batchnorm=cfg.decay_batchnorm, lr=cfg.lr, layer_decay=cfg.layer_decay)
    return KINDS[cfg.name](groups, is_fused=is_fused, **cfg.model_dump(exclude={"name", *OF_GROUPS}))


def parameter_groups(
    model: nn.Module, *, decay_batchnorm: bool, lr: float = 0.0, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Return torch's parameter groups of what is trained, that of the highest learning rate first.

    Which parameters are BatchNorm's is told by their modules' type. With `layer_decay` the head learns at `lr`, and
    each layer below at `layer_decay` times the next one's rate (`train.layers.depths`; arXiv:2106.08254, section 2.5).

    Args:
        lr: the optimizer's, for `layer_decay`.
    """
    norms = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        for parameter in module.parameters()
    }
    depth_of = depths(name.removeprefix("module.") for name, _ in model.named_parameters())
    highest = max(depth_of.values())
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        below = highest - depth_of[name.removeprefix("module.")] if layer_decay < 1 else 0
        is_free = not decay_batchnorm and id(parameter) in norms
        group = groups.setdefault((below, is_free), {"params": []})
        group["params"].append(parameter)
        if layer_decay < 1:
            group["lr"] = lr * layer_decay**below
        if is_free:
            group["weight_decay"] = 0.0
    return [groups[key] for key in sorted(groups)]


def build_scheduler(cfg: Scheduler) -> ComposerScheduler:
    """Return a linear warm-up from 0 over `t_warmup`, and then what the section's docstring says."""
    if isinstance(cfg, StepSchedule):
        return MultiStepWithWarmupScheduler(t_warmup=cfg.t_warmup, milestones=list(cfg.milestones), gamma=cfg.gamma)
    kind = LinearWithWarmupScheduler if isinstance(cfg, LinearSchedule) else CosineAnnealingWithWarmupScheduler
    return kind(t_warmup=cfg.t_warmup, t_max="1dur", alpha_f=cfg.alpha_f)
