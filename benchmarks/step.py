"""Time training steps, ours beside those of Composer, torchvision and timm, on one batch already on the device.

    python benchmarks/step.py [--contestants ours,composer,torchvision,timm,graph] [--ours KEY=VALUE,...]
                              [--sizes 88,128,176,224] [--batch 256] [--steps 40] [--warm-up 20] [--rounds 3]
                              [--precision amp_bf16] [--model resnet50] [--quarter] [--cores N]
                              [--json FILE] [--picture PNG] [key.path=value ...]
    composer -n 2 benchmarks/step.py ...

Ours and Composer's train by yamls/full.yaml, which key.path=value changes; Composer's is its own Trainer with its own
algorithms and optimizer. torchvision, timm and graph are loops over their plain networks (benchmarks/step_loops.py);
graph is one CUDA graph a step, the practical limit. Each --ours adds one more of ours with other settings, such as
--ours precision=amp_fp16; deterministic=true is for all contestants. At each size every contestant is built and warmed
up; then each round times --steps steps of each in turn. Batches are of --batch images on each rank.

The figures are medians over the rounds with minimum and maximum; a ratio is the median of those within a round. The
peer is the fastest of Composer, torchvision and timm in that round. Counts are of operations, mean over --count steps
(benchmarks/step_counts.py); what a replayed graph holds is not among them. `host` is the time until the host has
launched a step, from an idle device; `GPU` is the GPU's for one, all launched before it begins. `of FLOPS` and `of
bytes/s` are what the counted operations compute and move, if each tensor moves once, as a share of the 16-bit peak and
of the memory's. Optimizers take the way that they take on a GPU. Without a GPU there are counts and host times, which
then hold the computing, too: --quarter takes a network with a quarter of the channels, and tiny images, so that what is
left is mostly the host's own work.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch
from composer.devices import Device
from composer.utils import dist, reproducibility

from benchmarks.loader import last_cores
from benchmarks.step_contest import COMPOSER, OURS, OfTrainer, contest, loop
from benchmarks.step_loops import DTYPES, LOOPS, Contestant, why_not
from benchmarks.step_report import heading, rows_of, table
from benchmarks.step_trainers import one_batch
from train.config.run_config import Config, ConfigError, load_config
from train.process import choose_kernels, precision_on, start_process, torch_device

NAMES = (OURS, COMPOSER, *LOOPS)
DIST_TIMEOUT_S = 60.0


def main(argv: Sequence[str]) -> int:
    """Run the benchmark, print its table, and write its JSON and picture."""
    args = parse(argv)
    if args.cores:
        os.sched_setaffinity(0, last_cores(args.cores))
    if args.quarter:
        from tests import small_network

        small_network.install()
    device = start_process(DIST_TIMEOUT_S)
    try:
        choose_for_all(args, device)
        for px in sizes_of(args):  # before anything is measured
            for variant in [[], *(words.split(",") for words in args.ours)]:
                precision_on(device, config(args, px, variant))
    except ConfigError as error:
        print(f"benchmarks/step.py: {error}", file=sys.stderr)
        return 2
    report: dict[str, Any] = header(args, device) | {"rows": []}
    if dist.get_global_rank() == 0:
        print("\n".join(heading(report)), flush=True)
    for px in sizes_of(args):
        measured = contest(
            list(makers(args, px, device)),
            px,
            images=args.batch,
            steps=args.steps,
            warm_up=args.warm_up,
            counted=args.count,
            rounds=args.rounds,
        )
        rows = rows_of(measured, images=args.batch)
        report["rows"] += rows
        if dist.get_global_rank() == 0:
            print("\n".join([*table(rows), ""]), flush=True)
            write(report, args)  # after each size: a machine may be there for a quarter of an hour only
    return 0


def choose_for_all(args: argparse.Namespace, device: Device) -> None:
    """Have torch choose kernels as in a run: `deterministic: true` holds for the process, and so for all contestants.

    Raises:
        ConfigError: one variant alone asks for it, or a setting does not go with it.
    """
    cfg = config(args, sizes_of(args)[0], [])
    for words in args.ours:
        if config(args, sizes_of(args)[0], words.split(",")).deterministic != cfg.deterministic:
            raise ConfigError(f"--ours {words}: deterministic holds for all contestants; give it by itself")
    choose_kernels(cfg, device)
    if cfg.deterministic:
        reproducibility.configure_deterministic_mode()


def write(report: dict[str, Any], args: argparse.Namespace) -> None:
    """Write what there is so far."""
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")
    if args.picture and report["rows"]:
        from benchmarks.step_picture import draw  # matplotlib takes a second to import

        draw(report, args.picture)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")
    parser.add_argument("--contestants", default=",".join(NAMES), metavar="NAMES")
    parser.add_argument("--ours", action="append", default=[], metavar="KEY=VALUE,...")
    parser.add_argument("--sizes", default="88,128,176,224", metavar="PX")
    parser.add_argument("--batch", type=int, default=256, help="images of a step, on each rank")
    parser.add_argument("--steps", type=int, default=40, help="that are timed, of a round")
    parser.add_argument("--warm-up", type=int, default=20, help="steps before the first round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--count", type=int, default=20, help="steps whose operations are counted")
    parser.add_argument("--precision", choices=list(DTYPES), default="amp_bf16", help="of all contestants")
    parser.add_argument("--model", default="resnet50", help="of torchvision and timm")
    parser.add_argument("--quarter", action="store_true", help="a quarter of the channels, for all but timm")
    parser.add_argument("--cores", type=int, help="to pin to; default: all")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--picture", type=Path, metavar="PNG")
    args = parser.parse_intermixed_args(argv)
    args.contestants = args.contestants.split(",")
    if unknown := sorted(set(args.contestants) - set(NAMES)):
        parser.error(f"--contestants: {', '.join(unknown)}: there are {', '.join(NAMES)}")
    if args.steps < 1 or args.rounds < 1 or args.count < 1:
        parser.error("--steps, --rounds and --count: at least 1")
    return args


def makers(args: argparse.Namespace, px: int, device: Device) -> Iterator[tuple[str, Callable[[], Contestant]]]:
    """Yield each contestant's name, and what builds it for a size; say once which cannot take part, and why."""
    images, labels = one_batch(args.batch, px, torch_device(device))
    batch = images.contiguous(memory_format=torch.channels_last), labels  # as our loader gives them
    for name in args.contestants:
        if name in LOOPS:
            if why := why_not(name, images.device, dist.get_world_size(), quarter=args.quarter):
                if px == sizes_of(args)[0] and dist.get_global_rank() == 0:
                    print(f"{name}: left out, {why}")
                continue
            yield name, partial(loop, name, args.model, batch, args.precision)
        else:
            yield name, partial(OfTrainer, name, name, config(args, px, []), batch, device)
    for variant in args.ours:
        name = f"{OURS} {variant}"
        yield name, partial(OfTrainer, name, OURS, config(args, px, variant.split(",")), batch, device)


def sizes_of(args: argparse.Namespace) -> list[int]:
    return [int(word) for word in args.sizes.split(",")]


def config(args: argparse.Namespace, px: int, variant: Sequence[str]) -> Config:
    """full.yaml's at a size, with what the command line says, and a variant's settings last."""
    ours = [
        *("data.local=none", "data.remote=null", "checkpoint.save_folder=unused", "max_duration=100000ep"),
        *(f"global_batch_size={args.batch * dist.get_world_size()}", f"model.name={args.model}"),
        *(f"precision={args.precision}", f"data.crop_size={-(-px // 16) * 16}"),
        "optimizer.lr=0.01",  # so that noise, again and again, stays finite
    ]
    return load_config(ROOT / "yamls/full.yaml", [*ours, *args.overrides, *variant], check_paths=False)


def header(args: argparse.Namespace, device: Device) -> dict[str, Any]:
    """What the figures are of."""
    cfg = config(args, sizes_of(args)[0], [])
    return {
        "device": torch.cuda.get_device_name() if device.name == "gpu" else "cpu",
        "cores": len(os.sched_getaffinity(0)),
        "ranks": dist.get_world_size(),
        "model": args.model + (", a quarter of the channels" if args.quarter else ""),
        "algorithms": [algorithm.name for algorithm in cfg.algorithms if not algorithm.runs_in_loader],
        "precision": precision_on(device, cfg).value + ", deterministic" * cfg.deterministic,
        "batch": args.batch,
        "steps": args.steps,
        "rounds": args.rounds,
        "versions": {"torch": torch.__version__},
    }


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
