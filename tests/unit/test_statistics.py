"""A step's figures come in order, a step late, and none is lost."""

from types import SimpleNamespace
from typing import Any

import torch

from train.step.statistics import Step, StepStatistics


def state_at(batch: int) -> Any:
    timestamp = SimpleNamespace(batch=batch, batch_in_epoch=batch % 4, epoch=batch // 4)
    return SimpleNamespace(timestamp=timestamp, schedulers=[SimpleNamespace(get_last_lr=lambda: [0.5 / (batch + 1)])])


def send(statistics: StepStatistics, batch: int, *, bad: bool = False, asked: bool = False) -> None:
    statistics.send(state_at(batch), torch.tensor(batch / 8), torch.tensor(float(bad)), is_stop_asked=asked)


def test_a_step_is_read_when_the_next_one_is_sent_and_the_last_when_asked_for() -> None:
    statistics, seen = StepStatistics(), list[Step]()
    statistics.tell(seen.append)
    for batch in range(3):
        send(statistics, batch, bad=batch == 1)
        assert [step.batch for step in seen] == list(range(batch))
    statistics.settle()
    assert seen == [
        Step(0, "batch 0 (batch 0 of epoch 0)", 0.5, 0.0, True, False),
        Step(1, "batch 1 (batch 1 of epoch 0)", 0.25, 0.125, False, False),
        Step(2, "batch 2 (batch 2 of epoch 0)", 0.5 / 3, 0.25, True, False),
    ]
    statistics.settle()
    assert len(seen) == 3


def test_a_rank_alone_that_is_asked_to_stop_knows_it_at_once() -> None:
    statistics, seen = StepStatistics(), list[Step]()
    statistics.tell(seen.append)
    send(statistics, 0)
    send(statistics, 1, asked=True)
    assert [(step.batch, step.is_stop_asked) for step in seen] == [(0, False), (1, True)]


def test_without_lag_each_step_is_read_at_once_by_each_reader_in_their_order() -> None:
    statistics, seen = StepStatistics(), list[tuple[str, int]]()
    statistics.lag_steps = 0
    for name in ("first", "second"):
        statistics.tell(lambda step, name=name: seen.append((name, step.batch)))  # type: ignore[misc]
    send(statistics, 7)
    assert seen == [("first", 7), ("second", 7)]
