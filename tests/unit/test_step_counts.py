"""A step of the production recipe launches no more than it did, and waits for nothing before the optimizer has stepped.

The optimizer takes the GPU's way, one fused operation. On a GPU what is read after the step is the one before.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.step_counts import AFTER, BEFORE_THE_STEP, Counting
from tests.processes import start

MOST = {1: {"launches": 450, "collectives": 1}, 2: {"launches": 620, "collectives": 6}}
"""By the number of ranks."""
STEPS = 4
UPDATES_AVERAGES, USUAL = 1, 2  # numbers of steps; the first makes the momentum, and at the last one the run ends


@pytest.mark.slow
@pytest.mark.parametrize("ranks", MOST)
def test_a_step_launches_no_more_and_waits_for_nothing_before_the_optimizer(ranks: int, tmp_path: Path) -> None:
    steps = counted(ranks, tmp_path / "ours")
    for number, more_collectives in ((USUAL, 0), (UPDATES_AVERAGES, ranks - 1)):  # averages need rank 0's buffers
        step = steps[number]
        launched, collectives = (sum(step[kind].values()) for kind in ("launches", "collectives"))
        assert launched <= MOST[ranks]["launches"], step["names"]
        assert collectives <= MOST[ranks]["collectives"] + more_collectives, step["names"]
        assert {part: step["waits"][part] for part in BEFORE_THE_STEP if part in step["waits"]} == {}, step["names"]
        assert step["waits"] == {AFTER: 1} and step["names"][f"{AFTER} wait:tolist"] == 1


def counted(ranks: int, log: Path) -> list[dict[str, Any]]:
    program = "tests.step_counts_program"
    started = start(["ours", str(STEPS)], log, ranks=ranks, program=program, real_network=True)
    assert started.wait() == 0, started.output()
    steps: list[dict[str, Any]] = json.loads(started.output().partition("found ")[2].splitlines()[0])
    assert len(steps) == STEPS
    return steps


def test_what_is_counted_is_work_and_waits_and_not_views() -> None:
    images, weights = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3)
    counting = Counting("forward")
    counting.start()
    maps = torch.nn.functional.conv2d(images, weights).view(2, -1)[:, :5]
    counting.part = "loss"
    is_positive = bool(maps.sum() > 0)
    assert int(torch.div(3, 2)) == 1  # on the host wherever the images are
    assert torch.tensor(5).to("cpu").cpu().item() == 5  # there and back, which waits once
    counting.stop()
    assert is_positive in (True, False)
    found = counting.found()
    assert found["launches"] == {"forward": 1, "loss": 3}  # a convolution; a sum, a comparison, and the number's copy
    assert found["waits"] == {"loss": 2} and found["collectives"] == {}
    assert found["names"].keys() >= {"loss wait:bool", "loss wait:cpu"}
    assert found["flops"] == 2 * 2 * 4 * 6 * 6 * 3 * 3 * 3
    assert found["moved_bytes"] == 4 * (2 * 3 * 64 + 4 * 27 + 2 * 4 * 36) + 4 * (2 * 5 + 1) + 4 + 1 + 1
