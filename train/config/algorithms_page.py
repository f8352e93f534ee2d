"""Write docs/algorithms.md, which lists every algorithm with its arguments, out of their sections.

    python -m train.config.algorithms_page

A test holds the page equal to what this writes.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from train.config.algorithm import AlgorithmConfig
from train.config.algorithms import Algorithm
from train.config.config_file import describe

BOUNDS = {"gt": "above {}", "ge": "from {}", "lt": "below {}", "le": "at most {}"}
PAGE = Path(__file__).resolve().parents[2] / "docs/algorithms.md"
CLASSES: dict[str, type[AlgorithmConfig]] = {
    get_args(kind.model_fields["name"].annotation)[0]: kind for kind in get_args(get_args(Algorithm)[0])
}
GROUPS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "Changed images": (
        "The loader's workers change each image by itself, in the order of the list, after crop and mirror.",
        (
            *("randaugment", "torchvision_randaugment", "timm_randaugment", "trivial_augment", "auto_augment"),
            *("augmix", "three_augment", "color_jitter", "random_erasing"),
        ),
    ),
    "Image sizes": (
        "At most one of them. Small images train faster; the largest have `data.crop_size`.",
        ("progressive_resizing", "resolution_ramp"),
    ),
    "Changed batches": (
        "On the device. Of the first three at most one, since two would mix each batch twice.",
        ("mixup", "cutmix", "mixup_or_cutmix", "cutout", "colout", "label_smoothing"),
    ),
    "The network": (
        "`blurpool` and `squeeze_excite` change its layers, so its weights fit a network with the same ones only.",
        ("blurpool", "squeeze_excite", "stochastic_depth", "channels_last"),
    ),
    "Gradients and weights": (
        "At most one of `ema` and `swa`, since only one average can be kept.",
        ("gradient_clipping", "sam", "ema", "swa"),
    ),
}
HEAD = """\
# Algorithms

What may stand under `algorithms` in a run's YAML, each at most once:

```yaml
algorithms:
  - name: blurpool
  - name: label_smoothing
    smoothing: 0.1
```

An argument that is left out has its default. The list replaces the one of the file that `base` names. On the command
line `algorithms.1.smoothing=0.2` changes one argument, and `'algorithms=[{name: ema, half_life: 100ba}]'` gives a new
list. What does not go together, or does nothing in the network that was chosen, is refused before the run begins. A run
resumes exactly with each of them. Where nothing else is said, they are Composer's, with its defaults.

(This page is written by `python -m train.config.algorithms_page`.)
"""


def main() -> int:
    """Write the page."""
    PAGE.write_text(page())
    return 0


def page() -> str:
    """Return the page's text."""
    parts = [HEAD]
    for title, (words, names) in GROUPS.items():
        parts += [f"\n## {title}\n\n{words}\n", *(entry for name in names for entry in entry_of(name))]
    return "".join(parts)


def entry_of(name: str) -> Iterator[str]:
    """Yield the lines on one algorithm."""
    kind = CLASSES[name]
    yield f"\n### {name}\n\n{inspect.getdoc(kind)}\n"
    own = [key for key in kind.__annotations__ if key in kind.model_fields]
    keys = [key for key in (*own, *(key for key in kind.model_fields if key not in own)) if key != "name"]
    if keys:
        yield "\n| argument | default | allowed | what it is |\n|---|---|---|---|\n"
    for key in keys:
        field = kind.model_fields[key]
        default = "must be given" if field.is_required() else f"`{describe(plain(field.default))}`"
        yield f"| `{key}` | {default} | {allowed(field)} | {field.description} |\n"


def plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def allowed(field: FieldInfo) -> str:
    """Return in words what a field takes."""
    if get_origin(field.annotation) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(field.annotation))
    if field.annotation is bool:
        return "`true`, `false`"
    limits = {name: f"{getattr(one, name):,g}" for one in field.metadata for name in BOUNDS if hasattr(one, name)}
    if limits:
        return ", ".join(BOUNDS[name].format(limits[name]) for name in BOUNDS if name in limits)
    return "two numbers" if get_origin(field.annotation) is tuple else "a time"


if __name__ == "__main__":
    raise SystemExit(main())
