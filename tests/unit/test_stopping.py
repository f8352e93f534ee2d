"""A batch that is left out leaves no trace."""

import signal
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from train.step.optimizers import SGD
from train.step.statistics import StepStatistics
from train.stopping import BatchWatch, NonFiniteError


def state_of(model: torch.nn.Module, optimizer: torch.optim.Optimizer, *, batch: int = 7) -> Any:
    timestamp = SimpleNamespace(batch=batch, batch_in_epoch=1, epoch=2)
    schedulers = [SimpleNamespace(get_last_lr=lambda: [0.5])]
    device = SimpleNamespace(tensor_to_device=lambda tensor: tensor)
    return SimpleNamespace(
        model=model,
        scaler=None,
        device=device,
        timestamp=timestamp,
        schedulers=schedulers,
        loss=torch.tensor(1.5),
        optimizers=(optimizer,),
    )


def watch(skips: int, asked: signal.Signals | None = None) -> BatchWatch:
    stand_in: Any = SimpleNamespace(seen=asked)
    return BatchWatch(stand_in, stand_in, StepStatistics(), skips=skips)


def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, guard: BatchWatch, *, bad: bool) -> None:
    state = state_of(model, optimizer)
    guard.fit_start(state, None)  # needs no logger
    optimizer.zero_grad()
    guard.before_train_batch(state, None)  # nor here
    images = torch.randn(4, 3) * (float("inf") if bad else 1)
    model(images).sum().backward()
    guard.after_train_batch(state, None)  # nor here
    optimizer.step()


def everything(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    momentum = [value["momentum_buffer"] for value in optimizer.state.values()]
    return [tensor.clone() for tensor in [*model.parameters(), *model.buffers(), *momentum]]


def test_a_step_that_is_left_out_changes_neither_weights_nor_averages_nor_momentum() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.BatchNorm1d(5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    guard = watch(skips=1)
    step(model, optimizer, guard, bad=False)
    before = everything(model, optimizer)
    step(model, optimizer, guard, bad=True)
    assert all(torch.equal(a, b) for a, b in zip(before, everything(model, optimizer), strict=True))
    assert guard.skipped == [7] == guard.state_dict()["skipped"]
    step(model, optimizer, guard, bad=False)
    assert not all(torch.equal(a, b) for a, b in zip(before, everything(model, optimizer), strict=True))
    with pytest.raises(NonFiniteError, match=r"batch 7 \(batch 1 of epoch 2\) after 1 skipped ones: .*rate 0\.5"):
        step(model, optimizer, guard, bad=True)


def test_the_skips_of_the_whole_run_count() -> None:
    guard = watch(skips=1)
    guard.load_state_dict({"skipped": [3]})
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.BatchNorm1d(5))
    with pytest.raises(NonFiniteError):
        step(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), guard, bad=True)


def test_without_skips_no_step_is_taken_from_the_bad_batch_on_and_the_next_batch_tells() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.BatchNorm1d(5))
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    guard = watch(skips=0)
    guard.fit_start(state_of(model, optimizer), None)
    seen = []
    for batch, factor in enumerate([1.0, float("inf"), 1.0]):
        state = state_of(model, optimizer, batch=batch)
        optimizer.zero_grad()
        loss = model(torch.randn(4, 3) * factor).sum()
        loss.backward()
        guard.after_train_batch(state, None)
        optimizer.step()
        seen.append([parameter.detach().clone() for parameter in model.parameters()])
        if batch < 2:
            guard.send(state, loss)
    with pytest.raises(NonFiniteError, match=r"batch 1 \(batch 1 of epoch 2\): .*loss nan"):
        guard.send(state, loss)
    good, bad, after = seen
    assert all(map(torch.equal, good, bad)) and all(map(torch.equal, good, after))


def test_before_anything_is_saved_a_bad_batch_is_told_of() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 5))
    optimizer = SGD(model.parameters(), lr=0.1)
    guard = watch(skips=0)
    state = state_of(model, optimizer)
    guard.fit_start(state, None)
    loss = model(torch.full((4, 3), float("nan"))).sum()
    loss.backward()
    guard.after_train_batch(state, None)
    guard.send(state, loss)
    with pytest.raises(NonFiniteError, match="batch 7"):
        guard.statistics.settle()
