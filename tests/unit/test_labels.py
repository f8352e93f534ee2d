"""A checkpoint is scored on its own classes: by their names, or not at all."""

from collections.abc import Sequence

import pytest
import torch

from imagestream.data.dataset import IGNORED_LABEL
from imagestream.data.labels import Labels, labels_for
from imagestream.mds.index import DataError

NETWORK = [f"n{number:08}" for number in range(20)]
FOLDERS = sorted(map(str, range(20)))  # 0, 1, 10, 11, ..., 2, ...


def seen(network: Sequence[str] | None, dataset: Sequence[str] | None, *labels: int) -> list[int]:
    return labels_for(network, 20, dataset, where="mds/val")(torch.tensor(labels)).tolist()


@pytest.mark.parametrize(
    ("network", "dataset", "labels", "expected"),
    [
        (NETWORK, NETWORK, (0, 7, 19), [0, 7, 19]),
        (NETWORK, NETWORK[:4], (0, 3, IGNORED_LABEL), [0, 3, IGNORED_LABEL]),
        (NETWORK, NETWORK[::-1], (0, 19, IGNORED_LABEL), [19, 0, IGNORED_LABEL]),
        (NETWORK, NETWORK[5:9], (0, 3, 1), [5, 8, 6]),
        (NETWORK, FOLDERS, tuple(range(20)), [int(name) for name in FOLDERS]),
        (NETWORK, ["007", "012"], (0, 1), [7, 12]),
        (FOLDERS, FOLDERS, tuple(range(20)), list(range(20))),
        (FOLDERS, ["2", "10"], (0, 1), [FOLDERS.index("2"), FOLDERS.index("10")]),
        (NETWORK, None, (0, 19), [0, 19]),
        (None, NETWORK, (0, 19), [0, 19]),
        (NETWORK[:12], NETWORK[:3], (0, 2), [0, 2]),  # more outputs than classes that were trained on
    ],
)
def test_labels_are_compared_by_the_names_of_their_classes(
    network: Sequence[str] | None, dataset: Sequence[str] | None, labels: tuple[int, ...], expected: list[int]
) -> None:
    assert seen(network, dataset, *labels) == expected


@pytest.mark.parametrize(
    ("network", "dataset", "words"),
    [
        (
            NETWORK,
            ["cat", "dog"],
            r"mds/val has classes that the model does not know: cat, dog \(2 of 2\); the model's",
        ),
        (NETWORK, [*NETWORK, "n00000020"], r"does not know: n00000020 \(1 of 21\)"),
        (NETWORK, [*FOLDERS, "20"], r"does not know: 20 \(1 of 21\)"),
        (FOLDERS, NETWORK, r"does not know: n00000000, .*, \.\.\. \(20 of 20\)"),
        (None, NETWORK[:12], "mds/val has 12 classes and the model 20, and the checkpoint does not name its own"),
    ],
)
def test_other_classes_are_refused(network: Sequence[str] | None, dataset: Sequence[str], words: str) -> None:
    with pytest.raises(DataError, match=words):
        labels_for(network, 20, dataset, where="mds/val")


@pytest.mark.parametrize("strange", [20, 21, -1, 2**40])
def test_a_label_that_is_no_class_is_refused(strange: int) -> None:
    for numbers in (None, list(range(20))[::-1]):
        labels = Labels(20, where="mds/val", numbers=numbers)
        with pytest.raises(
            DataError, match=f"mds/val has the label {strange}; the model's classes are 0 to 19, so give"
        ):
            labels(torch.tensor([3, strange, IGNORED_LABEL]))
