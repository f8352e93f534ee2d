"""Gradients are summed in the same buckets from a process's first step on, whatever that step looks like."""

from collections.abc import Iterator
from itertools import chain
from typing import Any

import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from train.resume.gradient_buckets import fix_gradient_buckets


@pytest.fixture(autouse=True)
def one_rank() -> Iterator[None]:
    store = distributed.HashStore()  # type: ignore[attr-defined]  # torch does not list what it exports
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


class Network(nn.Module):
    """Its layers can be used in either order, so that their gradients arrive in the other one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.other = nn.Linear(600, 600), nn.Linear(600, 600)
        self.norm = nn.BatchNorm1d(600)
        self.turned = False

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        layers = (self.other, self.one) if self.turned else (self.one, self.other)
        result: torch.Tensor = self.norm(layers[1](layers[0](images)))
        return result


class Summed:
    """A wrapped network that notes which parameters are summed together, for each step."""

    def __init__(self, *, turned: bool) -> None:
        network = Network()
        network.turned = turned
        self.names = {id(parameter): name for name, parameter in network.named_parameters()}
        self.model: Any = DistributedDataParallel(network, bucket_cap_mb=1)
        self.model.register_comm_hook(None, self._sum)
        self._buckets: list[list[str]] = []

    def _sum(self, _: None, bucket: distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:  # type: ignore[name-defined]  # nor this
        self._buckets.append([self.names[id(parameter)] for parameter in bucket.parameters()])
        done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    def step(self) -> list[list[str]]:
        """Return the buckets of one step, in the order in which they are summed."""
        self._buckets = []
        self.model.zero_grad()
        self.model(torch.ones(4, 600)).sum().backward()
        return self._buckets


@pytest.mark.slow
def test_torch_sums_the_first_step_in_one_bucket_and_the_later_ones_as_the_first_went() -> None:
    one, other = Summed(turned=False), Summed(turned=True)
    first, second = one.step(), one.step()
    assert len(first) == 1 and len(second) > 1
    other.step()
    assert other.step() != second


@pytest.mark.slow
def test_they_are_laid_out_before_the_first_step_and_always_alike() -> None:
    one, other = Summed(turned=False), Summed(turned=True)
    for summed in (one, other):
        fix_gradient_buckets(summed.model)
    first = one.step()
    assert len(first) > 1 and sorted(chain.from_iterable(first)) == sorted(one.names.values())
    assert [one.step() for _ in range(3)] == [first] * 3
    assert [other.step() for _ in range(3)] == [first] * 3


def test_nothing_else_is_changed() -> None:
    model = Summed(turned=False).model
    before = {name: values.clone() for name, values in model.state_dict().items()}
    state = torch.random.get_rng_state()
    fix_gradient_buckets(model)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(values, before[name]) for name, values in model.state_dict().items())
    assert [parameter.grad for parameter in model.parameters()] == [None] * 6
    assert "forward" not in vars(model.module)
    network = Network()
    fix_gradient_buckets(network)  # a single process sums nothing
