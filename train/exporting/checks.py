"""Does each exported file say the same as the checkpoint, of real images?"""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from composer.core.precision import Precision, get_precision_context
from torch import Tensor, nn
from tqdm import tqdm

from imagestream.data.dataset import IGNORED_LABEL
from imagestream.loader import Loader
from train.exporting.files import LOGITS, MODEL_NAME, PIXELS, quiet
from train.model import ImageClassifier, best_classes

LOGIT_BOUND = 1e-4
"""How far logits may lie apart, of the largest one's size: other kernels add in another order."""
FOLDED_BOUND = 0.02
"""The same where stochastic depth is multiplied into weights, which rounds them, and 16 bits may round what follows."""
GRAPH_BATCH = 32
FEW = (1, 3)  # images of the first batches that a graph is given: it was made with 2


class ExportError(RuntimeError):
    """An exported file says something else than the checkpoint; nothing is left of it."""


@dataclass(frozen=True)
class Figures:
    """What an evaluation counts."""

    hits: int
    hits5: int
    loss: float
    samples: int

    @property
    def top1(self) -> float:
        return self.hits / self.samples

    @property
    def top5(self) -> float:
        return self.hits5 / self.samples


@dataclass(frozen=True)
class Evaluated:
    """A split as the exported network sees it.

    Attributes:
        figures: of all samples.
        pixels: of the first ones: uint8 (N, 3, crop, crop).
        logits: the exported network's of them, in float32 on the CPU: (N, classes).
    """

    figures: Figures
    pixels: Tensor
    logits: Tensor


@dataclass(frozen=True)
class Agreement:
    """How near logits are to the checkpoint's.

    Attributes:
        images: over which they were compared.
        largest_difference: of a logit.
        ties: images of which another class comes first, since the two first are as good as equal.
    """

    images: int
    largest_difference: float
    ties: int

    def with_more(self, other: "Agreement") -> "Agreement":
        """Return both together."""
        largest = max(self.largest_difference, other.largest_difference)
        return Agreement(self.images + other.images, largest, self.ties + other.ties)


def loaded(folder: Path) -> nn.Module:
    """Return the network that the folder's own model.py loads."""
    network: nn.Module = _module_of(folder / MODEL_NAME).load(folder)
    return network


def _module_of(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("exported_model", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # torch.export in 2.7 looks the layers' module up by its name
    spec.loader.exec_module(module)
    return module


def evaluate_both(
    reference: ImageClassifier,
    network: nn.Module,
    loader: Loader,
    precision: Precision,
    statistics: tuple[Any, Any],
    *,
    keep: int,
    bound: float,
) -> Evaluated:
    """Evaluate the checkpoint's network and the exported one side by side, over the whole split.

    Args:
        statistics: mean and std by which the loader has normalised the pixels.
        keep: of how many images the pixels and logits are returned.
        bound: how far logits may lie apart, of the largest one's size; 0: not at all, and so have the same figures.

    Raises:
        ExportError: they differ on a sample.
    """
    device = next(reference.parameters()).device
    exported = ImageClassifier(_like(network, reference.module, device), reference.loss_name).eval()
    reference.eval()
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in statistics)
    kept: list[Tensor] = []
    for metric in (*reference.metrics.values(), *exported.metrics.values()):
        metric.reset()
        metric.to(device)
    with torch.no_grad():
        for images, labels in tqdm(loader, desc="evaluating", unit="batch", disable=None, leave=False):
            with get_precision_context(precision):
                expected, found = (model.eval_forward((images, labels)) for model in (reference, exported))
            real = labels != IGNORED_LABEL
            compare(expected[real], found[real], what="model.safetensors", bound=bound)
            for model, logits in ((reference, expected), (exported, found)):
                for metric in model.metrics.values():
                    model.update_metric((images, labels), logits, metric)
            if sum(map(len, kept)) < keep:
                kept.append((images[real] * std + mean).round().to(torch.uint8).cpu())
    theirs, ours = _figures(reference), _figures(exported)
    if theirs != ours and bound == 0:  # logits that may lie apart give other figures
        raise ExportError(f"model.safetensors: {ours} where the checkpoint has {theirs}")
    pixels = torch.cat(kept)[:keep]
    return Evaluated(ours, pixels, torch.cat(list(_logits_of(network.cpu().float(), pixels, statistics))))


def _like(network: nn.Module, reference: nn.Module, device: torch.device) -> nn.Module:
    """Return the network on a device, its tensors laid out as the reference's, by which kernels are chosen."""
    forms = {name: tensor for name, tensor in reference.state_dict().items() if tensor.dim() == 4}
    is_last = any(t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous() for t in forms.values())
    network = network.to(device)
    return network.to(memory_format=torch.channels_last if is_last else torch.contiguous_format)


def _figures(model: ImageClassifier) -> Figures:
    metrics = model.metrics
    return Figures(
        hits=int(metrics["top1"].correct),
        hits5=int(metrics["top5"].correct),
        loss=metrics["loss"].compute().item(),
        samples=int(metrics["samples"].compute()),
    )


def _logits_of(network: nn.Module, pixels: Tensor, statistics: tuple[Any, Any]) -> Iterator[Tensor]:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in statistics)
    with torch.no_grad():
        for part in pixels.split(GRAPH_BATCH):
            yield network((part.float() - mean) / std)


def check_graph(kind: str, path: Path, evaluated: Evaluated) -> Agreement:
    """Run an exported graph over the kept images.

    Raises:
        ExportError: a logit lies further away than LOGIT_BOUND.
    """
    run = RUNNERS[kind](path)
    sizes = [*FEW, *[GRAPH_BATCH] * (len(evaluated.pixels) // GRAPH_BATCH + 1)]
    total, begin = Agreement(0, 0.0, 0), 0
    progress = tqdm(total=len(evaluated.pixels), desc=path.name, unit="image", disable=None, leave=False)
    for size in sizes:
        part = evaluated.pixels[begin : begin + size]
        if len(part):
            found, expected = run(part), evaluated.logits[begin : begin + size]
            total = total.with_more(compare(expected, found, what=path.name, bound=LOGIT_BOUND))
            progress.update(len(part))
        begin += size
    progress.close()
    return total


def compare(expected: Tensor, found: Tensor, *, what: str, bound: float) -> Agreement:
    """Return how far logits lie apart.

    Raises:
        ExportError: further than `bound` times the largest logit. So where another class comes first, the two first lie
            within twice that.
    """
    if expected.shape != found.shape:
        raise ExportError(f"{what} gives logits {tuple(found.shape)}, the checkpoint {tuple(expected.shape)}")
    if not len(expected):
        return Agreement(0, 0.0, 0)
    expected, found = expected.float(), found.float()
    largest = float((expected - found).abs().max())
    allowed = bound * max(1.0, float(expected.abs().max()))
    if not largest <= allowed:  # nan is neither
        raise ExportError(f"{what}: a logit is {largest:.3g} away from the checkpoint's, and {allowed:.3g} is allowed")
    first, other = (best_classes(logits)[:, 0] for logits in (expected, found))
    return Agreement(len(expected), largest, int((first != other).sum()))


def _torchscript(path: Path) -> Callable[[Tensor], Tensor]:
    with quiet():
        return _without_gradients(torch.jit.load(str(path)))


def _torch_export(path: Path) -> Callable[[Tensor], Tensor]:
    return _without_gradients(torch.export.load(path).module())


def _onnx(path: Path) -> Callable[[Tensor], Tensor]:
    import onnx
    import onnxruntime

    onnx.checker.check_model(str(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda pixels: torch.from_numpy(session.run([LOGITS], {PIXELS: pixels.numpy()})[0])


def _without_gradients(module: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def run(pixels: Tensor) -> Tensor:
        with torch.no_grad():
            return module(pixels)

    return run


RUNNERS: dict[str, Callable[[Path], Callable[[Tensor], Tensor]]] = {
    "torchscript": _torchscript,
    "torch_export": _torch_export,
    "onnx": _onnx,
}
