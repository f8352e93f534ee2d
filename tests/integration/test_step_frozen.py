"""With frozen parts and learning rates by layer our training step has Composer's bits, too."""

from pathlib import Path

import pytest

from tests.integration.test_step import STEPS, trained

RECIPES = {
    "sgd": ["model.freeze=[stem, layer1, layer2.0.conv1]", "optimizer.layer_decay=0.7"],
    "adamw": [
        *("optimizer.name=adamw", "optimizer.weight_decay=0.05", "optimizer.decay_batchnorm=false"),
        *("model.freeze=[layer3]", "optimizer.layer_decay=0.5", "model.name=resnet50"),
    ],
    "backbone": ["model.freeze=[backbone]", "device_train_microbatch_size=3"],
}
OFTEN = [("sgd", "amp_bf16", 2)]
CASES = [
    pytest.param(recipe, precision, ranks, marks=[] if (recipe, precision, ranks) in OFTEN else pytest.mark.exhaustive)
    for recipe in RECIPES
    for precision in ("fp32", "amp_bf16")
    for ranks in (1, 2)
]


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "precision", "ranks"), CASES)
def test_a_step_has_composers_bits_where_parts_are_frozen(
    recipe: str, precision: str, ranks: int, tmp_path: Path
) -> None:
    overrides = [
        *RECIPES[recipe],
        f"precision={precision}",
        "optimizer.lr=0.01",
        "algorithms=[{name: label_smoothing}]",
    ]
    theirs = trained("composer", STEPS, overrides, tmp_path / "composer", ranks=ranks)
    ours = trained("ours", STEPS, overrides, tmp_path / "ours", ranks=ranks)
    assert len({*ours["losses"]}) > STEPS / 2
    assert ours == theirs
