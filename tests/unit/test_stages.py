"""Where the time of a step went, in words and figures."""

import pytest
import torch

from imagestream.loader import Loader
from train.record.stages import Speed, StageClock


def clock(wait: float, copy: float, **workers: float) -> StageClock:
    return StageClock(10.0, wait, copy, {"shard_wait": 0.0, "read": 0.0, "decode": 0.0} | workers)


def test_the_bottleneck_is_the_device_where_the_loader_keeps_up() -> None:
    assert clock(0.4, 0.1, decode=20.0).bottleneck() == "device"
    assert clock(0.4, 6.0, decode=20.0).bottleneck() == "copy"


def test_a_loader_that_is_waited_for_is_blamed_by_its_slowest_stage() -> None:
    assert clock(3.0, 0.1, decode=20.0, read=2.0).bottleneck() == "decode"
    assert clock(3.0, 0.1, decode=20.0, read=30.0).bottleneck() == "read"
    assert clock(3.0, 0.1, decode=20.0, shard_wait=30.0).bottleneck() == "shard_wait"


def test_fractions_add_up() -> None:
    found = clock(2.5, 1.25, decode=6.0, read=1.5, shard_wait=0.5).fractions()
    ranks, workers = {"data_wait": 0.25, "copy": 0.125, "device": 0.625}, {"shard_wait": 0.0625, "read": 0.1875}
    assert found == ranks | workers | {"decode": 0.75}
    assert str(clock(2.0, 1.0, decode=3.0, read=1.0)).endswith(
        "20% waiting for data, 10% copy, 70% device; loader workers: 0% shard wait, 25% read, 75% decode; "
        "bottleneck: decode"
    )


def test_no_steps_have_no_fractions() -> None:
    assert StageClock(0.0, 0.0, 0.0, {"shard_wait": 0.0, "read": 0.0, "decode": 0.0}).fractions()["data_wait"] == 0.0


def test_a_point_of_the_curve_has_the_speed_and_the_wait_of_its_own_batches() -> None:
    speed, waited = Speed(), 0.0
    loader = Loader.__new__(Loader)
    loader.stage_seconds, loader.copied_seconds = torch.zeros(3), 0.0
    assert speed.take_point() == {"images_per_sec": None, "data_wait_fraction": None}
    found = []
    for images, seconds, wait_s in ((100, 10.0, 0.0), (100, 10.0, 5.0), (100, 1.0, 0.5)):
        waited = loader.waited_seconds = waited + wait_s
        speed.add(images, seconds, loader)
        if wait_s:
            found.append(speed.take_point())
    assert found == [
        {"images_per_sec": pytest.approx(10.0), "data_wait_fraction": pytest.approx(0.25)},
        {"images_per_sec": pytest.approx(100.0), "data_wait_fraction": pytest.approx(0.5)},
    ]
    assert speed.images_per_sec == pytest.approx(300 / 21)
