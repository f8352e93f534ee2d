"""A rank that is slower than the others for minutes is named once; a step that was slow by chance is not."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.integration.problem import command
from tests.processes import start
from train.record.stragglers import SECONDS_THAT_COUNT, Stragglers
from train.step.own_time import EVERY_STEPS, OwnTime
from train.step.statistics import Step, StepStatistics


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def step(*own_s: float) -> Step:
    return Step(20, "batch 20", 0.1, 1.0, True, False, own_s)


def told(caplog: pytest.LogCaptureFixture, times: list[tuple[float, ...]], *, seconds_each: float) -> list[str]:
    """What is said of these steps, so many seconds apart."""
    clock = Clock()
    stragglers = Stragglers(clock)
    with caplog.at_level(logging.WARNING, logger="train.record.stragglers"):
        for own_s in times:
            stragglers.take(step(*own_s))
            clock.seconds += seconds_each
    return [record.getMessage() for record in caplog.records]


def test_a_rank_that_is_slower_for_minutes_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    (said,) = told(caplog, [(0.3, 0.3, 0.45, 0.31)] * 100, seconds_each=SECONDS_THAT_COUNT / 20)
    assert said.startswith("rank 2 (rank 0 of machine 2) holds up the others: for 180 s it has needed 0.45 s")
    assert "the median is 0.3 s; at batch 20" in said


def test_of_two_ranks_the_slower_one_is_named(caplog: pytest.LogCaptureFixture) -> None:
    (said,) = told(caplog, [(0.2, 0.4)] * 40, seconds_each=10)
    assert said.startswith("rank 1 ")


@pytest.mark.parametrize(
    ("times", "seconds_each"),
    [
        ([(0.3, 0.3, 0.38, 0.3)] * 100, 60.0),  # 1.27 times
        ([(0.3, 0.3, 0.9, 0.3)] * 10, 10.0),  # not for long
        (([(0.3, 0.3, 0.9, 0.3)] + [(0.3, 0.3, 0.3, 0.3)] * 9) * 20, 10.0),  # one step in ten
        ([(0.3, 0.3, 0.0, 0.3)] * 100, 60.0),  # not known
        ([()] * 100, 60.0),  # not measured
        ([(0.3,)] * 100, 60.0),
    ],
)
def test_others_are_not_named(
    caplog: pytest.LogCaptureFixture, times: list[tuple[float, ...]], seconds_each: float
) -> None:
    assert told(caplog, times, seconds_each=seconds_each) == []


def test_each_ranks_time_travels_with_the_steps_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the one collective that there is anyway."""
    collectives = []

    def sum_of_two_ranks(values: torch.Tensor, reduce_operation: str) -> None:
        collectives.append(values.tolist())
        values += torch.tensor([0.5, 0.0, 0.0, 0.25, 0.0][: len(values)])  # rank 0's

    monkeypatch.setattr("train.step.statistics.dist.get_world_size", lambda: 2)
    monkeypatch.setattr("train.step.statistics.dist.get_global_rank", lambda: 1)
    monkeypatch.setattr("train.step.statistics.dist.all_reduce", sum_of_two_ranks)
    statistics, seen = StepStatistics(), list[Step]()
    statistics.tell(seen.append)
    timestamp = SimpleNamespace(batch=0, batch_in_epoch=0, epoch=0)
    state: Any = SimpleNamespace(timestamp=timestamp, schedulers=[SimpleNamespace(get_last_lr=lambda: [0.1])])
    for own_s in (0.75, None):
        statistics.send(state, torch.tensor(1.5), torch.tensor(0.0), is_stop_asked=False, own_s=own_s)
    statistics.settle()
    assert collectives == [[1.5, 0.0, 0.0, 0.0, 0.75], [1.5, 0.0, 0.0]]
    assert [found.own_s for found in seen] == [(0.25, 0.75), ()] and seen[0].loss == 1.0


def test_a_step_of_ones_own_is_the_wait_for_data_and_three_forward_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("train.step.own_time.time.perf_counter", clock)
    monkeypatch.setattr("train.step.own_time.dist.get_world_size", lambda: 2)
    measure, loader = OwnTime(is_on=True), SimpleNamespace(waited_seconds=0.0)
    found = []
    for batch in range(2 * EVERY_STEPS + 1):
        state: Any = SimpleNamespace(timestamp=SimpleNamespace(batch=batch), dataloader=loader)
        measure.begin(state)
        for _ in range(2):  # of two microbatches
            with measure.forward(torch.device("cpu")):
                clock.seconds += 0.05
            clock.seconds += 7  # the backward pass, with its wait for the others
        found.append(measure.take(state))
        loader.waited_seconds += 0.2
    assert [value for value in found if value is not None] == pytest.approx([0.0, 0.2 + 3 * 0.1, 0.2 + 3 * 0.1])
    assert [batch for batch, value in enumerate(found) if value is not None] == [0, EVERY_STEPS, 2 * EVERY_STEPS]


def test_one_rank_alone_or_ranks_that_wait_in_their_forward_passes_measure_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    state: Any = SimpleNamespace(timestamp=SimpleNamespace(batch=0), dataloader=None)
    for ranks, is_on in ((1, True), (2, False)):
        monkeypatch.setattr("train.step.own_time.dist.get_world_size", lambda ranks=ranks: ranks)
        measure = OwnTime(is_on=is_on)
        measure.begin(state)
        assert measure.take(state) is None


@pytest.mark.slow
def test_a_run_names_the_rank_that_is_slow(shards: Path, tmp_path: Path) -> None:
    """Two ranks, of which the second has a slow forward pass; half a second counts for minutes."""
    argv = command(shards, tmp_path / "run", "max_duration=30ba", "eval_interval=30ba", "algorithms=[]")
    started = start(argv, tmp_path / "log", ranks=2, program="tests.slow_rank")
    assert started.wait() == 0, started.output()
    said = started.output(0)
    assert said.count("rank 1 (rank 1 of machine 0) holds up the others") == 1, said
    assert "rank 0 (" not in said
    assert started.output(1).count("Its host is ") == 1
