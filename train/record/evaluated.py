"""What an evaluation finds of each class, which classes it confuses, and pictures of its samples.

It is the same for any number of ranks. It changes no metric and draws nothing at random. While the evaluation runs
nothing is read from a GPU, and the pictures take a fixed amount of memory.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from composer.utils import dist
from torch import Tensor

from imagestream.data.dataset import IGNORED_LABEL
from train.model import best_classes
from train.record.pictures import as_data_uris, thumbnails

MISTAKES = 24  # pictures of the most confident ones
FIRST = 24  # pictures of the split's first samples
PAIRS = 30  # of classes that are confused most often
CLASSES_OF_A_MATRIX = 50  # more would not be seen

Sample = dict[str, Any]


class Evaluated:
    """Takes each batch of an evaluation, on every rank; `gather` puts what they found together."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self._mean, self._std = mean, std
        self.start()

    def start(self) -> None:
        """Forget the evaluation before this one."""
        self._seen = self._classes = 0
        self._columns: list[Tensor] = []  # of a batch each: label, predicted class, in the best 5
        self._first: list[Tensor] = []
        self._worst: _Mistakes | None = None

    @torch.no_grad()
    def add(self, images: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Take a batch of this rank, which has every W-th sample of the split (`StreamingEvalImages`)."""
        best = best_classes(logits)
        confidence = logits.float().softmax(dim=1).gather(1, best[:, :1]).squeeze(1)
        is_hit = best == labels.unsqueeze(1)
        self._columns.append(torch.stack([labels, best[:, 0], is_hit.any(dim=1)]).int())
        self._classes = logits.shape[1]
        places = torch.arange(self._seen, self._seen + len(labels), device=labels.device) * dist.get_world_size()
        if (left := -(-FIRST // dist.get_world_size()) - self._seen) > 0:
            self._first.append(thumbnails(images[:left], self._mean, self._std))
        self._seen += len(labels)
        is_wrong = (labels != IGNORED_LABEL) & ~is_hit[:, 0]
        wrong = torch.where(is_wrong, confidence, -1.0)
        rows = torch.stack([places + dist.get_global_rank(), labels, best[:, 0]], dim=1)
        if self._worst is None:
            self._worst = _Mistakes(wrong.device)
        self._worst.add(wrong, rows, images, self._mean, self._std)

    def gather(self) -> dict[str, Any]:
        """Return what all ranks have found, as plain data. Collective.

        Returns:
            `classes`: [samples, top-1 hits, top-5 hits] of each class. `pairs`: [label, predicted, samples] of those
            confused most often. `matrix`: the same of all pairs, the right ones too, where there are few classes.
            `mistakes`, `first`: samples with `position` in the split, `label`, `predicted`, `confidence` (mistakes
            only) and `picture`, a data URI.
        """
        if self._worst is None:
            return {}
        labels, predicted, among = torch.cat(self._columns, dim=1).cpu().numpy().astype(np.int64)
        is_real = labels != IGNORED_LABEL
        keys, counts = np.unique(labels[is_real] * self._classes + predicted[is_real], return_counts=True)
        top5 = np.bincount(labels[is_real], weights=among[is_real], minlength=self._classes).astype(np.int64)
        worst = self._worst.rows()
        first = self._rows_of_first(labels, predicted)
        found = dist.all_gather_object((keys, counts, top5, worst, first))
        pairs = _added([(part[0], part[1]) for part in found], self._classes)
        everywhere = [row for part in found for row in part[3]]
        mistakes = sorted(everywhere, key=lambda row: (-row["confidence"], row["position"]))[:MISTAKES]
        firsts = sorted((row for part in found for row in part[4]), key=lambda row: row["position"])[:FIRST]
        self._add_pictures(mistakes, firsts, worst, first)
        return _as_details(pairs, sum(part[2] for part in found), self._classes, mistakes, firsts)

    def _rows_of_first(self, labels: Any, predicted: Any) -> list[Sample]:
        world, rank = dist.get_world_size(), dist.get_global_rank()
        count = min(sum(map(len, self._first)), len(labels))
        rows = [
            {"position": at * world + rank, "label": int(labels[at]), "predicted": int(predicted[at])}
            for at in range(count)
        ]
        return [row for row in rows if row["label"] != IGNORED_LABEL]

    def _add_pictures(
        self, mistakes: list[Sample], firsts: list[Sample], my_worst: list[Sample], my_first: list[Sample]
    ) -> None:
        """Have each rank make the pictures that it has of the samples that were chosen of all ranks'. Collective."""
        assert self._worst is not None
        mine: dict[str, dict[int, str]] = {}
        held = {"mistakes": (mistakes, my_worst, self._worst.pictures), "first": (firsts, my_first, self._first)}
        for name, (chosen, rows, pictures) in held.items():
            wanted = {row["position"] for row in chosen}
            at = [index for index, row in enumerate(rows) if row["position"] in wanted]
            stacked = pictures if isinstance(pictures, Tensor) else torch.cat(pictures) if pictures else None
            uris = as_data_uris(stacked[torch.tensor(at, device=stacked.device)]) if stacked is not None and at else []
            mine[name] = {rows[index]["position"]: uri for index, uri in zip(at, uris, strict=True)}
        for part in dist.all_gather_object(mine):
            for name, chosen in (("mistakes", mistakes), ("first", firsts)):
                for row in chosen:
                    row["picture"] = part[name].get(row["position"], row.get("picture"))


class _Mistakes:
    """The most confident mistakes of this rank so far, on its device: the same few rows, whatever the split's size."""

    def __init__(self, device: torch.device) -> None:
        self.confidence = torch.full((MISTAKES,), -1.0, device=device)
        self._rows = torch.zeros((MISTAKES, 3), dtype=torch.int64, device=device)  # position, label, predicted
        self.pictures: Tensor | None = None

    def add(self, wrong: Tensor, samples: Tensor, images: Tensor, mean: Sequence[float], std: Sequence[float]) -> None:
        """Take a batch's mistakes in; of equally confident ones the earlier samples stay."""
        everything = torch.cat([self.confidence, wrong])
        chosen = everything.sort(descending=True, stable=True).indices[:MISTAKES]
        is_new, of_batch = chosen >= MISTAKES, (chosen - MISTAKES).clamp(min=0)
        if self.pictures is None:
            blank = torch.zeros_like(thumbnails(images[:1], mean, std))
            self.pictures = blank.expand(MISTAKES, -1, -1, -1)
        pictures = self.pictures[chosen.clamp(max=MISTAKES - 1)]
        rows = _rows_to_fill(is_new)
        if len(rows):
            fresh = thumbnails(images[of_batch[rows]], mean, std)
            pictures[rows] = torch.where(is_new[rows].view(-1, 1, 1, 1), fresh, pictures[rows])
        self.pictures = pictures
        self.confidence, self._rows = everything[chosen], torch.cat([self._rows, samples])[chosen]

    def rows(self) -> list[Sample]:
        """Return them as plain data, most confident first."""
        pairs = zip(self.confidence.tolist(), self._rows.tolist(), strict=True)
        return [
            {"position": position, "label": label, "predicted": predicted, "confidence": confidence}
            for confidence, (position, label, predicted) in pairs
            if confidence >= 0
        ]


def _rows_to_fill(is_new: Tensor) -> Tensor:
    """Return the rows whose pictures may be new: on a GPU all, for to know which ones are, one would wait for it."""
    if is_new.is_cuda:
        return torch.arange(len(is_new), device=is_new.device)
    return is_new.nonzero().squeeze(1)


def _added(parts: list[tuple[Any, Any]], classes: int) -> list[list[int]]:
    """Return [label, predicted, samples] of each pair that some rank has seen, in the order of the labels."""
    keys = np.concatenate([part[0] for part in parts])
    counts = np.concatenate([part[1] for part in parts])
    pairs, places = np.unique(keys, return_inverse=True)
    total = np.bincount(places, weights=counts, minlength=len(pairs)).astype(np.int64)
    return [[int(key) // classes, int(key) % classes, int(count)] for key, count in zip(pairs, total, strict=True)]


def _as_details(
    pairs: list[list[int]], top5: Any, classes: int, mistakes: list[Sample], first: list[Sample]
) -> dict[str, Any]:
    rows = [[0, 0, int(hits)] for hits in top5]
    for label, predicted, count in pairs:
        rows[label][0] += count
        rows[label][1] += count if label == predicted else 0
    confused = sorted((pair for pair in pairs if pair[0] != pair[1]), key=lambda pair: (-pair[2], pair[0], pair[1]))
    matrix = {"matrix": pairs} if classes <= CLASSES_OF_A_MATRIX else {}
    return {"classes": rows, "pairs": confused[:PAIRS], **matrix, "mistakes": mistakes, "first": first}
