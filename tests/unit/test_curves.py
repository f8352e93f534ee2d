"""What charts are made of: speeds of intervals, scales, differences of settings."""

import json

import pytest

from tests.records import a_record
from train.record.curves import intervals, needs_log
from train.record.report import draw
from train.record.settings import differing, own_and_base


def test_an_intervals_speed_is_its_images_over_its_seconds() -> None:
    curve = [
        {"batch": batch, "images_per_sec": speed, "data_wait_fraction": wait}
        for batch, (speed, wait) in enumerate([(100.0, 0.0), (25.0, 0.5), (100.0, 1.0), (100.0, 1.0)], start=1)
    ]
    assert intervals(curve, most=2) == [
        {"batch": 2, "images_per_sec": pytest.approx(2 / (1 / 100 + 1 / 25)), "data_wait_fraction": pytest.approx(0.4)},
        {"batch": 4, "images_per_sec": pytest.approx(100.0), "data_wait_fraction": pytest.approx(1.0)},
    ]
    assert len(intervals([{"batch": at, "images_per_sec": 5.0} for at in range(1, 501)])) <= 120


def test_a_speed_that_does_not_change_is_a_straight_line() -> None:
    """The mean of a window that begins anew would fall and rise."""
    curve = [{"batch": at, "images_per_sec": 1_000.0, "data_wait_fraction": 0.1} for at in range(1, 500)]
    assert {round(row["images_per_sec"], 6) for row in intervals(curve)} == {1_000.0}


@pytest.mark.parametrize(
    ("values", "expected"),
    [([], False), ([3.0, 2.0, 1.0], False), ([900.0, 3.0, 2.0, 1.0], True), ([900.0, 1.0, 0.0], False)],
)
def test_one_value_that_dwarfs_the_rest_needs_a_logarithm(values: list[float], expected: bool) -> None:
    assert needs_log(values) is expected


@pytest.mark.slow
def test_the_picture_is_drawn_of_a_run_at_its_beginning_and_at_its_end() -> None:
    for batches, evaluations in ((0, 0), (1, 0), (40, 2)):
        assert draw(a_record(batches=batches, evaluations=evaluations)).startswith(b"\x89PNG")


def test_settings_that_differ_are_told_from_those_that_do_not() -> None:
    one, other = (
        a_record(seed=1)["config"],
        a_record(seed=2, algorithms=[{"name": "ema", "half_life": "10ba"}])["config"],
    )
    assert differing([one, other]) == {
        "seed": ["1", "2"],
        "algorithms": ["[]", ""],
        "algorithms.0.name": ["", "ema"],
        "algorithms.0.half_life": ["", "10ba"],
    }
    assert differing([one, json.loads(json.dumps(one))]) == {}
    own, same = own_and_base(one)
    assert own == [("seed", "1", "17"), ("global_batch_size", "8", "256")]
    assert ("optimizer.weight_decay", "0.0001") in same
