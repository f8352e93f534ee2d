"""What a training step asks of the processor: operations launched, collectives, and waits for the device.

Counts are of operations, not of a machine: they are the same on a CPU, where nobody waits. An operation counts that
does work on the device; views and empty tensors do not. A wait is a call that has to have a number, or a tensor, of the
device on the host (or the other way round, but for numbers that an operation takes as its arguments).
"""

from collections import Counter
from typing import Any

from composer.core import Callback, Event, State
from composer.loggers import Logger
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

WAITS = {
    Tensor.item: "item",
    Tensor.tolist: "tolist",
    Tensor.cpu: "cpu",
    Tensor.numpy: "numpy",
    Tensor.nonzero: "nonzero",
    Tensor.__bool__: "bool",
    Tensor.__int__: "int",
    Tensor.__float__: "float",
    Tensor.__index__: "index",
}
NO_WORK = ("empty", "new_empty", "_reshape_alias", "detach", "lift_fresh", "record_function", "_record_function")


class Launches(TorchDispatchMode):
    """Counts operations that do work, by part of the step."""

    def __init__(self, counts: "StepCounts") -> None:
        TorchDispatchMode.__init__(self)
        self.counts = counts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.partition("::")[2]
        if not is_view(func._schema) and not name.startswith(NO_WORK):
            kind = self.counts.collectives if func._schema.name.startswith("c10d::") else self.counts.launches
            kind[self.counts.part] += 1
            self.counts.names[self.counts.part, name] += 1
        return func(*args, **(kwargs or {}))


class Waits(TorchFunctionMode):
    """Counts what needs the device's answer, by part of the step."""

    def __init__(self, counts: "StepCounts") -> None:
        super().__init__()
        self.counts = counts

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in WAITS:
            self.counts.waits[self.counts.part] += 1
            self.counts.names[self.counts.part, f"wait:{WAITS[func]}"] += 1
        return func(*args, **(kwargs or {}))


def is_view(schema: Any) -> bool:
    """Return whether an operation gives another look at its input's memory, and writes nothing."""
    aliases = [out.alias_info for out in schema.returns if out.alias_info is not None]
    return bool(aliases) and not any(alias.is_write for alias in aliases)


PARTS = {
    Event.AFTER_DATALOADER: "before",
    Event.BEFORE_FORWARD: "forward",
    Event.BEFORE_LOSS: "loss",
    Event.BEFORE_BACKWARD: "backward",
    Event.AFTER_TRAIN_BATCH: "optimizer",
    Event.BATCH_END: "batch end",
}
BEFORE_THE_STEP = ("before", "forward", "loss", "backward", "optimizer")
"""Whatever waits in these keeps the GPU from work that the host has yet to launch."""


class StepCounts(Callback):
    """Counts each step from the arrival of its batch to the call for the next one.

    Attributes:
        steps: for each step that has ended, its counts by part.
    """

    def __init__(self) -> None:
        self.steps: list[dict[str, dict[str, int]]] = []
        self._modes: list[Any] = []
        self._start()

    def _start(self) -> None:
        self.part = "before"
        self.launches: Counter[str] = Counter()
        self.collectives: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.names: Counter[tuple[str, str]] = Counter()

    def run_event(self, event: Event, state: State, logger: Logger) -> None:
        """Composer's entry for every event; algorithms have run by then."""
        if event in (Event.BEFORE_DATALOADER, Event.FIT_END, Event.EPOCH_END):
            self._end()
        if event == Event.AFTER_DATALOADER:
            self._start()
            self._modes = [Launches(self), Waits(self)]
            for mode in self._modes:
                mode.__enter__()
        self.part = PARTS.get(event, self.part)

    def _end(self) -> None:
        if not self._modes:
            return
        for mode in reversed(self._modes):
            mode.__exit__(None, None, None)
        self._modes = []
        kinds = {"launches": self.launches, "collectives": self.collectives, "waits": self.waits}
        self.steps.append({kind: dict(found) for kind, found in kinds.items()})
