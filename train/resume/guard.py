"""What makes an interrupted run end as if it had never stopped.

Streaming restores the order of the samples. Here is what it and Composer leave out: randomness that is keyed by batch
rather than carried along, the same BatchNorm statistics on every rank, a ledger by which two runs' data can be
compared, and the refusal to continue a run under settings that would make it another one.
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

from imagestream.data.dataset import ShortEpochError, StreamingImages
from train.loader import RawBatch
from train.resume.contract import Contract
from train.resume.gradient_buckets import fix_gradient_buckets


class BatchOrderError(RuntimeError):
    """The loader and the trainer are not at the same batch."""


class ResumeGuard(Callback):
    """Reseeds before and evens out after each batch, keeps the ledger, checks an epoch's length, carries the contract.

    The ledger is a hash over the global batches in order. A batch's entry is the sum, modulo 2**64, of one hash for
    each sample's (epoch, id, crop, mirror): the sum is the same however the batch is spread over ranks.

    Args:
        changes: what of the contract has changed at this resumption; those of earlier ones are in the checkpoint.
    """

    def __init__(
        self, contract: Contract, *, seed: int, train_set: StreamingImages, changes: Sequence[dict[str, Any]] = ()
    ) -> None:
        self.contract, self.changes = contract, list(changes)
        self.ledger = hashlib.sha256(b"").hexdigest()
        self.epoch_ledgers: list[str] = []
        self._seed, self._train_set = seed, train_set
        self.samples: list[int] = []  # of each batch a part of its ledger, and rank 0's loss: by them two runs are
        self.losses: list[float] = []  # compared batch by batch (train/compare.py)
        self._pending: list[torch.Tensor] = []
        self._state: State

    def init(self, state: State, logger: Logger) -> None:
        self._state = state

    def after_load(self, state: State, logger: Logger) -> None:
        """Begin at the checkpoint's batch, with a momentum for every parameter."""
        self._train_set.begin_at(int(state.timestamp.epoch), int(state.timestamp.batch_in_epoch))
        for optimizer in state.optimizers:
            make_momentum(optimizer)

    def fit_start(self, state: State, logger: Logger) -> None:
        fix_gradient_buckets(state.model)

    def on_batch(self, batch: RawBatch) -> None:
        """Reseed for this batch and note it; runs after the loader and before the first algorithm.

        A mid-epoch resume of Composer 0.32.1 does not restore the generators that MixUp, CutMix and their like draw
        from (`Trainer._train_loop` does so at batch 0 of an epoch alone).
        """
        now = int(self._state.timestamp.batch)
        if batch.step != now:
            raise BatchOrderError(
                f"rank {dist.get_global_rank()}: the loader gave batch {batch.step} where the run is at batch {now}"
            )
        seed_batch(self._seed, now, dist.get_global_rank())
        self._pending.append(batch.view_hashes.sum())

    def after_train_batch(self, state: State, logger: Logger) -> None:
        share_buffers(state.model)

    def batch_end(self, state: State, logger: Logger) -> None:
        self.losses.append(float(state.total_loss_dict["loss/train/total"]))

    def epoch_end(self, state: State, logger: Logger) -> None:
        assert state.previous_timestamp is not None
        seen = int(state.previous_timestamp.batch_in_epoch)
        if seen != self._train_set.steps_per_epoch:
            raise ShortEpochError(
                f"rank {dist.get_global_rank()}: epoch {int(state.previous_timestamp.epoch)} ended after {seen} of "
                f"{self._train_set.steps_per_epoch} batches"
            )
        self._settle_ledger()
        self.epoch_ledgers.append(self.ledger)

    def fit_end(self, state: State, logger: Logger) -> None:
        self._settle_ledger()

    def state_dict(self) -> dict[str, Any]:
        """Collective: the ledger needs every rank's part."""
        self._settle_ledger()
        return {
            "contract": self.contract.as_dict(),
            "changes": list(self.changes),
            "ledger": self.ledger,
            "epoch_ledgers": list(self.epoch_ledgers),
            "trail": {"samples": torch.tensor(self.samples, dtype=torch.int64), "loss": torch.tensor(self.losses)},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.changes = [*state["changes"], *self.changes]
        self.ledger, self.epoch_ledgers = state["ledger"], list(state["epoch_ledgers"])
        self.samples, self.losses = (state["trail"][what].tolist() for what in ("samples", "loss"))

    def _settle_ledger(self) -> None:
        if not self._pending:
            return
        sums = self._state.device.tensor_to_device(torch.stack(self._pending))
        self._pending = []
        dist.all_reduce(sums, reduce_operation="SUM")  # int64 wraps around, as it should
        for entry in sums.tolist():
            self.ledger = hashlib.sha256(f"{self.ledger}{entry}".encode()).hexdigest()
            self.samples.append(entry)


def seed_batch(seed: int, batch: int, rank: int) -> None:
    """Seed every global generator from (seed, batch, rank)."""
    digest = hashlib.blake2b(f"{seed}/{batch}/{rank}".encode(), digest_size=8).digest()
    value = int.from_bytes(digest, "little")
    random.seed(value)
    np.random.seed(value % 2**32)
    torch.manual_seed(value % 2**63)  # CUDA's generators too


def make_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Have the momentum of every parameter from the start.

    torch's optimizers make it at a parameter's first gradient, and torch 2.7 cannot load a checkpoint in which it is
    missing: of a block that StochasticDepth has left out at each step so far.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"] if group["momentum"] else ():
            if "momentum_buffer" not in optimizer.state[parameter]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def share_buffers(model: torch.nn.Module) -> None:
    """Give all ranks the first one's BatchNorm statistics; collective.

    Each rank updates its own by its own samples, and DistributedDataParallel evens them out at the next training step
    alone. Until then EMA would average, and an evaluation use, others than the checkpoint holds, which are rank 0's.
    """
    buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    if dist.get_world_size() == 1 or not buffers:
        return
    flat = torch.cat([buffer.reshape(-1) for buffer in buffers])
    dist.broadcast(flat, src=0)
    for buffer, values in zip(buffers, torch.split(flat, [buffer.numel() for buffer in buffers]), strict=True):
        buffer.copy_(values.view_as(buffer))
