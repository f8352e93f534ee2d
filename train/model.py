"""Networks as Composer models, and the exact evaluation figures."""

import math
from collections.abc import Callable
from typing import Any

import torch
from composer.loss import binary_cross_entropy_with_logits
from composer.loss.utils import ensure_targets_one_hot
from composer.models import ComposerModel
from composer.models.initializers import Initializer
from torch import Tensor, nn
from torchmetrics import Metric
from torchvision.models.resnet import BasicBlock, Bottleneck

from imagestream.data.dataset import IGNORED_LABEL
from train.config.model import ModelConfig
from train.networks import PX, build_network, count_together
from train.step.compiling import compiled
from train.step.graphs import RecordedStages
from train.step.network import LayersTogether
from train.step.upstream import soft_cross_entropy
from train.weights.reading import tensors_sha256

LOSSES = {"cross_entropy": soft_cross_entropy, "binary_cross_entropy": binary_cross_entropy_with_logits}


MOST_RANKS = 5  # the largest k of the figures
LOSS_UNIT = 2.0**-24
"""Losses are rounded to multiples of this, in nats: float64 then adds 2**29 nats of them without rounding, so that the
sum is the same in any order and for any number of ranks. It is finer than float32 is from a loss of 1 on."""

EVAL_PASS = {"cpu": 32, "cuda": 128}
"""Images in each forward pass of an evaluation, whatever its batch size. A GPU is done with fewer before the processor
has launched the next pass; of a CPU more would only take memory."""


def best_classes(logits: Tensor) -> Tensor:
    """Return int64 (B, 5), or as many columns as there are classes: the classes by descending logit."""
    return logits.topk(min(MOST_RANKS, logits.shape[1]), dim=1).indices


def sample_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Return float64 (B,): cross-entropy in nats, a multiple of LOSS_UNIT; 0 where the label is IGNORED_LABEL."""
    losses = nn.functional.cross_entropy(logits.float(), labels, ignore_index=IGNORED_LABEL, reduction="none")
    return (losses.double() / LOSS_UNIT).round() * LOSS_UNIT


class TopK(Metric):
    """Share of samples whose label is among the k highest logits; an exact count, whatever the batches and ranks."""

    full_state_update = False

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k
        self.add_state("correct", torch.tensor(0, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch. logits: (B, classes); labels: int64 (B,), IGNORED_LABEL ones left out."""
        best = best_classes(logits)[:, : self.k]  # of one search, so that top-1 is the first of top-5 where logits tie
        self.correct += (best == labels.unsqueeze(1)).any(dim=1).sum()
        self.total += (labels != IGNORED_LABEL).sum()

    def compute(self) -> Tensor:
        """Return the share as float64, 0-1."""
        return self.correct.double() / self.total


class MeanLoss(Metric):
    """Cross-entropy in nats a sample, summed exactly (plain cross-entropy, whatever loss the training uses)."""

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("loss", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch. logits: (B, classes); labels: int64 (B,), IGNORED_LABEL ones left out."""
        self.loss += sample_losses(logits, labels).sum()
        self.total += (labels != IGNORED_LABEL).sum()

    def compute(self) -> Tensor:
        """Return the mean as float64."""
        return self.loss / self.total


class SampleCount(Metric):
    """How many samples were evaluated, over all ranks."""

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch's labels that are not IGNORED_LABEL."""
        self.total += (labels != IGNORED_LABEL).sum()

    def compute(self) -> Tensor:
        """Return the count, int64."""
        return self.total


class ImageClassifier(ComposerModel):
    """A network, its training loss and its evaluation metrics.

    Batches are (images float32 (B, 3, H, W), labels); labels are int64 (B,) or, after MixUp and its like, (B, classes).
    """

    def __init__(self, module: nn.Module, loss: str) -> None:
        super().__init__()
        self.module = module
        self.loss_name = loss
        self.num_classes: int | None = None  # that it tells apart
        self.among: Tensor | None = None  # bool (classes,): in an evaluation, those that may be predicted
        self.target_threshold: float | None = None  # above it a mixed target is 1, else 0 (arXiv:2110.00476, section 3)
        self.averages_mirrored = False  # in an evaluation, a sample's logits with those of its mirror image
        self.has_unused_layers = False  # of some training steps: StochasticDepth leaves out whole blocks
        self.as_evaluated: list[nn.Module] = []  # layers that are frozen: see train.weights.freezing
        self.training_step = "eager"  # or another of Config.training_step; an evaluation is always eager
        self._layers: LayersTogether | None = None
        self._trained: Callable[[Tensor], Tensor]
        self.metrics: dict[str, Metric] = {
            "top1": TopK(1),
            "top5": TopK(5),
            "loss": MeanLoss(),
            "samples": SampleCount(),
        }

    def train(self, mode: bool = True) -> "ImageClassifier":
        """Set the layers to training, but for the frozen ones."""
        super().train(mode)
        for layer in self.as_evaluated:
            layer.eval()
        return self

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return logits (B, classes)."""
        if not self.training:
            logits: Tensor = self.module(batch[0])
            return logits
        if self._layers is None:  # not before: algorithms change the layers
            is_eager = self.training_step == "eager"
            self._layers = LayersTogether(
                self.module,
                casts_weights=is_eager and not self.has_unused_layers,
                is_recorded=self.training_step == "cuda_graphs",
            )
            self._trained = trained_by(self.training_step, self.module)
        with self._layers.forward(batch[0].device):
            return self._trained(batch[0])

    def eval_forward(self, batch: tuple[Tensor, Tensor], outputs: Tensor | None = None) -> Tensor:
        """Return logits (B, classes), worked out so many images at a time as EVAL_PASS says.

        Kernels add in another order for other batch sizes; so a sample's logits depend on nothing but the sample.
        """
        if outputs is not None:
            return outputs
        count, size = len(batch[0]), EVAL_PASS[batch[0].device.type]
        images = nn.functional.pad(batch[0], (0,) * 7 + (-count % size,))  # black ones after the last
        return torch.cat([self._eval_logits(part, batch[1]) for part in torch.split(images, size)])[:count]

    def _eval_logits(self, images: Tensor, labels: Tensor) -> Tensor:
        logits = self.forward((images, labels))
        if self.averages_mirrored:
            logits = (logits + self.forward((images.flip(-1), labels))) / 2
        if self.among is None:
            return logits
        return logits.masked_fill(~self.among.to(logits.device), -torch.inf)

    def loss(self, outputs: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the mean loss of the batch, in nats a sample."""
        targets = batch[1]
        if self.target_threshold is not None:
            targets = (ensure_targets_one_hot(outputs, targets) > self.target_threshold).to(outputs.dtype)
        return LOSSES[self.loss_name](outputs, targets)

    def get_metrics(self, is_train: bool) -> dict[str, Metric]:
        """Return evaluation's metrics; none for training, where they would synchronise the ranks at each step."""
        return {} if is_train else self.metrics

    def update_metric(self, batch: tuple[Tensor, Tensor], outputs: Tensor, metric: Metric) -> None:
        """Add a batch to one metric."""
        metric.update(outputs, batch[1])


def trained_by(training_step: str, network: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return the network's forward pass in training, by Config.training_step."""
    if training_step == "compile":
        return compiled(network)
    return RecordedStages(network).forward if training_step == "cuda_graphs" else network.forward


def build_model(
    cfg: ModelConfig,
    num_classes: int,
    *,
    image_px: int = PX,
    training_step: str = "eager",
    syncs_batchnorm: bool = False,
) -> ImageClassifier:
    """Return a freshly initialised network; torch's global generator decides the weights, so seed it first.

    `init: mosaic` is MosaicML's recipe (Composer's ResNet example): Kaiming-normal (fan in) convolutions and linear
    layers, BatchNorm weights from U[0, 1], and with binary cross-entropy a last bias of -log(classes), so that the
    first predictions are 1 / classes.

    Args:
        image_px: the edge of all images, for networks that take one size alone.
        syncs_batchnorm: whether BatchNorm is torch's over all GPUs, whose layers count their batches themselves.
    """
    module = build_network(cfg.name, num_classes, image_px=image_px)
    count_together(module)
    if cfg.init == "mosaic":
        initializers = [Initializer.KAIMING_NORMAL, Initializer.BN_UNIFORM]
        if cfg.loss == "binary_cross_entropy":
            initializers.append(Initializer.LINEAR_LOG_CONSTANT_BIAS)
        for initializer in initializers:
            module.apply(initializer.get_initializer())
    if cfg.zero_init_last_gamma:  # after all that draw it
        zero_last_gammas(module)
    if syncs_batchnorm:
        module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
    model = ImageClassifier(module, cfg.loss)
    model.num_classes = num_classes
    model.target_threshold = cfg.target_threshold
    model.training_step = training_step
    return model


def zero_last_gammas(network: nn.Module) -> None:
    """Let each residual block begin as the identity: its last BatchNorm's weight is zero.

    Goyal et al. 2017 (arXiv:1706.02677, section 5.1); torchvision's `zero_init_residual`.
    """
    for block in network.modules():
        if isinstance(block, (BasicBlock, Bottleneck)):
            last = block.bn3 if isinstance(block, Bottleneck) else block.bn2
            nn.init.zeros_(last.weight)


def weights_sha256(model: nn.Module) -> str:
    """Return the SHA-256 (hex) over all parameters and buffers, in order of their names.

    Each tensor counts with its name, dtype, shape and bytes, so equal hashes mean `torch.equal` throughout. The
    wrapper that DistributedDataParallel puts around a model does not change it.
    """
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    return tensors_sha256(tensors_of(model))


def tensors_of(model: nn.Module) -> dict[str, Any]:
    """Return the model's own tensors by name, leaving out the metrics' counters."""
    return {name: value for name, value in model.state_dict().items() if name.startswith("module.")}


def parameter_count(model: nn.Module) -> int:
    """Return the number of trainable scalars."""
    return sum(math.prod(p.shape) for p in model.parameters() if p.requires_grad)
