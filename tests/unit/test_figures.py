"""Calibration, confusions, hits by class and ReaL's labels: exact counts, and the traps of the images' order."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imagestream.mds.index import DataError
from train.figures import BINS, by_class, calibration, in_words, worst_pairs
from train.real import image_numbers, read_classes_of_files, read_real, real_figures

NAMES = ["n00000001", "n00000002", "n00000003"]


def test_calibration_is_that_of_its_definition_and_of_any_order() -> None:
    rng = np.random.default_rng(0)
    confidences = rng.random(5000).astype(np.float32)
    confidences[:2] = (1.0, 0.0)
    hits = rng.random(5000) < confidences**2
    found = calibration(confidences, hits)
    error = 0.0
    for row in found["reliability"]:
        low, high = row["confidence"]
        inside = (confidences.astype(np.float64) > low) & (confidences.astype(np.float64) <= high)
        inside |= (confidences == 0) & (low == 0)
        assert (row["samples"], row["correct"]) == (inside.sum(), hits[inside].sum())
        error += abs(hits[inside].mean() - confidences[inside].astype(np.float64).mean()) * inside.sum() / 5000
    assert found["ece"] == pytest.approx(error, abs=1e-7)
    order = rng.permutation(5000)
    assert calibration(confidences[order], hits[order]) == found
    assert sum(row["samples"] for row in found["reliability"]) == 5000


def test_a_network_that_is_always_sure_and_half_right_errs_by_a_half() -> None:
    found = calibration(np.ones(10, np.float32), np.arange(10) % 2 == 0)
    assert found["ece"] == 0.5
    assert [row["samples"] for row in found["reliability"]] == [0] * (BINS - 1) + [10]
    edge = calibration(np.array([3 / BINS]), np.array([True]))["reliability"]
    assert [row["samples"] for row in edge].index(1) == 2  # a bin has its upper end


def test_confidences_that_are_not_numbers_have_no_calibration() -> None:
    confidences = np.array([0.5, np.nan, 0.5, np.inf], np.float32)
    found = calibration(confidences, np.array([True, False, False, True]))
    assert (found["ece"], found["not_finite"]) == (None, 2)
    assert [(row["samples"], row["correct"]) for row in found["reliability"] if row["samples"]] == [(2, 1)]
    words = in_words({**found, "worst_pairs": []})
    assert words.startswith("no calibration error: the confidence of 2 samples is not a number\n")
    assert calibration(confidences[:1], np.array([True]))["not_finite"] == 0


def test_the_classes_that_are_most_often_confused_come_first() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1, 2, 2, 2], np.int64)
    predicted = np.array([0, 1, 1, 2, 0, 1, 1, 1, 2], np.int64)
    pairs = worst_pairs(labels, predicted, NAMES)
    rows = [(pair["label"][-1], pair["predicted"][-1], pair["samples"], pair["of"]) for pair in pairs]
    assert rows == [("1", "2", 2, 4), ("3", "2", 2, 3), ("1", "3", 1, 4), ("2", "1", 1, 2)]
    words = in_words({**calibration(np.full(9, 0.5), labels == predicted), "worst_pairs": pairs})
    assert "  2 of 4 of n00000001 as n00000002\n" in words
    assert "  0.47 - 0.53         9     0.333" in words
    assert worst_pairs(labels, labels, NAMES) == []


def test_hits_by_class_add_up_and_a_class_without_samples_is_left_out() -> None:
    labels = np.array([0, 0, 2], np.int64)
    classes = np.array([[0, 1, 2], [1, 0, 2], [1, 0, 2]], np.int64)
    rows = list(csv.DictReader(by_class(labels, classes, NAMES).splitlines()))
    assert [list(row.values()) for row in rows] == [
        ["0", "n00000001", "2", "1", "2", "0.5"],
        ["2", "n00000003", "1", "0", "1", "0.0"],
    ]


FILES = [(3, NAMES[0]), (1, NAMES[1]), (4, NAMES[0]), (2, NAMES[2])]
"""The number and class of each validation image."""
REAL: list[list[int]] = [[1], [2, 0], [], [0]]
"""ReaL's classes of images 1 to 4."""


def test_images_are_told_by_their_place_in_either_order() -> None:
    by_class_and_name = np.array([0, 0, 1, 2], np.int64)  # images 3, 4, 1, 2
    assert image_numbers(np.arange(4), by_class_and_name, FILES, NAMES).tolist() == [2, 3, 0, 1]
    assert image_numbers(np.array([1, 3]), by_class_and_name[[1, 3]], FILES, NAMES).tolist() == [
        3,
        1,
    ]  # one was refused
    by_name = np.array([1, 2, 0, 0], np.int64)
    assert image_numbers(np.arange(4), by_name, FILES, NAMES).tolist() == [0, 1, 2, 3]
    turned = NAMES[::-1]  # the model's classes in another order
    assert image_numbers(np.arange(4), np.array([2, 2, 1, 0]), FILES, turned).tolist() == [2, 3, 0, 1]
    for labels in ([1, 0, 0, 2], [0, 0, 1, 1]):
        with pytest.raises(DataError, match="in the order of the list neither by the files' names nor by class"):
            image_numbers(np.arange(4), np.array(labels), FILES, NAMES)


def test_reals_figures_leave_out_images_without_labels() -> None:
    numbers, labels = np.array([2, 3, 0, 1]), np.array([0, 0, 1, 2])
    found = real_figures(REAL, numbers, labels, np.array([0, 0, 2, 0]), NAMES)
    assert found == {"real_top1": 2 / 3, "real_samples": 3}  # image 2 as class 0, which ReaL says too
    turned = [2, 1, 0]
    mine = np.array(turned)
    again = real_figures(REAL, numbers, mine[labels], mine[[0, 0, 2, 0]], NAMES[::-1])
    assert again == found


def test_labels_of_other_images_are_refused() -> None:
    with pytest.raises(DataError, match=r"of 3 images it has ImageNet's own class for 0 alone, .*--val-classes"):
        real_figures(REAL, np.arange(4), np.array([0, 1, 1, 2]), np.array([0, 1, 1, 2]), NAMES)
    with pytest.raises(DataError, match="it has 4 images, and the dataset one with the id 4"):
        real_figures(REAL, np.array([4]), np.array([0]), np.array([0]), NAMES)
    with pytest.raises(DataError, match="it has the class 2, and the model 2 classes"):
        real_figures(REAL, np.array([0]), np.array([1]), np.array([0]), NAMES[:2])


@pytest.mark.parametrize("content", ["{}", "[1, 2]", "[[1], [-1]]", '[["n00000001"]]', "[[true]]", "[[1"])
def test_another_file_than_real_json_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "real.json").write_text(content)
    with pytest.raises(DataError, match=r"--real: .*real\.json (must be a list|is not JSON)"):
        read_real(str(tmp_path / "real.json"))
    with pytest.raises(DataError, match=r"--real: .*none\.json is not a file that exists"):
        read_real(str(tmp_path / "none.json"))


@pytest.mark.parametrize(
    "line",
    ["ILSVRC2012_val_{:08},{} 85 1 499 272 ", "ILSVRC2012_val_{:08}.JPEG {}", "val/ILSVRC2012_val_{:08}.JPEG\t{}"],
)
def test_lists_of_the_files_classes_are_read_as_they_come(line: str, tmp_path: Path) -> None:
    place = tmp_path / "list"
    place.write_text("ImageId,PredictionString\n" + "\n".join(line.format(*entry) for entry in FILES) + "\n")
    assert read_classes_of_files(str(place)) == FILES
    place.write_text(json.dumps(REAL))
    with pytest.raises(DataError, match=r"--val-classes: .* has no line such as"):
        read_classes_of_files(str(place))


def test_reading_a_list_gives_plain_numbers(tmp_path: Path) -> None:
    (tmp_path / "real.json").write_text(json.dumps(REAL))
    found: Any = read_real(str(tmp_path / "real.json"))
    assert found == REAL
