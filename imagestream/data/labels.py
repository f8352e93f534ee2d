"""What a dataset's labels mean to a network: the same classes, the same under other numbers, or others."""

import logging
from collections.abc import Sequence

import torch

from imagestream.data.dataset import IGNORED_LABEL
from imagestream.mds.index import DataError

log = logging.getLogger(__name__)


class Labels:
    """Checks each batch's labels before the network sees them, and gives them the network's numbers.

    Args:
        num_classes: the network's outputs.
        where: the dataset, for messages.
        numbers: by the dataset's label, the network's class; None: they are the same.
    """

    def __init__(self, num_classes: int, *, where: str, numbers: Sequence[int] | None = None) -> None:
        self.where = where
        self.num_labels = num_classes if numbers is None else len(numbers)
        self.numbers = None if numbers is None else torch.tensor(numbers, dtype=torch.int64)

    def __call__(self, labels: torch.Tensor) -> torch.Tensor:
        """Return the classes of int64 (B,) labels in the CPU's memory; IGNORED_LABEL stays.

        Raises:
            DataError: one is not the number of a class.
        """
        real = labels != IGNORED_LABEL
        strange = labels[real & ((labels < 0) | (labels >= self.num_labels))]
        if len(strange):
            raise DataError(
                f"{self.where} has the label {int(strange[0])}; the model's classes are 0 to {self.num_labels - 1}, so "
                "give another num_classes, or the dataset that the model is for",
                about=("num_classes",),
            )
        return labels if self.numbers is None else torch.where(real, self.numbers[labels.clamp(min=0)], labels)


def labels_for(network: Sequence[str] | None, num_classes: int, dataset: Sequence[str] | None, *, where: str) -> Labels:
    """Return how a dataset's labels are to be read by a network that was trained on other data.

    Classes are compared by name. Folders that are named 0, 1, 2, ... (ImageNet-V2's way) mean the network's class of
    that number: sorted as words, as folders are, 10 comes before 2.

    Args:
        network: names of the classes it was trained on, by its outputs; None: not known.
        num_classes: its outputs.
        dataset: names of the dataset's classes by label; None: it has no manifest.

    Raises:
        DataError: the dataset has classes that the network does not know.
    """
    if dataset is None:
        log.warning("%s has no manifest.json, so its labels are taken to be the model's classes", where)
        return Labels(num_classes, where=where)
    if network is None:
        if len(dataset) != num_classes:
            raise DataError(
                f"{where} has {len(dataset):,} classes and the model {num_classes:,}, and the checkpoint does not name "
                "its own; give the dataset that it was trained for"
            )
        log.warning("the checkpoint does not name its classes, so those of %s are taken to be the same", where)
        return Labels(num_classes, where=where)
    numbers = {name: number for number, name in enumerate(network)}
    if all(name.isdecimal() for name in dataset) and not any(name.isdecimal() for name in network):
        numbers = {str(number): number for number in range(len(network))}
        dataset = [str(int(name)) for name in dataset]
    unknown = [name for name in dataset if name not in numbers]
    if unknown:
        raise DataError(
            f"{where} has classes that the model does not know: {', '.join(unknown[:5])}"
            f"{', ...' if len(unknown) > 5 else ''} ({len(unknown):,} of {len(dataset):,}); the model's are "
            f"{', '.join(network[:5])}{', ...' if len(network) > 5 else ''}"
        )
    found = [numbers[name] for name in dataset]
    if found == list(range(len(found))):
        return Labels(num_classes, where=where)
    log.warning("%s has the model's classes under other numbers; they are compared by name", where)
    return Labels(num_classes, where=where, numbers=found)
