"""What a run will take: images/s, hours, dollars, and what holds it back.

    python infra/plan/plan.py yamls/full.yaml --instance p4d.24xlarge --nodes 4 [key.path=value ...]

The arithmetic is infra/plan/speed.py, the machines and prices are infra/plan/machines.yaml; docs/cloud.md says how well
both agree with published runs. Give what you measured to have better than estimates: --core-images-per-sec or
--loader-json for the loader, --gpu-images-per-sec or --measured for the GPUs.
"""

import argparse
import contextlib
import dataclasses
import json
import math
import re
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

# Started as a script, Python puts this file's own folder on the path; the packages are two above.
_HERE = Path(__file__).resolve().parent
if Path(sys.path[0] or ".").resolve() == _HERE:
    sys.path[0] = str(_HERE.parents[1])

from imagestream.mds.index import DataError
from infra.plan.arguments import positive, whole_number
from infra.plan.dataset import KB_PER_IMAGE, Dataset, dataset_of
from infra.plan.fsx import MB_PER_SEC_PER_TIB, fsx_usd_per_hour
from infra.plan.machines import (
    Machine,
    PricesFileError,
    UnknownMachineError,
    machine,
    no_price,
    price_warnings,
    read_table,
)
from infra.plan.networks import network_of
from infra.plan.speed import BLURPOOL_COST, REFERENCE_PX, Prediction, Recipe, Storage, predict, with_batch
from infra.plan.torch_code import installed_torch, torch_problem
from train.config.algorithms import SizeSchedule
from train.config.run_config import Config, ConfigError, load_config

EXIT_REFUSED = 2

# What the whole loader gave on one core by docs/performance.md.
CORE_IMAGES_PER_SEC = {"original": 816.0, "max=400": 2137.0, "short=256": 2341.0}
# What augmentations take of a core, in parts of what the loader takes for an image stored by short=256: 1 / r - 1,
# where r is the loader's speed with one to that without, at 224 px (docs/performance.md).
AUGMENTATION_COST = {
    "augmix": 2.4,
    "auto_augment": 0.56,
    "color_jitter": 0.54,
    "randaugment": 0.52,
    "random_erasing": 0.08,
    "three_augment": 0.37,
    "timm_randaugment": 0.75,
    "torchvision_randaugment": 0.60,
    "trivial_augment": 0.28,
}
NODES_DRAWN = (1, 2, 4, 8, 16, 32, 64)
MOMENTS = 200  # of the run at which the images' size is looked at

ADVICE = {
    "GPU": "the GPUs are busy: this is what the machine can do. Smaller crops, or more nodes, are faster",
    "kernel launches": "each GPU has too few images a step to be busy: fewer nodes cost less, or raise "
    "global_batch_size (scale_with_batch scales the recipe with it)",
    "all-reduce": "gradients take longer to exchange than to compute: use EFA and a placement group, a type with a "
    "faster network, fewer nodes, or a larger global_batch_size",
    "decode": "the processors cannot decode as fast as the GPUs train: convert with --resize short=256, take a type "
    "with more vCPUs a GPU, or set data.resize_in",
    "storage": "the shards arrive too slowly: more throughput on FSx, or S3 with data.local on the machines' own disks",
}


class PlanError(ValueError):
    """What was asked for cannot be planned; the message says what to change."""


def main(argv: Sequence[str]) -> int:
    """Run the command; return its exit status."""
    args = parse(argv)
    try:
        cfg = load_config(args.config, args.overrides, check_paths=False)
        chosen = choose_machine(args)
        report = plan(cfg, chosen, args)
    except (ConfigError, DataError, PlanError, PricesFileError, UnknownMachineError) as error:
        print(f"infra/plan/plan.py: {error}", file=sys.stderr)
        return EXIT_REFUSED
    print("\n".join(lines(report, chosen)))
    for warning in report["warnings"]:
        print(warning, file=sys.stderr)
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")
    if args.picture:
        from infra.plan.scaling_picture import draw  # matplotlib takes a second to import

        draw(report, args.picture)
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the command's arguments."""
    parser = argparse.ArgumentParser(
        prog="infra/plan/plan.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="as for train/main.py")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")
    parser.add_argument("--instance", default="p4d.24xlarge", help="an instance type of infra/plan/machines.yaml")
    parser.add_argument("--nodes", type=whole_number, default=1)
    parser.add_argument(
        "--data",
        metavar="DIR_OR_S3",
        help="a converted dataset, for its counts and sizes; default: data.local if it is here, else ImageNet's",
    )
    parser.add_argument(
        "--stored",
        choices=list(KB_PER_IMAGE),
        help="how the images were converted; default: as the dataset's manifest says, or original",
    )
    parser.add_argument(
        "--storage", choices=["s3", "fsx", "nvme"], default="s3", help="where the shards are (default s3)"
    )
    parser.add_argument("--fsx-tib", type=positive, default=1.2, help="size of the FSx file system, TiB")
    parser.add_argument(
        "--core-images-per-sec", type=positive, help="what the loader decodes on a core of the instance"
    )
    parser.add_argument("--loader-json", type=Path, metavar="FILE", help="the same, from benchmarks/loader.py --json")
    parser.add_argument("--gpu-images-per-sec", type=positive, help="what one GPU trains of this network at 224 px")
    parser.add_argument("--measured", type=Path, metavar="FILE", help="the same, from benchmarks/scaling.py --json")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there, too")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw the scaling from 1 to 64 nodes (PNG)")
    return parser.parse_intermixed_args(argv)


def choose_machine(args: argparse.Namespace) -> Machine:
    """The instance, with the GPU's speed as measured where it was."""
    chosen = machine(args.instance)
    rate = args.gpu_images_per_sec or (measured_gpu_rate(args.measured) if args.measured else None)
    return dataclasses.replace(chosen, gpu_images_per_sec=rate) if rate else chosen


def plan(cfg: Config, chosen: Machine, args: argparse.Namespace) -> dict[str, Any]:
    """Everything there is to say, as plain JSON.

    Raises:
        PlanError: the batch does not divide, or a file of measurements has nothing usable.
    """
    ranks = args.nodes * chosen.gpus
    if cfg.global_batch_size % ranks:
        raise PlanError(
            f"global_batch_size: {cfg.global_batch_size} does not divide over {args.nodes} x {chosen.gpus} GPUs; "
            f"give another --nodes, or global_batch_size={math.ceil(cfg.global_batch_size / ranks) * ranks}"
        )
    dataset = dataset_of(cfg, args.data, args.stored)
    recipe = recipe_of(cfg, dataset, is_measured=bool(args.gpu_images_per_sec or args.measured))
    if recipe.train_images < cfg.global_batch_size:
        raise PlanError(
            f"global_batch_size: {cfg.global_batch_size:,} is more than the {recipe.train_images:,} images of "
            f"{dataset.shown}"
        )
    storage = storage_of(args)
    core_rate = core_images_per_sec(args, dataset.stored)
    here = predict(chosen, args.nodes, recipe, storage, core_rate)
    hours = here.total_s / 3600
    fsx_hourly = fsx_usd_per_hour(args.fsx_tib) if args.storage == "fsx" else 0.0
    fsx_usd = hours * fsx_hourly
    return {
        "config": str(args.config),
        "instance": chosen.name,
        "nodes": args.nodes,
        "model": cfg.model.name,
        "data": dataclasses.asdict(dataset),
        "stored": dataset.stored,
        "storage": args.storage,
        "core_images_per_sec": core_rate,
        "global_batch_size": cfg.global_batch_size,
        "device_batch_size": cfg.global_batch_size // ranks,
        "epochs": recipe.epochs,
        "prediction": dataclasses.asdict(here),
        "hours": hours,
        "usd_on_demand": cost(chosen.usd_per_hour, hours * args.nodes, fsx_usd),
        "usd_spot": cost(chosen.spot_usd_per_hour, hours * args.nodes, fsx_usd),
        "advice": ADVICE[here.binding],
        "prices_read": chosen.prices_read,
        "warnings": warnings_of(chosen, has_fsx=bool(fsx_usd)),
        "scaling": scaling(chosen, recipe, storage, core_rate, fsx_hourly_usd=fsx_hourly),
    }


def cost(usd_per_hour: float | None, machine_hours: float, fsx_usd: float) -> float | None:
    """What a run costs; None where the machine's price is not known."""
    return None if usd_per_hour is None else machine_hours * usd_per_hour + fsx_usd


def warnings_of(chosen: Machine, *, has_fsx: bool) -> list[str]:
    """What has to be said beside a plan: prices that are old, a torch without code for the machine's GPUs."""
    has_price = chosen.usd_per_hour is not None or chosen.spot_usd_per_hour is not None
    dates = [chosen.prices_read] * has_price + [read_table()["prices_read"]] * has_fsx
    torch = torch_problem(chosen.gpu, chosen.compute_capability, installed_torch())
    return price_warnings(dates) + ([f"WARNING: {torch}"] if torch else [])


def recipe_of(cfg: Config, dataset: Dataset, *, is_measured: bool = False) -> Recipe:
    """What of a configuration decides a run's speed.

    Args:
        is_measured: whether the GPU's figure is of the run's own network; else it is of ResNet-50.
    """
    steps = max(1, dataset.train_images // cfg.global_batch_size)
    classes = 1000 if cfg.model.num_classes == "auto" else cfg.model.num_classes
    network = network_of(cfg.model.name, classes, cfg.data.crop_size)
    length = int(cfg.max_duration[:-2])
    epochs = float(length) if cfg.max_duration.endswith("ep") else length / steps
    interval = int(cfg.eval_interval[:-2])
    between = interval if cfg.eval_interval.endswith("ep") else interval / steps
    return Recipe(
        train_images=dataset.train_images,
        val_images=dataset.val_images,
        bytes_per_image=dataset.bytes_per_image,
        epochs=epochs,
        global_batch_size=cfg.global_batch_size,
        pixels=pixels_over_the_run(cfg, epochs),
        eval_px=cfg.data.eval_crop_size,
        evaluations=max(1, math.ceil(epochs / between)),  # there is one at the end in any case
        gpu_cost=gpu_cost(cfg) * (1.0 if is_measured else network.cost),
        loader_cost=loader_cost(cfg, dataset.stored),
        parameters=network.parameters,
    )


def pixels_over_the_run(cfg: Config, epochs: float) -> tuple[int, ...]:
    """The training crops' edge, px, at evenly spaced moments of the run."""
    schedule = next((entry for entry in cfg.algorithms if isinstance(entry, SizeSchedule)), None)
    if schedule is None:
        return (cfg.data.crop_size,)
    moments = [(moment + 0.5) / MOMENTS for moment in range(MOMENTS)]
    return tuple(
        schedule.image_px(cfg.data.crop_size, epoch=int(elapsed * epochs), elapsed_fraction=elapsed)
        for elapsed in moments
    )


def gpu_cost(cfg: Config) -> float:
    """How much longer the algorithms make a step on the GPU; those not named here cost too little to count."""
    cost = 1.0
    for entry in cfg.algorithms:
        if entry.name == "blurpool":
            cost *= BLURPOOL_COST
        if entry.name == "sam":  # a second forward and backward pass, every `interval` steps
            cost *= 1 + 1 / entry.model_dump()["interval"]
    return cost


def loader_cost(cfg: Config, stored: str) -> float:
    """How much longer the augmentations make the loader's work on an image that is stored so."""
    added = sum(AUGMENTATION_COST.get(entry.name, 0.0) for entry in cfg.algorithms)
    return 1.0 + added * CORE_IMAGES_PER_SEC[stored] / CORE_IMAGES_PER_SEC["short=256"]


def storage_of(args: argparse.Namespace) -> Storage:
    """Where the shards come from, and how fast."""
    if args.storage == "fsx":
        return Storage("fsx", total_bytes_per_sec=args.fsx_tib * MB_PER_SEC_PER_TIB * 1e6)
    return Storage(args.storage)


def core_images_per_sec(args: argparse.Namespace, stored: str) -> float:
    """What one core decodes: as given, as measured by benchmarks/loader.py, or docs/performance.md's figure."""
    if args.core_images_per_sec:
        return float(args.core_images_per_sec)
    if not args.loader_json:
        return CORE_IMAGES_PER_SEC[stored]
    with measurements(args.loader_json, "benchmarks/loader.py --json") as report:
        rows = report["loaders"]
        ours = [row for row in rows if row["storage"] == stored and row["loader"] == "ours"]
        if not ours:
            known = sorted({f"{row['loader']} of {row['storage']}" for row in rows})
            raise PlanError(f"{args.loader_json} has no row of ours for {stored} images, but {', '.join(known)}")
        nearest = min(ours, key=lambda row: (abs(int(row["size"]) - REFERENCE_PX), -int(row["cores"])))
        return float(nearest["images_per_sec"]["median"]) / int(nearest["cores"])


@contextlib.contextmanager
def measurements(path: Path, program: str) -> Iterator[Any]:
    """Read a file of measurements.

    Raises:
        PlanError: it is not there, or not what the program writes; also out of the with block.
    """
    try:
        yield json.loads(path.read_text())
    except PlanError:
        raise
    except OSError as error:
        raise PlanError(f"{path} cannot be read: {error.strerror}; {program} writes it") from error
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise PlanError(f"{path} is not what {program} writes: {type(error).__name__}: {error}") from error


def measured_gpu_rate(path: Path) -> float:
    """Images/s of one GPU at 224 px from benchmarks/scaling.py's file: the median over its rounds at the most ranks.

    Raises:
        PlanError: it was measured on CPUs.
    """
    with measurements(path, "benchmarks/scaling.py --json") as report:
        if report["device"] == "cpu":
            raise PlanError(f"{path} was measured on CPUs, which says nothing of a GPU")
        row = max(report["rows"], key=lambda row: int(row["ranks"]))
        rate = statistics.median(row["images_per_sec_rounds"]) / row["ranks"]
        return float(rate * (report["image_px"] / REFERENCE_PX) ** 2)


def scaling(
    chosen: Machine, recipe: Recipe, storage: Storage, core_rate: float, *, fsx_hourly_usd: float
) -> list[dict[str, Any]]:
    """From 1 to 64 nodes: the whole run at the recipe's batch (as far as it divides), and at its batch on each node."""
    rows = []
    for nodes in NODES_DRAWN:
        row: dict[str, Any] = {"nodes": nodes}
        ways = {"strong": recipe, "weak": with_batch(recipe, recipe.global_batch_size * nodes)}
        for way, what in ways.items():
            if what.global_batch_size % (nodes * chosen.gpus) == 0:
                found = predict(chosen, nodes, what, storage, core_rate)
                hours = found.total_s / 3600
                row[way] = {
                    "images_per_sec": found.images_per_sec,
                    "hours": hours,
                    "usd_on_demand": cost(chosen.usd_per_hour, hours * nodes, hours * fsx_hourly_usd),
                    "binding": found.binding,
                }
        rows.append(row)
    return rows


def lines(report: dict[str, Any], chosen: Machine) -> list[str]:
    """The report for a person."""
    found = Prediction(**report["prediction"])
    parts = ", ".join(f"{name} {1000 * seconds:.0f}" for name, seconds in found.seconds_by.items())
    table = [
        f"{row['nodes']:>6}" + "".join(f"   {_cell(row.get(way))}" for way in ("strong", "weak"))
        for row in report["scaling"]
    ]
    batch = report["global_batch_size"]
    return [
        f"{report['config']} on {report['nodes']} x {chosen.name} ({chosen.gpus} {chosen.gpu}, {chosen.vcpus} vCPUs), "
        f"images stored as {report['stored']}, from {report['storage']}",
        f"  assumed       {assumed(report)}",
        f"  images/s      {found.images_per_sec:,.0f}; the GPUs alone {found.gpu_images_per_sec:,.0f}, the loader "
        f"alone {found.loader_images_per_sec:,.0f}",
        f"  an epoch      {found.epoch_s / 60:.1f} min; the first one {found.first_epoch_s / 60:.1f} min",
        f"  the run       {report['hours']:.2f} h for {report['epochs']:g} epochs, with its evaluations",
        f"  cost          {shown_cost(report, chosen)}",
        f"  ms a step     {parts} (of {batch:,} images; storage as in the first epoch for s3)",
        f"  binding       {found.binding}: {report['advice']}",
        f"{'nodes':>6}   {f'batch {batch:,}':<38}   {f'batch {batch:,} a node':<38}",
        *table,
        "Predicted, not measured. A larger batch needs another learning rate, and over 8,192 a recipe made for it.",
    ]


def shown_cost(report: dict[str, Any], chosen: Machine) -> str:
    """What the run costs on demand and on spot, or that nobody knows."""
    on_demand, spot = report["usd_on_demand"], report["usd_spot"]
    if on_demand is None and spot is None:
        return no_price(chosen)
    shown = f"${on_demand:,.0f} on demand" if on_demand is not None else no_price(chosen)
    shown += f", about ${spot:,.0f} on spot" if spot is not None else f"; {no_price(chosen, spot=True)}"
    return f"{shown} (prices of {chosen.prices_read} in {chosen.region}; check them)"


def assumed(report: dict[str, Any]) -> str:
    """What the figures are of."""
    data = report["data"]
    of_network = "" if report["model"] == "resnet50" else " (its work beside ResNet-50's is counted, not measured)"
    return (
        f"{report['model']}{of_network}; {data['train_images']:,} train and {data['val_images']:,} val images of "
        f"{data['bytes_per_image'] / 1e3:.1f} KB, as in {data['shown']}; {report['core_images_per_sec']:,.0f} images/s "
        "decoded by a core"
    )


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return f"{'does not divide':<38}"
    usd = row["usd_on_demand"]
    price = "$?    " if usd is None else f"${usd:<5,.0f}"
    text = f"{row['images_per_sec']:>9,.0f}/s {row['hours']:>6.2f} h {price} {row['binding']}"
    return f"{re.sub('kernel launches', 'launches', text):<38}"


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
