"""Training loops that others use, on one batch that lies on the device: torchvision's, timm's, one with CUDA graphs.

Each does at a step what its source does, with its waits. Networks are theirs, without BlurPool and averages.
"""

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from benchmarks.step_counts import AFTER, BACKWARD, BEFORE, FORWARD, LOSS, OPTIMIZER, Counts, Probe

LR, MOMENTUM, WEIGHT_DECAY, SMOOTHING = 0.01, 0.9, 1e-4, 0.1  # what they are decides no step's time
DTYPES = {"fp32": None, "amp_bf16": torch.bfloat16, "amp_fp16": torch.float16}
GRAPH_SCALE = 1024.0  # of an fp16 loss; a scaler that changes would have to wait
WARM_UP_OF_A_GRAPH = 3  # docs.pytorch.org, CUDA semantics, "Whole-network capture"


class Contestant(ABC):
    """Something that trains, a step at a time.

    Attributes:
        name: in the tables.
        work: what a step computes and moves, where it cannot be counted while it runs.
    """

    name: str
    work: dict[str, Any] | None = None

    @abstractmethod
    def run(self, steps: int, probe: Probe) -> None:
        """Take so many steps, and tell `probe` where in each one it is."""

    def close(self) -> None:  # noqa: B027  # most hold nothing
        """Give back what it holds, beside its tensors."""


class Loop(Contestant):
    """What the loops share: a network in channels_last, SGD, and a batch.

    Args:
        network: on the CPU, with random weights.
        precision: of DTYPES.
    """

    smoothing = SMOOTHING

    def __init__(self, network: nn.Module, batch: tuple[Tensor, Tensor], precision: str, *, fused: bool = False):
        self.images, self.labels = batch
        self.device = self.images.device
        self.network = network.to(self.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]  # torch's types know no layout beside a device
        self.dtype = DTYPES[precision]
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            self.network = nn.parallel.DistributedDataParallel(self.network)
        # without a GPU torch would loop over the parameters
        self.optimizer = torch.optim.SGD(
            self.network.parameters(),
            lr=LR,
            momentum=MOMENTUM,
            weight_decay=WEIGHT_DECAY,
            foreach=not fused,
            fused=fused,
        )
        self.loss = nn.CrossEntropyLoss(label_smoothing=self.smoothing)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)

    def run(self, steps: int, probe: Probe) -> None:
        for _ in range(steps):
            probe.begin(BEFORE)
            self.step(probe.go_to)
            probe.end()

    @abstractmethod
    def step(self, go_to: Callable[[str], None]) -> None:
        """Take one."""

    def learn(self, loss: Tensor, go_to: Callable[[str], None]) -> None:
        """Take the optimizer's step, with the loss scaled in float16, as both programs do."""
        self.optimizer.zero_grad()
        go_to(BACKWARD)
        self.scaler.scale(loss).backward()
        go_to(OPTIMIZER)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        go_to(AFTER)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None)


class Torchvision(Loop):
    """references/classification/train.py, `train_one_epoch`: three numbers are read back after each step."""

    name = "torchvision"

    def step(self, go_to: Callable[[str], None]) -> None:
        go_to(FORWARD)
        with self.autocast():
            logits = self.network(self.images)
            go_to(LOSS)
            loss = self.loss(logits, self.labels)
        self.learn(loss, go_to)
        self.read(logits, loss)

    def read(self, logits: Tensor, loss: Tensor) -> list[float]:
        """Return the loss, and the shares of images whose label is the first, or among the first five, in percent."""
        with torch.inference_mode():
            best = logits.topk(5, 1, True, True)[1].t()
            correct = best.eq(self.labels[None])
            shares = [correct[:k].flatten().sum(dtype=torch.float32) * (100.0 / len(self.labels)) for k in (1, 5)]
            return [loss.item(), *(share.item() for share in shares)]


class Timm(Loop):
    """timm's train.py, `train_one_epoch`, with --amp and --channels-last: the loss is read back after its forward pass.

    It has it so in a process by itself, and waits for the GPU once more after each step.
    """

    name = "timm"

    def step(self, go_to: Callable[[str], None]) -> None:
        images = self.images.contiguous(memory_format=torch.channels_last)
        go_to(FORWARD)
        with self.autocast():
            logits = self.network(images)
            go_to(LOSS)
            loss = self.loss(logits, self.labels)
        loss.item()
        self.learn(loss, go_to)
        if self.device.type == "cuda":
            torch.cuda.synchronize()


class Graph(Loop):
    """A bare loop whose step is one CUDA graph: what can be had where the host has next to nothing to do."""

    name = "graph"

    def __init__(self, network: nn.Module, batch: tuple[Tensor, Tensor], precision: str):
        super().__init__(network, batch, precision, fused=True)
        self._record()

    def _record(self) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            counts = Counts()
            for _ in range(WARM_UP_OF_A_GRAPH):
                counts.begin("graph")
                self._eager()
                counts.end()
            self.work = counts.steps[-1]
        torch.cuda.current_stream().wait_stream(stream)
        self.optimizer.zero_grad(set_to_none=True)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self._eager()

    def _eager(self) -> None:
        scale = GRAPH_SCALE if self.dtype == torch.float16 else 1.0
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(
            self.device.type, dtype=self.dtype, enabled=self.dtype is not None, cache_enabled=False
        ):  # a cached cast would be of the first replay's weights
            loss = self.loss(self.network(self.images), self.labels)
        (loss * scale).backward()
        if scale != 1.0:
            torch._foreach_div_([parameter.grad for parameter in self.network.parameters()], scale)
        self.optimizer.step()

    def step(self, go_to: Callable[[str], None]) -> None:
        self.graph.replay()

    def close(self) -> None:
        del self.graph


def torchvision_network(name: str, classes: int) -> nn.Module:
    network: nn.Module = getattr(torchvision.models, name)(num_classes=classes, norm_layer=nn.BatchNorm2d)
    return network


def timm_network(name: str, classes: int) -> nn.Module:
    import timm

    network: nn.Module = timm.create_model(name, num_classes=classes)
    return network


def why_not(name: str, device: torch.device, ranks: int, *, quarter: bool) -> str | None:
    """Return why a loop cannot run here, or None."""
    if name == "timm" and quarter:
        return "its networks have all their channels"
    if name == "timm" and importlib.util.find_spec("timm") is None:
        return "it is not installed (pip install timm)"
    if name == "graph" and device.type != "cuda":
        return "CUDA graphs need a GPU"
    if name == "graph" and ranks > 1:
        return "its graph holds one rank's step"
    return None


LOOPS: dict[str, tuple[type[Loop], Callable[[str, int], nn.Module]]] = {
    "torchvision": (Torchvision, torchvision_network),
    "timm": (Timm, timm_network),
    "graph": (Graph, torchvision_network),
}
