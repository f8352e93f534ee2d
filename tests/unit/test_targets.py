"""Targets of a mixed image as timm's BinaryCrossEntropy takes them."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from train.config.run_config import ConfigError, load_config
from train.model import build_model

BASE = Path(__file__).parents[2] / "yamls/base.yaml"
BCE = "model.loss=binary_cross_entropy"


def test_a_target_above_the_threshold_counts_as_there() -> None:
    """timm/loss/binary_cross_entropy.py: target.gt(target_threshold), the mean over images and classes."""
    given = ["data.local=x", "model.name=resnet18", BCE, "model.target_threshold=0.2"]
    model = build_model(load_config(BASE, given, check_paths=False).model, 4)
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    mixed = torch.tensor([[0.7, 0.3, 0, 0], [0.9, 0, 0.1, 0], [0, 0, 0, 1]])
    certain = torch.tensor([[1.0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
    theirs = functional.binary_cross_entropy_with_logits(logits, certain)
    assert model.loss(logits, (logits, mixed)).item() == pytest.approx(4 * theirs.item(), rel=1e-6)
    indices = torch.tensor([0, 3, 1])
    plain = functional.binary_cross_entropy_with_logits(logits, functional.one_hot(indices, 4).float())
    assert model.loss(logits, (logits, indices)).item() == pytest.approx(4 * plain.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["model.target_threshold=0.2"], "model.target_threshold: 0.2 is for loss: binary_cross_entropy; give null"),
        (
            [BCE, "model.target_threshold=0.2", "algorithms=[{name: label_smoothing}]"],
            "algorithms.0.name: 'label_smoothing' does nothing with model.target_threshold",
        ),
        ([BCE, "model.target_threshold=1"], "model.target_threshold: 1 must be"),
    ],
)
def test_a_threshold_that_does_nothing_or_harm_is_refused(given: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_config(BASE, ["data.local=x", *given], check_paths=False)
