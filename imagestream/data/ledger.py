"""A running hash over the global batches of a run, by which two runs' data can be compared without their pixels."""

import hashlib

import torch
from torch import distributed

EMPTY = hashlib.sha256(b"").hexdigest()


class Ledger:
    """Hashes the global batches in order.

    A batch's entry is the sum, modulo 2**64, of one hash for each sample's (epoch, position, crop, mirror, size): the
    sum is the same however the batch is spread over ranks.

    Attributes:
        value: SHA-256 (hex) over all entries so far but for those that are pending; '': not known.
        entries: of the batches from the beginning, or from the place that was loaded, each a signed 64-bit number.
    """

    def __init__(self, device: torch.device) -> None:
        self.value = EMPTY
        self.entries: list[int] = []
        self._device = device
        self._pending: list[torch.Tensor] = []

    def add(self, view_hashes: torch.Tensor) -> None:
        """Note this rank's part of a global batch: int64 (B,)."""
        self._pending.append(view_hashes.sum())

    @property
    def is_settled(self) -> bool:
        return not self._pending

    def settle(self) -> str:
        """Sum the pending batches up over all ranks; collective. Return `value`."""
        if self._pending:
            sums = torch.stack(self._pending).to(self._device)
            self._pending = []
            if distributed.is_initialized():
                distributed.all_reduce(sums)  # int64 wraps around, as it should
            for entry in sums.tolist():
                self.value = self.value and hashlib.sha256(f"{self.value}{entry}".encode()).hexdigest()
                self.entries.append(entry)
        return self.value

    def load(self, value: str, entries: list[int]) -> None:
        """Go on from another ledger's state."""
        self.value, self.entries, self._pending = value, list(entries), []
