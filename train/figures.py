"""What else predictions say: of each class, which classes are taken for which, and how sure the network may be.

All of it is counted, so that it is the same to the last digit for any number of ranks and images in a batch.
"""

import csv
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
BINS = 15
"""Of confidence, equally wide, as in Guo et al. 2017 (arXiv:1706.04599), from whom the calibration error is."""
CONFIDENCE_UNIT = 2.0**-24
"""Confidences are rounded to multiples of it before they are added, as whole numbers."""
PAIRS = 10


def calibration(confidences: npt.NDArray[Any], hits: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """Return the expected calibration error, and of each bin of confidence the samples and how many were right.

    The error is the mean over all samples of |accuracy - mean confidence| of the sample's bin, 0 to 1. Where
    confidences are NaN, as those of a network whose weights are, there is none; they are counted as `not_finite`, and
    are in no bin.

    Args:
        confidences: the probability of each sample's likeliest class, 0 to 1.
        hits: whether that class is the label.
    """
    finite = np.isfinite(confidences)
    not_finite = len(confidences) - int(finite.sum())
    confidences, hits = confidences[finite], hits[finite]
    place = np.clip(np.ceil(confidences.astype(np.float64) * BINS).astype(np.int64) - 1, 0, BINS - 1)  # (low, high]
    units = np.rint(confidences.astype(np.float64) / CONFIDENCE_UNIT).astype(np.int64)
    samples, right, sums = (np.zeros(BINS, np.int64) for _ in range(3))
    np.add.at(samples, place, 1)
    np.add.at(right, place, hits.astype(np.int64))
    np.add.at(sums, place, units)
    whole = round(1 / CONFIDENCE_UNIT)
    error = sum(abs(int(r) * whole - int(s)) for r, s in zip(right, sums, strict=True)) / (whole * max(1, len(hits)))
    rows = [
        {
            "confidence": [low / BINS, (low + 1) / BINS],
            "samples": int(samples[low]),
            "correct": int(right[low]),
            "mean_confidence": int(sums[low]) / whole / int(samples[low]) if samples[low] else None,
        }
        for low in range(BINS)
    ]
    return {"ece": None if not_finite else error, "not_finite": not_finite, "reliability": rows}


def worst_pairs(labels: Ints, predicted: Ints, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the pairs of classes of which one is most often taken for the other, most often first.

    Args:
        names: of the model's classes.
    """
    wrong = labels != predicted
    pairs, counts = np.unique(np.stack([labels[wrong], predicted[wrong]], axis=1), axis=0, return_counts=True)
    of_label = np.bincount(labels, minlength=len(names))
    order = np.lexsort((pairs[:, 1], pairs[:, 0], -counts))[:PAIRS]
    return [
        {
            "label": names[int(pairs[at, 0])],
            "predicted": names[int(pairs[at, 1])],
            "samples": int(counts[at]),
            "of": int(of_label[pairs[at, 0]]),
        }
        for at in order
    ]


def by_class(labels: Ints, classes: Ints, names: Sequence[str]) -> str:
    """Return a CSV with a row for each class that has samples: its number, name, samples, top-1 and top-5 hits.

    Args:
        classes: int (samples, 5): the likeliest classes of each sample.
    """
    first = classes[:, 0] == labels
    among = (classes == labels[:, None]).any(axis=1)
    samples, top1, top5 = (
        np.bincount(labels, weights=weights, minlength=len(names)).astype(np.int64)
        for weights in (None, first.astype(np.int64), among.astype(np.int64))
    )
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["class", "name", "samples", "top1_correct", "top5_correct", "top1"])
    for number in np.flatnonzero(samples).tolist():
        counts = int(samples[number]), int(top1[number]), int(top5[number])
        writer.writerow([number, names[number], *counts, counts[1] / counts[0]])
    return text.getvalue()


def in_words(found: dict[str, Any]) -> str:
    """Return calibration and worst pairs as a person reads them."""
    lines = [
        f"expected calibration error {found['ece']:.4f}, {BINS} bins"
        if found["ece"] is not None
        else f"no calibration error: the confidence of {found['not_finite']:,} samples is not a number",
        "  confidence   samples  accuracy",
    ]
    for row in found["reliability"]:
        if row["samples"]:
            low, high = row["confidence"]
            accuracy = row["correct"] / row["samples"]
            lines.append(f"  {low:.2f} - {high:.2f}  {row['samples']:8,}  {accuracy:8.3f}")
    lines.append("most often confused")
    for pair in found["worst_pairs"]:
        lines.append(f"  {pair['samples']:,} of {pair['of']:,} of {pair['label']} as {pair['predicted']}")
    return "\n".join(lines)
