"""What makes an interrupted run end as if it had never stopped.

Streaming restores the order of the samples. Here is what it and Composer leave out: randomness that is keyed by batch
rather than carried along, the same BatchNorm statistics on every rank for who reads them, a ledger by which two runs'
data can be compared, and the refusal to continue a run under settings that would make it another one.
"""

import hashlib
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

from imagestream.data.dataset import ShortEpochError
from imagestream.loader import BatchOrderError, Loader
from train.resume.contract import Contract
from train.resume.gradient_buckets import fix_gradient_buckets
from train.step.buffers import share_buffers
from train.step.optimizers import make_states
from train.step.statistics import StepStatistics


class ResumeGuard(Callback):
    """Reseeds before each batch, carries the loader's ledger and the contract, checks the order.

    Args:
        changes: what of the contract has changed at this resumption; those of earlier ones are in the checkpoint.
    """

    def __init__(
        self,
        contract: Contract,
        *,
        seed: int,
        loader: Loader,
        statistics: StepStatistics,
        changes: Sequence[dict[str, Any]] = (),
    ) -> None:
        self.contract, self.changes = contract, list(changes)
        self.epoch_ledgers: list[str] = []
        self.losses: list[float] = []  # rank 0's of each batch: by them and the ledger's entries two runs are compared
        self._seed, self._loader = seed, loader  # (train/compare.py)
        self._state: State
        statistics.tell(lambda step: self.losses.append(step.loss))

    @property
    def ledger(self) -> str:
        """Up to the last epoch's end or checkpoint."""
        return self._loader.book.value

    def init(self, state: State, logger: Logger) -> None:
        self._state = state

    def after_load(self, state: State, logger: Logger) -> None:
        """Begin at the checkpoint's batch, with the optimizer's state for every parameter."""
        self._loader.begin_at(int(state.timestamp.epoch), int(state.timestamp.batch_in_epoch))
        for optimizer in state.optimizers:
            make_states(optimizer)

    def fit_start(self, state: State, logger: Logger) -> None:
        fix_gradient_buckets(state.model)

    def on_batch(self) -> None:
        """Reseed for the batch that has come; runs after the loader and before the first algorithm.

        A mid-epoch resume of Composer 0.32.1 does not restore the generators that MixUp, CutMix and their like draw
        from (`Trainer._train_loop` does so at batch 0 of an epoch alone).
        """
        now = int(self._state.timestamp.batch)
        if self._loader.step != now:
            raise BatchOrderError(
                f"rank {dist.get_global_rank()}: the loader gave batch {self._loader.step} where the run is at batch "
                f"{now}"
            )
        seed_batch(self._seed, now, dist.get_global_rank())

    def eval_start(self, state: State, logger: Logger) -> None:
        share_buffers(state.model)

    def epoch_end(self, state: State, logger: Logger) -> None:
        assert state.previous_timestamp is not None
        seen = int(state.previous_timestamp.batch_in_epoch)
        if seen != self._loader.steps_per_epoch:
            raise ShortEpochError(
                f"rank {dist.get_global_rank()}: epoch {int(state.previous_timestamp.epoch)} ended after {seen} of "
                f"{self._loader.steps_per_epoch} batches"
            )
        self.epoch_ledgers.append(self._loader.book.settle())

    def fit_end(self, state: State, logger: Logger) -> None:
        self._loader.book.settle()

    def state_dict(self) -> dict[str, Any]:
        """Collective: the ledger needs every rank's part."""
        self._loader.book.settle()
        return {
            "contract": self.contract.as_dict(),
            "changes": list(self.changes),
            "ledger": self.ledger,
            "epoch_ledgers": list(self.epoch_ledgers),
            "trail": {
                "samples": torch.tensor(self._loader.book.entries, dtype=torch.int64),
                "loss": torch.tensor(self.losses),
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.changes = [*state["changes"], *self.changes]
        self.epoch_ledgers, self.losses = list(state["epoch_ledgers"]), state["trail"]["loss"].tolist()
        self._loader.book.load(state["ledger"], state["trail"]["samples"].tolist())


def seed_batch(seed: int, batch: int, rank: int) -> None:
    """Seed every global generator from (seed, batch, rank)."""
    digest = hashlib.blake2b(f"{seed}/{batch}/{rank}".encode(), digest_size=8).digest()
    value = int.from_bytes(digest, "little")
    random.seed(value)
    np.random.seed(value % 2**32)
    torch.manual_seed(value % 2**63)  # CUDA's generators too
