"""Which weights of a recipe decay, and by how much a step at the peak: as its source's code groups them.

timm's own grouping is compared in tests/examples/test_timms_recipe.py. The others' scripts are in no package; their
rules are written down here, with the place of each. What differs is said in the recipe's head.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn

from train.config.run_config import load_config
from train.model import build_model
from train.optim import build_optimizer

YAMLS = Path(__file__).parents[2] / "yamls"
CLASSES = 1000
Rule = Callable[[nn.Module, str, str], bool]
"""Of a module, its name and a parameter's name in it: whether the parameter decays."""


def all_decay(module: nn.Module, name: str, parameter: str) -> bool:
    """torchvision's references/classification/train.py without --norm-weight-decay; MosaicML's examples."""
    return True


def all_but_norms(module: nn.Module, name: str, parameter: str) -> bool:
    """torchvision's references/classification/utils.py, set_weight_decay with norm_weight_decay 0."""
    return not isinstance(module, nn.BatchNorm2d)


def all_but_those_called_bn(module: nn.Module, name: str, parameter: str) -> bool:
    """ffcv-imagenet's train_imagenet.py, create_optimizer; NVIDIA's image_classification/optimizers.py likewise."""
    return "bn" not in name


def all_but_one_dimension(module: nn.Module, name: str, parameter: str) -> bool:
    """timm's optim/_param_groups.py, param_groups_weight_decay."""
    return getattr(module, parameter).ndim > 1


SHORTCUTS = {f"layer{stage}.0.downsample.1.{name}" for stage in (1, 2, 3, 4) for name in ("weight", "bias")}
SOURCES: dict[str, tuple[Rule, float, set[str]]] = {
    "torchvision-v1": (all_decay, 1e-4, set()),
    "torchvision-v2": (all_but_norms, 2e-5, set()),
    "ffcv-rn50-16": (all_but_those_called_bn, 1e-4, SHORTCUTS),
    "ffcv-rn50-88": (all_but_those_called_bn, 1e-4, SHORTCUTS),
    "nvidia-dle": (all_but_those_called_bn, 1 / 32768, SHORTCUTS),
    "nvidia-dle-250": (all_but_those_called_bn, 1 / 32768, SHORTCUTS),
    "rsb-a1": (all_but_one_dimension, 0.01, {"fc.bias"}),
    "rsb-a2": (all_but_one_dimension, 0.02, {"fc.bias"}),
    "rsb-a3": (all_but_one_dimension, 0.02, {"fc.bias"}),
    "mosaic-baseline": (all_decay, 5e-4, set()),
    "mosaic-mild": (all_decay, 5e-4, set()),
    "mosaic-medium": (all_decay, 5e-4, set()),
    "mosaic-hot": (all_decay, 5e-4, set()),
}
"""Of each recipe its source's rule and weight decay, and what its head says decays in only one of the two."""


def test_every_recipe_of_others_is_here() -> None:
    recipes = {path.stem for path in (YAMLS / "recipes").glob("*.yaml")}
    assert SOURCES.keys() == {name for name in recipes if not name.startswith("imagenette-")}  # these are ours


@pytest.mark.slow
@pytest.mark.parametrize("recipe", SOURCES)
def test_what_decays_is_what_decays_there_but_for_what_its_head_says(recipe: str) -> None:
    decays, weight_decay, differs = SOURCES[recipe]
    cfg = load_config(YAMLS / f"recipes/{recipe}.yaml", ["data.local=x"], check_paths=False)
    model = build_model(cfg.model, CLASSES)
    names = {id(parameter): name for name, parameter in model.module.named_parameters()}
    groups = build_optimizer(model, cfg.optimizer, is_fused=False).param_groups
    ours = {names[id(one)]: group["weight_decay"] for group in groups for one in group["params"]}
    theirs = {
        f"{name}.{parameter}": weight_decay if decays(module, name, parameter) else 0.0
        for name, module in model.module.named_modules()
        for parameter, _ in module.named_parameters(recurse=False)
    }
    assert ours.keys() == theirs.keys() and len(ours) == 161
    assert {name for name in ours if ours[name] != pytest.approx(theirs[name], rel=1e-6)} == differs
