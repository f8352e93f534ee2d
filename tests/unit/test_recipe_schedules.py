"""The schedule of each recipe's learning rate, batch by batch, is its source's: imported, or worked out as there.

Composer takes each rate one step late (docs/design-notes.md).
"""

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from composer.core import Time, Timestamp

from train.config.run_config import load_config
from train.optim import build_scheduler

YAMLS = Path(__file__).parents[2] / "yamls"
STEPS = 10  # of an epoch; how many there are changes nothing here


def ours(recipe: str) -> tuple[float, list[float]]:
    """The peak, and the learning rate of each batch."""
    cfg = load_config(YAMLS / recipe, ["data.local=x"], check_paths=False)
    schedule, length = build_scheduler(cfg.scheduler), Time.from_timestring(cfg.max_duration)
    rates = []
    for batch in range(length.value * STEPS):
        now = Timestamp(epoch=batch // STEPS, batch=batch, batch_in_epoch=batch % STEPS)
        state = SimpleNamespace(timestamp=now, max_duration=length, dataloader_len=Time(STEPS, "ba"))
        rates.append(cfg.optimizer.lr * schedule(state))
    return cfg.optimizer.lr, rates


def torchs(epochs: int, make: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]) -> list[float]:
    """By torch's scheduler, which torchvision's script steps once an epoch."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule, rates = make(optimizer), []
    for _ in range(epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def test_torchvision_v1_is_torchs_multi_step() -> None:
    """references/classification/train.py: --lr 0.1 --lr-step-size 30 --lr-gamma 0.1."""
    _, rates = ours("recipes/torchvision-v1.yaml")
    theirs = torchs(90, lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 30, 0.1))
    assert rates == pytest.approx([0.1 * rate for rate in theirs for _ in range(STEPS)], rel=1e-6)


def test_torchvision_v2_is_torchs_cosine_at_the_beginning_of_each_epoch_after_the_warm_up() -> None:
    """The same script with --lr-scheduler cosineannealinglr --lr-warmup-epochs 5 --lr-warmup-decay 0.01."""
    peak, rates = ours("recipes/torchvision-v2.yaml")

    def make(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=595, eta_min=0.0)
        warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.01, total_iters=5)
        return torch.optim.lr_scheduler.SequentialLR(optimizer, [warm_up, cosine], milestones=[5])

    theirs = [peak * rate for rate in torchs(600, make)]
    assert rates[5 * STEPS :: STEPS] == pytest.approx(theirs[5:], rel=1e-6, abs=1e-9)
    warm_up = [one - other for one, other in zip(theirs[:5], rates[: 5 * STEPS : STEPS], strict=True)]
    assert max(warm_up) == pytest.approx(0.01 * peak) and min(warm_up) > 0  # as its head says


@pytest.mark.parametrize("epochs", [16, 88])
def test_ffcvs_is_its_interpolation_but_for_a_ten_thousandth_at_the_start(epochs: int) -> None:
    """`get_cyclic_lr` and `train_loop` of ffcv-imagenet's train_imagenet.py (606c584)."""
    peak, rates = ours(f"recipes/ffcv-rn50-{epochs}.yaml")
    knots = np.interp(range(epochs + 1), [0, 2, epochs], [1e-4 * peak, peak, 0])
    theirs = np.concatenate([np.interp(range(STEPS), [0, STEPS], knots[epoch : epoch + 2]) for epoch in range(epochs)])
    assert rates[2 * STEPS :] == pytest.approx(theirs[2 * STEPS :], rel=1e-6)
    assert np.abs(rates[: 2 * STEPS] - theirs[: 2 * STEPS]).max() == pytest.approx(1e-4 * peak)


@pytest.mark.parametrize(("recipe", "epochs"), [("nvidia-dle", 90), ("nvidia-dle-250", 250)])
def test_nvidias_is_its_cosine_at_the_beginning_of_each_epoch_after_the_warm_up(recipe: str, epochs: int) -> None:
    """`lr_cosine_policy` of DeepLearningExamples, PyTorch/Classification/ConvNets/image_classification."""
    peak, rates = ours(f"recipes/{recipe}.yaml")
    warm_up = [peak * (epoch + 1) / 8 for epoch in range(8)]
    cosine = [0.5 * (1 + math.cos(math.pi * (epoch - 8) / (epochs - 8))) * peak for epoch in range(8, epochs)]
    assert rates[8 * STEPS :: STEPS] == pytest.approx(cosine, rel=1e-6)
    assert rates[STEPS : 9 * STEPS : STEPS] == pytest.approx(warm_up, rel=1e-6)  # theirs is ours at the epoch's end


@pytest.mark.parametrize(("recipe", "epochs"), [("rsb-a1", 600), ("rsb-a2", 300), ("rsb-a3", 100)])
def test_rsbs_is_timms_cosine_but_for_where_it_begins(recipe: str, epochs: int) -> None:
    """timm/scheduler/cosine_lr.py, `_get_lr`, without warmup_prefix; --warmup-lr 1e-4 --min-lr 1e-6."""
    peak, rates = ours(f"recipes/{recipe}.yaml")
    theirs = [1e-4 + epoch * (peak - 1e-4) / 5 for epoch in range(5)]
    theirs += [1e-6 + 0.5 * (peak - 1e-6) * (1 + math.cos(math.pi * epoch / epochs)) for epoch in range(5, epochs)]
    apart = [abs(one - other) / peak for one, other in zip(theirs, rates[::STEPS], strict=True)]
    assert apart[0] == pytest.approx(1e-4 / peak)  # as the file's head says
    assert max(apart[5:]) < 5 / epochs  # 4.7 % of the peak with 100 epochs


@pytest.mark.parametrize(
    ("recipe", "epochs"),
    [("recipes/mosaic-baseline.yaml", 90), ("recipes/mosaic-mild.yaml", 36), ("recipes/mosaic-medium.yaml", 135),
     ("recipes/mosaic-hot.yaml", 270)],
)  # fmt: skip
def test_mosaicmls_is_linear_over_eight_epochs_and_then_a_cosine(recipe: str, epochs: int) -> None:
    """CosineAnnealingWithWarmupScheduler(t_warmup='8ep', alpha_f=0), as their main.py has it."""
    peak, rates = ours(recipe)
    whole, warm_up = epochs * STEPS, 8 * STEPS
    theirs = [peak * batch / warm_up for batch in range(warm_up)]
    theirs += [
        peak * 0.5 * (1 + math.cos(math.pi * (batch - warm_up) / (whole - warm_up))) for batch in range(warm_up, whole)
    ]
    assert rates == pytest.approx(theirs, rel=1e-6)
