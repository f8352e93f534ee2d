"""What a training step asks of the processor: operations launched, collectives, and waits for the device.

Counts are of operations, not of a machine: they are the same on a CPU, where nobody waits. An operation counts that
does work on the device; views and empty tensors do not. A wait is a call that has to have a number, or a tensor, of the
device on the host (or the other way round, but for numbers that an operation takes as its arguments). What is made of
plain numbers, and of no device, is on the host with a GPU, too: that is neither work nor waited for. `Tensor.to` is not
counted, which on a CPU does not tell which way a tensor goes, nor are calls that wait for the device and read nothing.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from composer.core import Callback, Event, State
from composer.loggers import Logger
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakIdKeyDictionary

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
WRITES_ONLY = ("copy_", "_foreach_copy_", "zero_", "fill_", "_foreach_zero_")
"""Of what these are given first, nothing is read."""


class Counting:
    """Counts what is done between `start` and `stop`, by the part of the step that it is in.

    Attributes:
        part: of the step; whoever runs it says which.
        names: how often each operation and kind of wait, by part.
        outputs: how many numbers each operation has given out, in its first tensor.
        flops: of matrix products and convolutions, a multiplication and an addition being two.
        moved_bytes: what the operations read and write in all, if each tensor is read or written once.
    """

    def __init__(self, part: str = "step") -> None:
        self.part = part
        self.launches: Counter[str] = Counter()
        self.collectives: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.names: Counter[tuple[str, str]] = Counter()
        self.outputs: Counter[str] = Counter()
        self.flops = self.moved_bytes = 0
        self.is_on_host = False
        self._modes: tuple[Any, ...] = (Launches(self), Waits(self))

    def start(self) -> None:
        """Count from here on."""
        for mode in self._modes:
            mode.__enter__()

    def stop(self) -> None:
        """Count no more."""
        for mode in reversed(self._modes):
            mode.__exit__(None, None, None)

    def found(self) -> dict[str, Any]:
        """Return the counts by kind and part, and the work."""
        kinds = {"launches": self.launches, "collectives": self.collectives, "waits": self.waits}
        return {kind: dict(counts) for kind, counts in kinds.items()} | {
            "names": {" ".join(key): count for key, count in self.names.items()},
            "flops": self.flops,
            "moved_bytes": self.moved_bytes,
        }


class WeakIdSet:
    """Tensors by what they are, not by their numbers, as long as they live."""

    def __init__(self) -> None:
        self._tensors: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def __contains__(self, tensor: Tensor) -> bool:
        return tensor in self._tensors

    def add(self, tensor: Tensor) -> None:
        self._tensors[tensor] = True

    def discard(self, tensor: Tensor) -> None:
        self._tensors.pop(tensor, None)


class Launches(TorchDispatchMode):
    """Counts operations that do work, by part of the step."""

    def __init__(self, counts: Counting) -> None:
        TorchDispatchMode.__init__(self)
        self.counts = counts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        namespace, _, name = func._schema.name.partition("::")
        if is_view(func._schema) or name.startswith(NO_WORK) or self.counts.is_on_host:
            return out
        kind = self.counts.collectives if namespace == "c10d" else self.counts.launches
        kind[self.counts.part] += 1
        self.counts.names[self.counts.part, name] += 1
        first = next((leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)), None)
        self.counts.outputs[name] += 0 if first is None else first.numel()
        read = args[1:] if name in WRITES_ONLY else args
        self.counts.moved_bytes += sum(
            leaf.nbytes for leaf in tree_leaves((read, kwargs, out)) if isinstance(leaf, Tensor)
        )
        if func._overloadpacket in flop_registry:
            self.counts.flops += flop_registry[func._overloadpacket](*args, **kwargs, out_val=out)
        return out


class Waits(TorchFunctionMode):
    """Counts what needs the device's answer, by part of the step."""

    def __init__(self, counts: Counting) -> None:
        super().__init__()
        self.counts = counts
        self._on_host = WeakIdSet()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        is_on_host = all(leaf in self._on_host for leaf in tensors) and kwargs.get("device") is None
        if func in WAITS and not is_on_host:
            self.counts.waits[self.counts.part] += 1
            self.counts.names[self.counts.part, f"wait:{WAITS[func]}"] += 1
        self.counts.is_on_host, before = is_on_host, self.counts.is_on_host
        try:
            out = func(*args, **kwargs)
        finally:
            self.counts.is_on_host = before
        self._note(func, out, is_on_host=is_on_host)
        return out

    def _note(self, func: Any, out: Any, *, is_on_host: bool) -> None:
        """Keep in mind whether a tensor is on the host; on a CPU, `to` and `cpu` give the same one back."""
        if isinstance(out, Tensor) and func is Tensor.to:
            self._on_host.discard(out)
        elif isinstance(out, Tensor) and (is_on_host or func is Tensor.cpu):
            self._on_host.add(out)


def is_view(schema: Any) -> bool:
    """Return whether an operation gives another look at its input's memory, and writes nothing."""
    aliases = [out.alias_info for out in schema.returns if out.alias_info is not None]
    return bool(aliases) and not any(alias.is_write for alias in aliases)


FORWARD, LOSS, BACKWARD, OPTIMIZER = "forward", "loss", "backward", "optimizer"
BEFORE, AFTER, END = "before", "after the step", "batch end"
PARTS = {
    Event.AFTER_DATALOADER: BEFORE,
    Event.BEFORE_FORWARD: FORWARD,
    Event.BEFORE_LOSS: LOSS,
    Event.BEFORE_BACKWARD: BACKWARD,
    Event.AFTER_TRAIN_BATCH: OPTIMIZER,
    Event.BATCH_END: END,
}
"""The part of a step that an event begins; AFTER begins at the end of the optimizer's step, which has no event."""
BEFORE_THE_STEP = (BEFORE, FORWARD, LOSS, BACKWARD, OPTIMIZER)
"""Whatever waits in these keeps the GPU from work that the host has yet to launch."""


class Probe:
    """Is told where in a step its training is; this one looks at nothing."""

    def __init__(self) -> None:
        self.seen = 0

    def begin(self, part: str) -> None:
        """A step begins, with that part of it."""

    def go_to(self, part: str) -> None:
        """Another part begins."""

    def end(self) -> None:
        """The host has launched the step."""
        self.seen += 1


class Counts(Probe):
    """Counts each step.

    Attributes:
        steps: for each step that has ended, what `Counting.found` says.
    """

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[dict[str, Any]] = []
        self._counting = Counting()

    def begin(self, part: str) -> None:
        self._counting = Counting(part)
        self._counting.start()

    def go_to(self, part: str) -> None:
        self._counting.part = part

    def end(self) -> None:
        self._counting.stop()
        super().end()
        self.steps.append(self._counting.found())


class StepParts(Callback):
    """Tells a probe where Composer is, in each step from the arrival of a batch to the call for the next one."""

    def __init__(self, probe: Probe) -> None:
        self.probe = probe
        self._is_in_step = False
        self._hooked: set[int] = set()

    def run_event(self, event: Event, state: State, logger: Logger) -> None:
        """Composer's entry for every event; algorithms have run by then."""
        if event in (Event.BEFORE_DATALOADER, Event.FIT_END, Event.EPOCH_END) and self._is_in_step:
            self._is_in_step = False
            self.probe.end()
        if event == Event.AFTER_DATALOADER:
            self._is_in_step = True
            self._hook(state.optimizers)
            self.probe.begin(PARTS[event])
        elif event in PARTS:
            self.probe.go_to(PARTS[event])

    def _hook(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        for optimizer in optimizers:
            if id(optimizer) not in self._hooked:
                self._hooked.add(id(optimizer))
                optimizer.register_step_post_hook(lambda *_: self.probe.go_to(AFTER))
