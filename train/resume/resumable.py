"""Composer's algorithms that do not resume as they are, mended by subclasses of the same name.

Each one says what is wrong upstream (Composer 0.32.1); `tests/integration/test_algorithms.py` shows the outcome.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from composer.algorithms import SAM as ComposerSAM
from composer.algorithms import SWA as ComposerSWA
from composer.algorithms.sam.sam import SAMOptimizer as ComposerSAMOptimizer
from composer.core import Event, State
from composer.loggers import Logger

from train.step.buffers import share_buffers


class SAMOptimizer(ComposerSAMOptimizer):
    """Upstream's saves neither the base optimizer's momentum nor its own step. It also comes back from `w + e` by
    subtracting `e`, which each rank has another of, so that their weights part by rounding.

    State and parameter groups are those of the base optimizer, so that what is saved, loaded or set by a scheduler is
    the same for both.
    """

    def __init__(self, base_optimizer: torch.optim.Optimizer, **kwargs: Any) -> None:
        super().__init__(base_optimizer, **kwargs)
        self.state = base_optimizer.state
        for group in self.param_groups:
            group.setdefault("sam_step", 0)
        self._before: list[tuple[torch.Tensor, torch.Tensor]] = []

    def step(self, closure: Any = None) -> Any:
        if closure is None:  # torch does so before it loads a state, with a learning rate of 0, to have one to fill
            return self.base_optimizer.step()
        self.global_step = self.param_groups[0]["sam_step"]
        loss = super().step(closure)
        for group in self.param_groups:
            group["sam_step"] = self.global_step
        return loss

    @torch.no_grad()
    def first_step(self) -> None:
        norm = self._grad_norm()
        for group in self.param_groups:
            scale = group["rho"] / (norm + group["epsilon"])
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._before.append((parameter, parameter.clone()))
                    parameter.add_(parameter.grad * scale.to(parameter))

    @torch.no_grad()
    def sub_e_w(self) -> None:
        for parameter, before in self._before:
            parameter.copy_(before)
        self._before = []

    @torch.no_grad()
    def second_step(self) -> None:
        self.sub_e_w()
        self.base_optimizer.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.base_optimizer.state, self.base_optimizer.param_groups = self.state, self.param_groups


class SAM(ComposerSAM):
    """Upstream's wraps the optimizer after a checkpoint has been loaded, so that its state never reaches it."""

    def match(self, event: Event, state: State) -> bool:
        return event == Event.BEFORE_LOAD

    def apply(self, event: Event, state: State, logger: Logger | None) -> None:
        super().apply(event, state, logger)
        state.optimizers = tuple(
            SAMOptimizer(wrapped.base_optimizer, rho=self.rho, epsilon=self.epsilon, interval=self.interval)
            for wrapped in state.optimizers
            if isinstance(wrapped, ComposerSAMOptimizer)
        )


class SWA(ComposerSWA):
    """Upstream's averages the DistributedDataParallel wrapper on several ranks, whose keys are other ones than those
    that the average is loaded into, and takes each rank's own BatchNorm statistics."""

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        if event != Event.INIT:
            share_buffers(state.model)
        with _unwrapped(state):
            super().apply(event, state, logger)


@contextmanager
def _unwrapped(state: State) -> Iterator[None]:
    wrapped = state.model
    if isinstance(wrapped, torch.nn.parallel.DistributedDataParallel):
        state.model = wrapped.module
    try:
        yield
    finally:
        state.model = wrapped
