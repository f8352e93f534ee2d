"""The files in yamls/, and the algorithms they may name."""

import inspect
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from composer.algorithms import EMA
from pydantic import BaseModel

from train.config.algorithm import AlgorithmConfig
from train.config.algorithms import Algorithm
from train.config.augmentations import RandAugment
from train.config.config_file import read_config_tree
from train.config.run_config import Config, load_config
from train.config.sections import DecoupledSGDWConfig

YAMLS = Path(__file__).parents[2] / "yamls"
FILES = sorted(path.relative_to(YAMLS).as_posix() for path in YAMLS.rglob("*.yaml"))
ALGORITHMS: tuple[type[AlgorithmConfig], ...] = get_args(get_args(Algorithm)[0])
OURS = ("", "MixUpOrCutMix")  # none: the loader's alone
COMPOSERS = [config for config in ALGORITHMS if config.composer_class not in OURS]
NEEDED: dict[str, dict[str, Any]] = {
    "gradient_clipping": {"clipping_type": "norm", "clipping_threshold": 1.0},
    "ema": {"half_life": "10ba"},
}


@pytest.mark.parametrize("file", FILES)
def test_every_yaml_loads(file: str) -> None:
    cfg = load_config(YAMLS / file, ["data.local=shards"], check_paths=False)
    assert cfg.run_name == Path(file).stem


@pytest.mark.parametrize("file", ["tiny.yaml", "full.yaml"])
def test_a_yaml_that_names_its_data_needs_no_override(file: str) -> None:
    load_config(YAMLS / file, check_paths=False)


def test_full_yaml_is_the_published_recipe() -> None:
    cfg = load_config(YAMLS / "full.yaml", check_paths=False)
    assert (cfg.max_duration, cfg.global_batch_size, cfg.scheduler.t_warmup) == ("90ep", 2048, "8ep")
    assert isinstance(cfg.optimizer, DecoupledSGDWConfig)
    assert (cfg.optimizer.lr, cfg.optimizer.momentum) == (2.048, 0.875)
    assert (cfg.optimizer.weight_decay, cfg.model.loss) == (5e-4, "binary_cross_entropy")
    assert (cfg.data.crop_size, cfg.data.eval_resize_size, cfg.data.eval_crop_size) == (176, 232, 224)
    assert [algorithm.model_dump(exclude_unset=True) for algorithm in cfg.algorithms] == [
        {"name": "blurpool"},
        {"name": "channels_last"},
        {"name": "label_smoothing", "smoothing": 0.08},
        {
            "name": "progressive_resizing",
            "mode": "decode",
            "initial_scale": 0.5,
            "delay_fraction": 0.4,
            "finetune_fraction": 0.2,
        },
        {"name": "ema", "half_life": "100ba", "update_interval": "20ba"},
    ]


PUBLISHED = {  # epochs, batch, optimizer, lr, decay, BatchNorm decays, schedule, loss, train px, test px
    "torchvision-v1": ("90ep", 256, "sgd", 0.1, 1e-4, True, "steps_with_warmup", "cross_entropy", 224, (256, 224)),
    "nvidia-dle": ("90ep", 2048, "sgd", 2.048, 3.05e-5, False, "cosine_with_warmup", "cross_entropy", 224, (256, 224)),
    "rsb-a1": (
        *("600ep", 2048, "lamb", 5e-3, 0.01, False),
        *("cosine_with_warmup", "binary_cross_entropy", 224, (236, 224)),
    ),
    "rsb-a2": (
        *("300ep", 2048, "lamb", 5e-3, 0.02, False),
        *("cosine_with_warmup", "binary_cross_entropy", 224, (236, 224)),
    ),
    "rsb-a3": (
        *("100ep", 2048, "lamb", 8e-3, 0.02, False),
        *("cosine_with_warmup", "binary_cross_entropy", 160, (236, 224)),
    ),
    "nvidia-dle-250": (
        *("250ep", 2048, "sgd", 2.048, 3.05e-5, False),
        *("cosine_with_warmup", "cross_entropy", 224, (256, 224)),
    ),
    "ffcv-rn50-16": ("16ep", 4096, "sgd", 1.7, 1e-4, False, "linear_with_warmup", "cross_entropy", 192, (293, 256)),
    "ffcv-rn50-88": ("88ep", 4096, "sgd", 1.7, 1e-4, False, "linear_with_warmup", "cross_entropy", 192, (293, 256)),
    "torchvision-v2": (
        *("600ep", 1024, "sgd", 0.5, 2e-5, False),
        *("cosine_with_warmup", "cross_entropy", 176, (232, 224)),
    ),
    "mosaic-baseline": (
        *("90ep", 2048, "decoupled_sgdw", 2.048, 5e-4, True),
        *("cosine_with_warmup", "cross_entropy", 224, (256, 224)),
    ),
} | {
    name: (
        *(epochs, 2048, "decoupled_sgdw", 2.048, 5e-4, True),
        *("cosine_with_warmup", "binary_cross_entropy", 176, (232, 224)),
    )
    for name, epochs in (("mosaic-mild", "36ep"), ("mosaic-medium", "135ep"), ("mosaic-hot", "270ep"))
}


RECIPES = sorted(path.stem for path in (YAMLS / "recipes").iterdir())


@pytest.mark.parametrize("name", [name for name in RECIPES if not name.startswith("imagenette-")])  # these are ours
def test_each_recipe_is_as_published(name: str) -> None:
    cfg = load_config(YAMLS / f"recipes/{name}.yaml", ["data.local=x"], check_paths=False)
    epochs, batch, kind, lr, decay, norms, schedule, loss, train_px, test_px = PUBLISHED[name]
    assert (cfg.max_duration, cfg.global_batch_size, cfg.model.loss) == (epochs, batch, loss)
    assert (cfg.optimizer.name, cfg.optimizer.lr, cfg.optimizer.decay_batchnorm) == (kind, lr, norms)
    assert cfg.optimizer.weight_decay == pytest.approx(decay, rel=1e-3)
    assert (cfg.scheduler.name, cfg.checkpoint.save_folder) == (schedule, f"runs/{name}")
    assert (cfg.data.crop_size, (cfg.data.eval_resize_size, cfg.data.eval_crop_size)) == (train_px, test_px)


@pytest.mark.parametrize("name", RECIPES)
def test_each_recipes_head_says_where_it_is_from_and_what_is_measured(name: str) -> None:
    text = (YAMLS / f"recipes/{name}.yaml").read_text()
    for word in ("command ", "source ", "published ", "measured   "):
        assert f"#   {word}" in text
    assert name.startswith("imagenette-") or "#   measured   not available yet" in text  # of ImageNet nothing is


def test_torchvisions_averages_are_theirs_at_imagenets_steps() -> None:
    """references/classification/train.py: alpha = (1 - decay) * batch * steps / epochs, capped at 1."""
    cfg = load_config(YAMLS / "recipes/torchvision-v2.yaml", ["data.local=x"], check_paths=False)
    (ema,) = (algorithm for algorithm in cfg.build_algorithms() if isinstance(algorithm, EMA))
    assert ema.update_interval.value == 32
    assert ema.smoothing == pytest.approx(1 - (1 - 0.99998) * 1024 * 32 / 600, abs=1e-7)


def test_the_hottest_recipe_has_all_of_mosaicmls_ten() -> None:
    cfg = load_config(YAMLS / "recipes/mosaic-hot.yaml", ["data.local=x"], check_paths=False)
    assert [algorithm.name for algorithm in cfg.algorithms] == [
        *("blurpool", "channels_last", "label_smoothing", "progressive_resizing", "ema", "mixup", "sam", "colout"),
        *("randaugment", "stochastic_depth"),
    ]
    assert [type(algorithm) for algorithm in cfg.per_sample_algorithms] == [RandAugment]


def test_base_yaml_holds_every_key_with_a_comment_and_agrees_with_the_defaults() -> None:
    text = (YAMLS / "base.yaml").read_text()
    base = yaml.safe_load(text)
    cfg = load_config(YAMLS / "base.yaml", ["data.local=x"], check_paths=False)
    assert [key for key in keys_of(cfg) if key not in keys_of(base)] == []
    for section, name, default in defaults_of(cfg):
        plain = list(default) if isinstance(default, tuple) else default  # YAML has lists
        assert (base[section] if section else base)[name] == plain, f"{section}.{name}"
    bare = [line for line in text.split("\n") if line and "#" not in line and not line.endswith(":")]
    assert bare == []


@pytest.mark.parametrize("file", [file for file in FILES if file != "base.yaml"])
def test_a_child_says_only_what_differs_from_its_base(file: str) -> None:
    raw = yaml.safe_load((YAMLS / file).read_text())
    tree = read_config_tree((YAMLS / file).parent / raw.pop("base")).tree
    assert tree is not None
    assert repeated(raw, tree.plain()) == []


@pytest.mark.parametrize("config", COMPOSERS, ids=lambda config: config.__name__)
def test_an_algorithms_fields_and_defaults_are_composers(config: type[AlgorithmConfig]) -> None:
    import composer.algorithms

    accepted = inspect.signature(getattr(composer.algorithms, config.composer_class).__init__).parameters
    fields = {name: field for name, field in config.model_fields.items() if name != "name"}
    assert [name for name in fields if name not in accepted] == []
    differing = {
        name for name, field in fields.items() if not field.is_required() and field.default != accepted[name].default
    }
    # Composer's half_life of 1000ba would have to be unset by whoever gives smoothing; of layers it knows only one.
    own = {"EMA": {"half_life"}, "StochasticDepth": {"target_layer_name"}}
    assert differing == own.get(config.composer_class, set())


@pytest.mark.parametrize("config", COMPOSERS, ids=lambda config: config.__name__)
def test_every_algorithm_builds(config: type[AlgorithmConfig]) -> None:
    name = get_args(config.model_fields["name"].annotation)[0]
    built = config.model_validate({"name": name, **NEEDED.get(name, {})}).build()
    assert type(built).__name__ == config.composer_class


def keys_of(value: Any, prefix: str = "") -> list[str]:
    """Return the dotted keys of a map or section, inner ones included."""
    items = value.items() if isinstance(value, dict) else value if isinstance(value, BaseModel) else ()
    return [key for name, inner in items for key in (f"{prefix}{name}", *keys_of(inner, f"{prefix}{name}."))]


def defaults_of(cfg: Config) -> list[tuple[str, str, Any]]:
    """Return (section, key, default) for each key outside the lists that has a default."""
    sections = {"": cfg, **{name: value for name, value in cfg if isinstance(value, BaseModel)}}
    return [
        (section, name, field.default)
        for section, values in sections.items()
        for name, field in type(values).model_fields.items()
        if not field.is_required()
    ]


def repeated(child: dict[str, Any], base: dict[str, Any], prefix: str = "") -> list[str]:
    """Return the dotted keys whose value in `child` is the one `base` has already."""
    found = []
    for key, value in child.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            found += repeated(value, base[key], f"{prefix}{key}.")
        elif key in base and base[key] == value:
            found.append(f"{prefix}{key}")
    return found
