"""Composer alone, on a small problem: a run that is not disturbed, or one that resumes from its checkpoint.

ALGORITHM FOLDER undisturbed|first|resume    ALGORITHM: none, mixup or sam
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from composer import Trainer
from composer.algorithms import SAM, MixUp
from composer.core import Algorithm
from composer.models import ComposerClassifier
from torch.utils.data import DataLoader, IterableDataset

BATCHES, SAVED_AFTER = 6, 2
ALGORITHMS: dict[str, Any] = {
    "none": list[Algorithm],
    "mixup": lambda: [MixUp(alpha=0.2)],
    "sam": lambda: [SAM(interval=2)],
}


class Images(IterableDataset[tuple[torch.Tensor, torch.Tensor]]):
    """Random ones, of which a checkpoint notes how many were seen; so does StreamingDataset."""

    def __init__(self) -> None:
        self.seen = 0
        self.images, self.labels = torch.randn(8 * BATCHES, 12), torch.arange(8 * BATCHES) % 4

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        yield from zip(self.images[self.seen :], self.labels[self.seen :], strict=True)

    def state_dict(self, num_samples: int, from_beginning: bool) -> dict[str, int]:
        return {"seen": num_samples}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.seen = state["seen"]


def main(argv: Sequence[str]) -> int:
    """Run, and print where it began and the hash of its weights."""
    algorithm, folder, part = argv
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(12, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    trainer = Trainer(
        model=ComposerClassifier(network, num_classes=4),
        train_dataloader=DataLoader(Images(), batch_size=8),
        max_duration=f"{SAVED_AFTER if part == 'first' else BATCHES}ba",
        optimizers=torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9),
        algorithms=ALGORITHMS[algorithm](),
        save_folder=folder,
        save_interval=f"{SAVED_AFTER}ba",
        save_overwrite=True,
        autoresume=True,
        run_name="upstream",
        seed=1,
        progress_bar=False,
    )
    print(f"begins at batch {int(trainer.state.timestamp.batch)}")
    trainer.fit()
    content = b"".join(weight.detach().numpy().tobytes() for weight in network.parameters())
    print(f"weights {hashlib.sha256(content).hexdigest()}")
    return 0
