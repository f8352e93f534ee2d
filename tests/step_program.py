"""Trains a small network, by our step or by Composer's own, and prints what came of it: hashes and losses.

Arguments: composer or ours, a number of steps, and key.path=value ...; `tests.processes` starts it on each rank.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from composer.core import Callback, DataSpec, State
from composer.devices import Device
from composer.loggers import Logger
from composer.trainer import trainer as composer_trainer
from composer.utils import dist, reproducibility
from torch import Tensor

from benchmarks.step_trainers import composers_own, trainer_of
from train.config.run_config import load_config
from train.model import weights_sha256
from train.process import start_process
from train.resume.gradient_buckets import fix_gradient_buckets
from train.step import upstream
from train.step.optimizers import make_states
from train.step.trainer import StepTrainer

CLASSES, IMAGES, PX, BATCHES = 10, 8, 32, 6


class Epoch:
    """Six batches of noise, which differ, and differ by rank."""

    batch_size = IMAGES

    def __init__(self, rank: int) -> None:
        generator = torch.Generator().manual_seed(rank)
        images = torch.randn(BATCHES, IMAGES, 3, PX, PX, generator=generator)
        labels = torch.randint(CLASSES, (BATCHES, IMAGES), generator=generator)
        self.batches = list(zip(images, labels, strict=True))

    def __len__(self) -> int:
        return BATCHES

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter([(images.clone(), labels.clone()) for images, labels in self.batches])


class Start(Callback):
    """What `train.resume.guard.ResumeGuard` does at the start, for both alike."""

    def after_load(self, state: State, logger: Logger) -> None:
        for optimizer in state.optimizers:
            make_states(optimizer)

    def fit_start(self, state: State, logger: Logger) -> None:
        fix_gradient_buckets(state.model)


class Losses(Callback):
    """Composer's, of each step."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def batch_end(self, state: State, logger: Logger) -> None:
        self.losses += [state.total_loss_dict["loss/train/total"]] if state.total_loss_dict else []


def main(argv: Sequence[str]) -> int:
    kind, steps, *overrides = argv
    found = train(kind, int(steps), overrides)
    if dist.get_global_rank() == 0:
        print("found " + json.dumps(found))
    return 0


def train(kind: str, steps: int, overrides: list[str]) -> dict[str, Any]:
    device = start_process(60.0)
    with composers_own(device, is_on=kind == "composer"):
        return train_with(device, kind, steps, overrides)


def train_with(device: Device, kind: str, steps: int, overrides: list[str]) -> dict[str, Any]:
    cfg = load_config(
        "yamls/tiny.yaml",
        [
            "data.local=tests",
            f"max_duration={steps}ba",
            f"global_batch_size={IMAGES * dist.get_world_size()}",
            *overrides,
        ],
    )
    spec = DataSpec(Epoch(dist.get_global_rank()), get_num_samples_in_batch=lambda batch: len(batch[1]))
    if cfg.deterministic:
        reproducibility.configure_deterministic_mode()
    losses = Losses()
    # Not fused on a GPU either: the fused operation rounds in a way of its own.
    trainer = trainer_of(kind, cfg, spec, device, callbacks=[Start(), losses], classes=CLASSES, is_fused=False)
    assert isinstance(trainer, StepTrainer) == (kind == "ours")
    assert (composer_trainer.prepare_ddp_module is upstream.prepare_ddp_module) == (kind == "ours")
    if isinstance(trainer, StepTrainer):
        trainer.statistics.tell(lambda step: losses.losses.append(step.loss))
    trainer.fit()
    return {
        "weights": weights_sha256(trainer.state.model),
        "averages": [averages_of(algorithm) for algorithm in trainer.state.algorithms],
        "optimizer": sha256([s[name] for s in trainer.state.optimizers[0].state.values() for name in sorted(s)]),
        "losses": losses.losses,
    }


def averages_of(algorithm: Any) -> str:
    """Return the hash of EMA's or SWA's averages."""
    if ema := getattr(algorithm, "ema_model", None):
        return sha256([*ema.named_parameters_dict.values(), *ema.named_buffers_dict.values()])
    swa = getattr(algorithm, "swa_model", None)
    return sha256(list(swa.state_dict().values())) if swa else ""


def sha256(tensors: list[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
