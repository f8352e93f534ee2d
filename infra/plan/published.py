"""How well infra/plan/speed.py agrees with published runs, to which none of its figures were fitted.

    python infra/plan/published.py

docs/cloud.md has the table that this prints; a test compares the two.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

# Started as a script, Python puts this file's own folder on the path; the packages are two above.
_HERE = Path(__file__).resolve().parent
if Path(sys.path[0] or ".").resolve() == _HERE:
    sys.path[0] = str(_HERE.parents[1])

from infra.plan.dataset import TRAIN_IMAGES, VAL_IMAGES, imagenet
from infra.plan.machines import Machine, machine, read_table
from infra.plan.plan import CORE_IMAGES_PER_SEC, pixels_over_the_run, recipe_of
from infra.plan.speed import BLURPOOL_COST, COMPOSERS_LAUNCHES, Prediction, Recipe, Storage, predict
from train.config.run_config import load_config

YAMLS = _HERE.parents[1] / "yamls"
FULL = str(YAMLS / "full.yaml")
STATED_ERROR = 0.15
"""The error, as a fraction, within which the predictions of GPU-bound runs below are; what others get may vary more."""


@dataclass(frozen=True)
class Check:
    """One published figure and what the model says."""

    what: str
    unit: str
    published: float
    predicted: float

    @property
    def error(self) -> float:
        return self.predicted / self.published - 1


def checks() -> list[Check]:
    """All of them."""
    return [
        Check("NVIDIA DLE, 8x A100 80 GB, AMP, 224 px", "images/s", 16_621, _nvidia("A100-80GB-nvidia")),
        Check("NVIDIA DLE, 8x A100 80 GB, TF32, 224 px", "images/s", 7_248, _nvidia("A100-80GB-nvidia-tf32")),
        Check("FFCV rn50, 8x A100 40 GB, 160 to 192 px", "images/s", 23_000, _ffcv().images_per_sec),
        Check("Mosaic mild, 8x A100, 36 epochs, 88 to 176 px", "min", 27, _mosaic_mild().total_s / 60),
        Check("Facebook, 32 x 8 P100, 50 Gbit/s, one hour", "images/s", 90 * TRAIN_IMAGES / 3600, _facebook()),
    ]


def table() -> list[str]:
    """The table as Markdown."""
    rows = [
        f"| {check.what} | {check.published:,.0f} {check.unit} | {check.predicted:,.0f} {check.unit} | "
        f"{100 * check.error:+.0f} % |"
        for check in checks()
    ]
    return ["| run | published | predicted | error |", "|---|---|---|---|", *rows]


RECIPES = {
    "224 px throughout (torchvision, NVIDIA)": (
        ["algorithms=[]", "data.crop_size=224"],
        CORE_IMAGES_PER_SEC["original"],
    ),
    "full.yaml: 88 to 176 px (Mosaic mild)": ([], CORE_IMAGES_PER_SEC["original"]),
    "the same with a loader of 212 images/s a core": ([], 212.0),
}
"""Overrides of yamls/full.yaml, and what the loader gives on a core: ours, MosaicML's (docs/performance.md)."""
NODES = (1, 2, 4, 8)


def bindings() -> list[str]:
    """A Markdown table: images/s and what binds, by recipe, machine and number of nodes."""
    lines = ["| recipe | machine | " + " | ".join(f"{n} node{'s' * (n > 1)}" for n in NODES) + " |", "|---" * 6 + "|"]
    for recipe_name, (overrides, core_rate) in RECIPES.items():
        recipe = recipe_of(load_config(FULL, overrides, check_paths=False), imagenet("original"))
        for name in ("p4d.24xlarge", "p5.48xlarge", "g5.48xlarge", "g6.48xlarge"):
            cells = [predict(machine(name), n, recipe, Storage("s3"), core_rate) for n in NODES]
            shown = " | ".join(f"{cell.images_per_sec:,.0f} {cell.binding}" for cell in cells)
            lines.append(f"| {recipe_name} | {name} | {shown} |")
    return lines


def _recipe(pixels: Sequence[int], *, epochs: float, batch: int, evaluations: int, gpu_cost: float = 1.0) -> Recipe:
    return Recipe(
        train_images=TRAIN_IMAGES,
        val_images=VAL_IMAGES,
        bytes_per_image=113.1e3,
        epochs=epochs,
        global_batch_size=batch,
        pixels=tuple(pixels),
        eval_px=224,
        evaluations=evaluations,
        gpu_cost=gpu_cost,
    )


def _run(on: Machine, nodes: int, recipe: Recipe) -> Prediction:
    return predict(on, nodes, recipe, Storage("nvme"), CORE_IMAGES_PER_SEC["original"])


def _box(gpu_images_per_sec: float, network_gbit: float = 100, vcpus: int = 256) -> Machine:
    """A machine of eight GPUs that is none of EC2's."""
    return Machine("box", "", 8, vcpus, network_gbit, False, 20_000, 20, 0, 0, gpu_images_per_sec)


def _nvidia(gpu: str) -> float:
    """Their AMP run has 256 images a GPU; only the GPU counts, since DALI keeps up there."""
    rate = read_table()["gpus"][gpu]["nvidia"]
    return _run(_box(rate), 1, _recipe([224], epochs=90, batch=2048, evaluations=90)).images_per_sec


def _ffcv() -> Prediction:
    """yamls/recipes/ffcv-rn50-88.yaml is that recipe: 160 px to the 65th epoch, 192 from the 76th; with BlurPool."""
    cfg = load_config(YAMLS / "recipes/ffcv-rn50-88.yaml", ["data.local=SHARDS"], check_paths=False)
    recipe = _recipe(pixels_over_the_run(cfg, 88), epochs=88, batch=4096, evaluations=1, gpu_cost=BLURPOOL_COST)
    return _run(machine("p4d.24xlarge"), 1, recipe)


def _mosaic_mild() -> Prediction:
    """The time is that of the whole run, with its 36 evaluations, by plain Composer."""
    cfg = load_config(YAMLS / "recipes/mosaic-mild.yaml", ["data.local=SHARDS"], check_paths=False)
    pixels = pixels_over_the_run(cfg, 36)
    recipe = _recipe(pixels, epochs=36, batch=2048, evaluations=36, gpu_cost=BLURPOOL_COST)
    return _run(machine("p4d.24xlarge"), 1, replace(recipe, launches=COMPOSERS_LAUNCHES))


def _facebook() -> float:
    """arXiv:1706.02677: 256 GPUs in an hour; one machine of eight takes 29 hours, which gives the GPU's speed."""
    rate = 90 * TRAIN_IMAGES / (29 * 3600) / 8
    recipe = _recipe([224], epochs=90, batch=8192, evaluations=1)
    return _run(_box(rate, network_gbit=50), 32, recipe).images_per_sec


if __name__ == "__main__":
    print("\n".join([*table(), "", *bindings()]))
