"""One training step, as ours and as plain Composer make it, on one batch that lies on the device."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import composer.algorithms
import torch
from composer import Trainer
from composer.core import Algorithm, Callback, DataSpec
from composer.devices import Device
from composer.loss import binary_cross_entropy_with_logits, soft_cross_entropy
from composer.models import ComposerModel
from composer.optim import DecoupledSGDW
from composer.utils import reproducibility
from torch import Tensor, nn

from train.config.algorithm import AlgorithmConfig
from train.config.run_config import Config
from train.model import build_model
from train.networks import build_network
from train.optim import OF_GROUPS, build_optimizer, build_scheduler, parameter_groups
from train.process import microbatch_size_of, precision_on, searches_microbatch
from train.signals import listen
from train.step import upstream
from train.step.statistics import StepStatistics
from train.step.trainer import StepTrainer
from train.stopping import BatchWatch
from train.weights.freezing import freeze

CLASSES = 1000
KINDS = ("ours", "composer")
KEPT = ("_validate_precision", "get_precision_context")
"""What plain Composer keeps of ours on a CPU: without these it does not train in bfloat16 there at all."""
_COMPOSERS = {
    place: getattr(*place)
    for place, ours in upstream.replacements().items()
    if getattr(*place) is not ours  # not where somebody has put ours there before
}


@contextlib.contextmanager
def composers_own(device: Device, *, is_on: bool = True) -> Iterator[None]:
    """Have Composer's own functions in a block, in a process where `start_process` has put ours in their place."""
    places = [place for place in upstream.replacements() if is_on and (device.name == "gpu" or place[1] not in KEPT)]
    before = {place: getattr(*place) for place in places}
    for place in places:
        setattr(*place, _COMPOSERS[place])
    try:
        yield
    finally:
        for place, function in before.items():
            setattr(*place, function)


class Batches:
    """An epoch of so many batches, all of them the same one."""

    def __init__(self, batch: tuple[Tensor, Tensor], count: int) -> None:
        self.batch, self.count = batch, count
        self.batch_size = len(batch[1])

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter([self.batch] * self.count)


def one_batch(images: int, px: int, device: torch.device, *, classes: int = CLASSES) -> tuple[Tensor, Tensor]:
    """Return noise, float32 (images, 3, px, px), and labels."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(images, 3, px, px, generator=generator)
    labels = torch.randint(classes, (images,), generator=generator)
    return noise.to(device), labels.to(device)


class PlainClassifier(ComposerModel):
    """torchvision's network and Composer's losses, as a user of Composer writes it."""

    def __init__(self, module: nn.Module, loss: Callable[..., Tensor]) -> None:
        super().__init__()
        self.module, self._loss = module, loss
        self.as_evaluated: list[nn.Module] = []

    def train(self, mode: bool = True) -> "PlainClassifier":
        """Set the layers to training, but for the frozen ones."""
        super().train(mode)
        for layer in self.as_evaluated:
            layer.eval()
        return self

    def forward(self, batch: Any) -> Tensor:
        """Return logits (B, classes)."""
        logits: Tensor = self.module(batch[0])
        return logits

    def loss(self, outputs: Tensor, batch: Any) -> Tensor:
        """Return the mean loss, in nats a sample."""
        return self._loss(outputs, batch[1])

    def get_metrics(self, is_train: bool) -> dict[str, Any]:
        """Return none: only the step counts here."""
        return {}


def trainer_of(
    kind: str,
    cfg: Config,
    spec: DataSpec,
    device: Device,
    *,
    callbacks: Sequence[Callback] = (),
    classes: int = CLASSES,
    is_fused: bool | None = None,
) -> Trainer:
    """Return the recipe's training by a kind of KINDS, without evaluation, checkpoints and loggers.

    Args:
        is_fused: whether our optimizer takes the GPU's way, one fused operation; None: on a GPU.
    """
    reproducibility.seed_all(cfg.seed)
    model = build_model(cfg.model, classes, image_px=cfg.data.crop_size, training_step=cfg.training_step)
    model.as_evaluated = freeze(model.module, cfg.model.freeze, num_classes=classes)
    shared: dict[str, Any] = {
        "train_dataloader": spec,
        "max_duration": cfg.max_duration,
        "schedulers": build_scheduler(cfg.scheduler),
        "progress_bar": False,
        "device": device,
        "precision": precision_on(device, cfg),
        "seed": cfg.seed,
    }
    if kind == "ours":
        statistics = StepStatistics()
        watch = BatchWatch(listen(saves=True), None, statistics, skips=cfg.nonfinite_skips)  # type: ignore[arg-type]  # saves nothing
        return StepTrainer(
            watch=watch,
            gradient_compression=cfg.gradient_compression,
            sizes_px=[cfg.data.crop_size],
            searches_microbatch=searches_microbatch(device, cfg),
            model=model,
            optimizers=build_optimizer(
                model, cfg.optimizer, is_fused=device.name == "gpu" if is_fused is None else is_fused
            ),
            algorithms=cfg.build_algorithms(),
            callbacks=[watch, *callbacks],
            device_train_microbatch_size=microbatch_size_of(cfg),
            **shared,
        )
    plain = plain_model(model, cfg, classes)
    return Trainer(
        model=plain,
        optimizers=plain_optimizer(plain, cfg),
        algorithms=plain_algorithms(cfg),
        callbacks=list(callbacks),
        device_train_microbatch_size="auto" if searches_microbatch(device, cfg) else microbatch_size_of(cfg),
        **shared,
    )


def plain_model(model: nn.Module, cfg: Config, classes: int) -> PlainClassifier:
    """Return a network of its library's own layers with a model's weights."""
    network = build_network(cfg.model.name, classes, image_px=cfg.data.crop_size)
    plain = PlainClassifier(
        network,
        {"cross_entropy": soft_cross_entropy, "binary_cross_entropy": binary_cross_entropy_with_logits}[cfg.model.loss],
    )
    plain.load_state_dict(model.state_dict())
    plain.as_evaluated = freeze(network, cfg.model.freeze, num_classes=classes)
    return plain


def plain_algorithms(cfg: Config) -> list[Algorithm]:
    """Return Composer's own algorithms; of SAM and SWA, which do not resume, those that were mended."""
    mended = (composer.algorithms.SAM, composer.algorithms.SWA)
    built = cfg.build_algorithms()
    wanted = [named for named in cfg.algorithms if not named.runs_in_loader]
    return [
        algorithm if isinstance(algorithm, mended) else _of_composer(named)
        for named, algorithm in zip(wanted, built, strict=True)
    ]


def _of_composer(named: AlgorithmConfig) -> Algorithm:
    algorithm: Algorithm = getattr(composer.algorithms, named.composer_class)(**named.model_dump(exclude={"name"}))
    return algorithm


def plain_optimizer(model: nn.Module, cfg: Config) -> torch.optim.Optimizer:
    """Return Composer's or torch's own, with the recipe's settings."""
    kinds: dict[str, Any] = {"adamw": torch.optim.AdamW, "decoupled_sgdw": DecoupledSGDW, "sgd": torch.optim.SGD}
    settings = cfg.optimizer.model_dump(exclude={"name", *OF_GROUPS})
    optimizer: torch.optim.Optimizer = kinds[cfg.optimizer.name](
        parameter_groups(
            model,
            decay_batchnorm=cfg.optimizer.decay_batchnorm,
            lr=cfg.optimizer.lr,
            layer_decay=cfg.optimizer.layer_decay,
        ),
        **settings,
    )
    return optimizer
