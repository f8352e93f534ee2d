"""`train.main` with BatchNorm frozen: then a batch's gradient is the mean of its samples', however it is spread."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from composer.utils import dist
from torch import nn

import train.main
import train.trainer
from train.model import weights_sha256


def stay(module: nn.Module, mode: bool = True) -> nn.Module:
    """Ignore a call to train()."""
    return module


def main(argv: Sequence[str]) -> int:
    """Run the command, and check at the end that all ranks hold the same weights."""
    trainer: Any = train.trainer
    build_model, models = trainer.build_model, []

    def build_frozen(*args: Any, **named: Any) -> nn.Module:
        model = build_model(*args, **named)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
                module.train = partial(stay, module)  # type: ignore[method-assign,assignment]  # Composer does so
        models.append(model)
        return model

    trainer.build_model = build_frozen
    code = train.main.main(argv)
    hashes = dist.all_gather_object(weights_sha256(models[0]))
    assert hashes == [hashes[0]] * dist.get_world_size(), hashes
    print(f"{len(hashes)} ranks hold the same weights")
    return code
