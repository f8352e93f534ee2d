"""A recipe for ImageNet, shortened for another dataset, by one rule for all of them.

With E epochs of P px in batches of B images:

- the run has E epochs, and every time in the recipe, be it in epochs or in batches, keeps its share of the run;
- every image size is multiplied by P / crop_size: a crop is then the next multiple of 16 px, a ramp's first size one
  of its own steps;
- the learning rate is multiplied by B / global_batch_size, and so is the decay of `decoupled_sgdw`, which is taken once
  a step (`scale_with_batch` would do the same once more, and is turned off).

Everything else stands as the recipe has it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from train.config.algorithms import ResolutionRamp
from train.config.run_config import Config

IMAGENET_TRAIN = 1_281_167  # images


@dataclass(frozen=True)
class Budget:
    """What each run of a comparison may use.

    Attributes:
        train_images: of the dataset.
        epochs: of a run.
        px: edge of a training image.
        batch: images of a step.
        model: as model.name has it.
    """

    train_images: int
    epochs: int
    px: int
    batch: int
    model: str

    @property
    def steps(self) -> int:
        """Of a run; an epoch's last, incomplete batch is left out."""
        return self.epochs * (self.train_images // self.batch)


def shortened(recipe: Config, budget: Budget) -> list[str]:
    """Return the overrides that make of an ImageNet recipe one for this budget.

    Raises:
        ValueError: the recipe's length is not in epochs.
    """
    if not recipe.max_duration.endswith("ep"):
        raise ValueError(f"max_duration: {recipe.max_duration} is not in epochs, so what an epoch of it is is unknown")
    epochs = int(recipe.max_duration[:-2])
    share = budget.steps / (epochs * (IMAGENET_TRAIN // recipe.global_batch_size))
    times = _Times(budget, epochs, share)
    scale, batch = budget.px / recipe.data.crop_size, budget.batch / recipe.global_batch_size
    changes: dict[str, Any] = {
        "max_duration": f"{budget.epochs}ep",
        "eval_interval": f"{budget.epochs}ep",
        "global_batch_size": budget.batch,
        "scale_with_batch": "null",
        "model.name": budget.model,
        "data.crop_size": budget.px,
        "data.eval_crop_size": round(recipe.data.eval_crop_size * scale),
        "data.eval_resize_size": round(recipe.data.eval_resize_size * scale),
        "optimizer.lr": recipe.optimizer.lr * batch,
    }
    if recipe.optimizer.name == "decoupled_sgdw":
        changes["optimizer.weight_decay"] = recipe.optimizer.weight_decay * batch
    for key, value in _leaves({"scheduler": recipe.scheduler.model_dump()}):
        changes |= times.changed(key, value)
    for at, algorithm in enumerate(recipe.algorithms):
        for key, value in _leaves({f"algorithms.{at}": algorithm.model_dump()}):
            changes |= times.changed(key, value)
            if isinstance(algorithm, ResolutionRamp) and key.endswith(".start_px"):
                each = algorithm.size_increment
                changes[key] = max(32, each * round(value * scale / each))
    return [f"{key}={_text(value)}" for key, value in changes.items()]


@dataclass(frozen=True)
class _Times:
    budget: Budget
    epochs: int
    share: float

    def changed(self, key: str, value: Any) -> dict[str, Any]:
        """Return the override of a time, or none where it is no time, or a fraction of the run."""
        if isinstance(value, int) and key.endswith((".start_epoch", ".end_epoch")):
            after = int(key.endswith(".end_epoch"))  # the start, and before the run's end
            return {
                key: min(after + (value - after) * self.budget.epochs // self.epochs, self.budget.epochs - 2 + after)
            }
        if not isinstance(value, str) or value[-2:] not in ("ep", "ba") or not value[:-2].isdigit():
            return {}
        if value.endswith("ba"):
            return {key: f"{max(1, round(int(value[:-2]) * self.share))}ba"}
        of_run = int(value[:-2]) / self.epochs
        if ".swa_" in key:
            return {key: f"{of_run:.4f}dur"}
        return {key: f"{round(of_run * self.budget.steps)}ba"}


def _leaves(tree: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves({f"{key}.{name}": below for name, below in value.items()})
        elif isinstance(value, (list, tuple)):
            yield from ((f"{key}.{at}", below) for at, below in enumerate(value))
        else:
            yield key, value


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
