"""Train recipes within one budget, over seeds, beside torchvision's loop and timm's; write the accuracies as CSV.

    python benchmarks/accuracy.py --shards MDS --images DIR --out FILE.csv --work DIR
                                  [--recipes yamls/recipes/mosaic-mild.yaml ...] [--own yamls/recipes/NAME.yaml ...]
                                  [--references torchvision timm] [--switches blurpool ema ...]
                                  [--epochs 5] [--px 128] [--batch 64] [--model resnet50] [--seeds 1 2 3] [--ranks 1]
                                  [--workers 2]

MDS are shards of the images of DIR, an ImageFolder with train/ and val/. `--recipes` are for ImageNet and shortened by
the rule of benchmarks/accuracy_budget.py; `--own` are trained as they stand. `--switches` adds one thing at a time to
`--base`, which is yamls/recipes/mosaic-baseline.yaml, shortened too. Everything is trained with each seed in turn, from
random weights, and evaluated once, at its end, on all images of val.

A run that was interrupted resumes where it was, when the same command is given again, and one that is in DIR is not
trained again. A loop of the references begins anew instead. FILE keeps the rows of other budgets. `seconds` are those
of the whole command, with its start; of one that was killed in between, at least those of the training. Hardware,
versions and commit are those of all the starts that a run was resumed in.
"""

import argparse
import csv
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "build/examples")]  # timm is there, after `make test-examples`

from tqdm import tqdm

from benchmarks.accuracy_budget import Budget, shortened
from demo.processes import exit_on_signals, started
from imagestream.mds.manifest import load_manifest
from train.config.batch_scale import scaled
from train.config.run_config import Config, load_config

COLUMNS = (
    "name", "model", "epochs", "px", "batch", "seeds", "top1_mean", "top1_sd", "top1_each", "images",
    "images_per_sec", "seconds", "hardware", "versions", "commit", "seed_numbers",
)  # fmt: skip
KEY = ("name", "model", "epochs", "px", "batch")
LIMIT_S = 12 * 3600.0  # of one run
FREE = {
    *("run_name", "seed", "data.local", "data.remote", "data.num_workers", "checkpoint.save_folder"),
    *("loggers.progress_bar", "loggers.console_interval"),
}
"""What may differ between runs of one row: places, and what changes no weight."""
MEASURED = "measured.json"  # in a run's folder: its seconds, and with what it was trained
TRAINED_WITH = ("hardware", "versions", "commit")
THEN = "; "  # between what a run was trained with in its starts, where they differ


@dataclass(frozen=True)
class Contestant:
    """What is trained: a name, and the program with its arguments but for the seed and the place of its results."""

    name: str
    budget: Budget
    command: tuple[str, ...]
    is_loop: bool = False
    config: Config | None = None  # of ours

    def with_seed(self, seed: int, folder: Path) -> list[str]:
        if self.is_loop:
            return [*self.command, f"--seed={seed}", f"--out={folder / 'figures.json'}"]
        return [*self.command, f"seed={seed}", f"checkpoint.save_folder={folder}"]

    def faults(self, folder: Path) -> list[str]:
        """Return the settings by which a run of it that has ended differs from what would be trained now."""
        if self.config is None:
            return []
        there = json.loads((folder / "run.json").read_text())["config"]
        here = scaled(self.config).model_dump(mode="json")
        return [f"{key}: {was} there, {now} now" for key, was, now in _differences(there, here) if key not in FREE]

    def figures(self, folder: Path) -> dict[str, Any] | None:
        """Return what a run of it has found, or None where it has not ended."""
        path = folder / ("figures.json" if self.is_loop else "run.json")
        if not path.exists():
            return None
        found: dict[str, Any] = json.loads(path.read_text())
        if self.is_loop:
            return found
        if found["status"] != "finished":
            return None
        own_s = {"train_s": found["time"]["train_s"]}  # over all of its starts
        return {key: found[key] for key in ("top1", "samples_evaluated")} | found["throughput"] | own_s


def main(argv: Sequence[str]) -> int:
    """Train what is missing, and write the CSV after each round."""
    exit_on_signals()
    args = parse(argv)
    contestants = list(contestants_of(args))
    args.work.mkdir(parents=True, exist_ok=True)
    rounds = [(seed, contestant) for seed in args.seeds for contestant in contestants]
    with tqdm(rounds, unit="run", disable=None) as bar:
        for seed, contestant in bar:
            bar.set_postfix_str(f"{contestant.name}, seed {seed}")
            train(contestant, seed, args.work)
            write(args.out, [row for one in contestants if (row := row_of(one, args.seeds, args.work))])
    return 0


def contestants_of(args: argparse.Namespace) -> Iterator[Contestant]:
    """Yield what is to be trained, in the order of the options."""
    images = load_manifest(args.shards / "manifest.json").splits["train"].samples
    budget = Budget(images, args.epochs, args.px, args.batch, args.model)
    program = [str(ROOT / "train/main.py")]
    start = [sys.executable, *program] if args.ranks == 1 else ["composer", "-n", str(args.ranks), *program]
    always = [
        f"data.local={args.shards}",
        f"data.num_workers={args.workers}",
        "checkpoint.keep=1",
        "loggers.console_interval=null",
        *args.overrides,
    ]
    for path in args.own:
        cfg = load_config(path, always)
        own = Budget(images, int(cfg.max_duration[:-2]), cfg.data.crop_size, cfg.global_batch_size, cfg.model.name)
        command = [*start, str(path), *always, f"eval_interval={cfg.max_duration}"]
        yield Contestant(path.stem, own, tuple(command), config=load_config(path, command[len(start) + 1 :]))
    for path in args.recipes:
        changes = [*always, *shortened(load_config(path, always), budget)]
        yield Contestant(path.stem, budget, (*start, str(path), *changes), config=load_config(path, changes))
    for name in args.references:
        sizes = [f"--{key}={getattr(budget, key)}" for key in ("epochs", "px", "batch", "model")]
        loop = str(ROOT / "benchmarks/accuracy_loops.py")
        sizes.append(f"--workers={args.workers}")
        yield Contestant(name, budget, (sys.executable, loop, name, f"--images={args.images}", *sizes), is_loop=True)
    for name in args.switches:
        changes = [*always, *shortened(load_config(args.base, always), budget)]
        plain = load_config(args.base, changes).algorithms
        switched = [json.dumps(one.model_dump(mode="json")) for one in plain]
        switched.append(SWITCHES[name].format(ema=max(1, budget.steps // 40)))
        changes.append(f"algorithms=[{', '.join(switched)}]")
        config = load_config(args.base, changes)
        yield Contestant(f"{args.base.stem} + {name}", budget, (*start, str(args.base), *changes), config=config)


SWITCHES = {
    "blurpool": "{{name: blurpool}}",
    "label_smoothing": "{{name: label_smoothing, smoothing: 0.1}}",
    "ema": "{{name: ema, half_life: {ema}ba, update_interval: 1ba}}",
    "progressive_resizing": "{{name: progressive_resizing, mode: decode, size_increment: 16}}",
    "trivial_augment": "{{name: trivial_augment}}",
    "mixup_or_cutmix": "{{name: mixup_or_cutmix}}",
}
"""One section each; an average forgets half of the weights in a fortieth of the run."""


def train(contestant: Contestant, seed: int, work: Path) -> None:
    """Run one contestant to its end, unless it has ended before.

    Raises:
        SystemExit: it failed; the end of its output says how.
    """
    folder = folder_of(contestant, seed, work)
    if contestant.figures(folder):
        if faults := contestant.faults(folder):
            sys.exit(f"{folder} was trained with other settings; give another --work. {'; '.join(faults)}")
        return
    folder.mkdir(parents=True, exist_ok=True)
    log, measured = folder / "output.txt", folder / MEASURED
    found: dict[str, Any] = {
        "seconds": 0.0,
        "hardware": hardware(),
        "versions": versions(contestant),
        "commit": commit(),
    }
    if measured.exists() and not contestant.is_loop:  # a loop begins anew: what came before is no part of its run
        found = after(json.loads(measured.read_text()), found)
    if not contestant.is_loop:
        measured.write_text(json.dumps(found))  # a SIGKILL leaves no time for it
    before, began = found["seconds"], time.monotonic()
    try:
        with started(contestant.with_seed(seed, folder), log, cwd=ROOT, mode="ab") as process:
            status = process.wait(LIMIT_S)
    except subprocess.TimeoutExpired:
        sys.exit(f"{contestant.name}, seed {seed}: not done after {LIMIT_S:.0f} s; see {log}")
    finally:
        found["seconds"] = before + time.monotonic() - began
        measured.write_text(json.dumps(found))
    if status or contestant.figures(folder) is None:
        sys.exit(f"{contestant.name}, seed {seed}: exit {status}; see {log}\n{log.read_text()[-1500:]}")


def after(earlier: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Return what is noted of a run that is resumed: its seconds so far, and what all its starts trained with."""
    joined = {key: THEN.join(dict.fromkeys([*earlier[key].split(THEN), now[key]])) for key in TRAINED_WITH}
    return {"seconds": earlier["seconds"]} | joined


def _differences(one: Any, other: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield the dotted keys of two configurations that differ, with both values."""
    if isinstance(one, dict) and isinstance(other, dict):
        for name in sorted({*one, *other}):
            yield from _differences(one.get(name), other.get(name), f"{key}.{name}".lstrip("."))
    elif one != other:
        yield key, one, other


def folder_of(contestant: Contestant, seed: int, work: Path) -> Path:
    budget = contestant.budget
    name = contestant.name.replace(" + ", "-with-")
    return work / f"{name}-{budget.model}-{budget.epochs}ep-{budget.px}px-b{budget.batch}-s{seed}"


def row_of(contestant: Contestant, seeds: Sequence[int], work: Path) -> dict[str, Any] | None:
    """Return the row of what has ended so far; None where nothing has."""
    folders = {seed: folder_of(contestant, seed, work) for seed in seeds}
    figures = {seed: contestant.figures(folder) for seed, folder in folders.items()}
    ended = [(folders[seed], found) for seed, found in figures.items() if found]
    if not ended:
        return None
    top1 = [100 * found["top1"] for _, found in ended]
    measured = [json.loads((folder / MEASURED).read_text()) for folder, _ in ended]
    # A command that was killed has not noted its seconds; the run itself has those of its training.
    seconds = [max(one["seconds"], found.get("train_s", 0.0)) for one, (_, found) in zip(measured, ended, strict=True)]
    counts = {found["samples_evaluated"] for _, found in ended}
    if len(counts) > 1:
        raise ValueError(f"{contestant.name} was evaluated on {sorted(counts)} images; begin with an empty --work")
    budget = contestant.budget
    return {
        "name": contestant.name,
        "model": budget.model,
        "epochs": budget.epochs,
        "px": budget.px,
        "batch": budget.batch,
        "seeds": len(top1),
        "top1_mean": f"{statistics.mean(top1):.2f}",
        "top1_sd": f"{statistics.stdev(top1):.2f}" if len(top1) > 1 else "",
        "top1_each": " ".join(f"{one:.2f}" for one in top1),
        "images": counts.pop(),
        "images_per_sec": f"{statistics.mean(found['images_per_sec'] for _, found in ended):.0f}",
        "seconds": f"{statistics.mean(seconds):.0f}",
        **{key: ", ".join(sorted({part for one in measured for part in one[key].split(THEN)})) for key in TRAINED_WITH},
        "seed_numbers": " ".join(str(seed) for seed, found in figures.items() if found),
    }


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Put the rows into a CSV file, in place of those with the same contestant and budget."""
    kept: list[dict[str, Any]] = []
    if path.exists():
        with open(path, newline="") as file:
            kept = list(csv.DictReader(file))
    new = {tuple(str(row[key]) for key in KEY): row for row in rows}
    for row in kept:
        new.setdefault(tuple(row[key] for key in KEY), row)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(new[key] for key in sorted(new, key=lambda key: (key[1:], key[0])))


def hardware() -> str:
    """Return the GPUs' name and number, or the processor's."""
    import cpuinfo
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    cores = len(os.sched_getaffinity(0))
    return f"{cpuinfo.get_cpu_info().get('brand_raw', platform.machine())}, {cores} core{'s' * (cores > 1)}"


def versions(contestant: Contestant) -> str:
    """Return those that decide the figures."""
    from importlib import metadata

    names = ["torch", "torchvision", "mosaicml", "mosaicml-streaming"]
    names += ["timm"] if "timm" in (contestant.name, contestant.budget.model.partition(":")[0]) else []
    return " ".join(f"{name} {metadata.version(name)}" for name in names)


def commit() -> str:
    """Return the repository's, with a + where the code differs from it."""
    described = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
    return subprocess.run(described, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare recipes' accuracies within one budget.")
    parser.add_argument("--shards", type=Path, required=True, help="an MDS dataset with train and val")
    parser.add_argument("--images", type=Path, help="the same images as an ImageFolder, for --references")
    parser.add_argument("--out", type=Path, required=True, help="the CSV file")
    parser.add_argument("--work", type=Path, required=True, help="a folder for the runs")
    parser.add_argument("--recipes", type=Path, nargs="*", default=[], help="YAMLs for ImageNet, which are shortened")
    parser.add_argument("--own", type=Path, nargs="*", default=[], help="YAMLs for these images, as they stand")
    parser.add_argument("--references", nargs="*", default=[], choices=["torchvision", "timm"])
    parser.add_argument("--switches", nargs="*", default=[], choices=sorted(SWITCHES))
    parser.add_argument("--base", type=Path, default=ROOT / "yamls/recipes/mosaic-baseline.yaml")
    parser.add_argument("--model", default="resnet50")
    for name, value in {"epochs": 5, "px": 128, "batch": 64, "ranks": 1, "workers": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--overrides", nargs="*", default=[], help="key.path=value, for each of our runs")
    args = parser.parse_args(argv)
    args.shards, args.work = args.shards.resolve(), args.work.resolve()
    args.images = args.images and args.images.resolve()
    if args.references and not args.images:
        parser.error("--references read files: give --images DIR")
    return args


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
