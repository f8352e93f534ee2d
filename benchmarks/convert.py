"""Time the converter beside MosaicML's on the same files, interleaved, and project it to ImageNet's size.

    python benchmarks/convert.py --images DIR [--copies 10] [--rounds 5] [--json FILE]

DIR is an ImageFolder with train/. Its files are hard-linked --copies times, so that start-up does not dominate. Each
round runs every contestant once, as a process of its own; the figures are medians with minimum and maximum.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tqdm import tqdm

from convert.images import check_image, parse_resize
from imagestream.mds.shards import ShardFormat, encode_sample, encode_shard

IMAGENET_IMAGES, IMAGENET_BYTES = 1_331_167, 147e9  # train and val; the sizes of the two tars
# vCPUs of instances that are good for it: https://aws.amazon.com/ec2/instance-types/ (2026-11). A vCPU there is a
# hyperthread, half a core, so the projection takes half of a core's rate for each.
INSTANCES = {"c7i.4xlarge": 16, "c7i.12xlarge": 48, "c7i.24xlarge": 96, "p4d.24xlarge": 96, "p5.48xlarge": 192}
HYPERTHREAD_FRACTION = 0.5
# ImageNet gives 2,300 shards of the default size; of the few images here so many are left to share among workers only
# if they are smaller.
SHARD_BYTES = 4 * 1024**2
SIZE = ("--size-limit", str(SHARD_BYTES))


@dataclass(frozen=True)
class Contestant:
    """One way to convert; `command` gets the source and the output."""

    name: str
    command: Callable[[Path, Path], list[str]]


def ours(*options: str) -> Callable[[Path, Path], list[str]]:
    def command(source: Path, out: Path) -> list[str]:
        script = str(ROOT / "convert/imagenet_to_mds.py")
        return [
            sys.executable,
            script,
            "--source",
            str(source),
            "--out",
            str(out),
            "--splits",
            "train",
            "--part",
            "0/1",
            *SIZE,
            *options,
        ]

    return command


def mosaicml(source: Path, out: Path) -> list[str]:
    module = ["-m", "streaming.vision.convert.imagenet", "--progress_bar", "0", "--size_limit", str(SHARD_BYTES)]
    return [sys.executable, *module, "--in_root", str(source), "--out_root", str(out), "--splits", "train"]


CONTESTANTS = [
    Contestant("mosaicml, copy", mosaicml),
    Contestant("ours, copy + full check, 1 worker", ours("--workers", "1")),
    Contestant("ours, copy + full check, 2 workers", ours("--workers", "2")),
    Contestant("ours, max=400, 1 worker", ours("--workers", "1", "--resize", "max=400")),
    Contestant("ours, max=400, 2 workers", ours("--workers", "2", "--resize", "max=400")),
]


def main(argv: Sequence[str]) -> int:
    """Run the benchmark, print its table, and write its JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, metavar="DIR")
    parser.add_argument("--copies", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="bench-convert-", dir=args.images.resolve().parent) as scratch:
        source, single = Path(scratch) / "source", Path(scratch) / "single"
        images, image_bytes = link_copies(args.images, source, args.copies)
        link_copies(args.images, single, 1, limit=1)
        report = measure(source, single, Path(scratch) / "out", args.rounds, images=images, image_bytes=image_bytes)
        report["stages_us_per_image"] = stages(source)
    report["projection_minutes"] = projection(report["contestants"])
    print_report(report)
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


def link_copies(images: Path, source: Path, copies: int, limit: int | None = None) -> tuple[int, int]:
    """Hard-link the training images `copies` times; return their count and bytes."""
    files = sorted(path for path in (images / "train").rglob("*") if path.is_file())[:limit]
    if not files:
        raise SystemExit(f"benchmarks/convert.py: {images}/train holds no files; give an ImageFolder")
    for number in range(copies):
        for path in files:
            target = source / "train" / path.parent.name / f"{number}_{path.stem}.jpeg"
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, target)
    return len(files) * copies, sum(path.stat().st_size for path in files) * copies


def measure(source: Path, single: Path, out: Path, rounds: int, *, images: int, image_bytes: int) -> dict[str, Any]:
    """Time all contestants in interleaved rounds: over all the images, and over one, which is the start-up."""
    full: dict[str, list[float]] = {contestant.name: [] for contestant in CONTESTANTS}
    startup: dict[str, list[float]] = {contestant.name: [] for contestant in CONTESTANTS}
    with tqdm(total=rounds * len(CONTESTANTS), unit=" runs", disable=None) as bar:
        for number in range(rounds):
            order = CONTESTANTS if number % 2 == 0 else CONTESTANTS[::-1]
            for contestant in order:
                startup[contestant.name].append(seconds(contestant, single, out))
                full[contestant.name].append(seconds(contestant, source, out))
                bar.update()
    rows = {}
    for name, walls in full.items():
        start = statistics.median(startup[name])
        rates = [images / (wall - start) for wall in walls]
        rows[name] = {
            "images_per_sec": spread(rates),
            "mb_per_sec": spread([rate * image_bytes / images / 1e6 for rate in rates]),
            "startup_s": start,
            "wall_s": spread(walls),
        }
    return {
        "images": images,
        "bytes_per_image": image_bytes / images,
        "rounds": rounds,
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in ("mosaicml-streaming", "pillow", "torch")},
        "contestants": rows,
    }


def seconds(contestant: Contestant, source: Path, out: Path) -> float:
    """The wall time of one run of a contestant."""
    shutil.rmtree(out, ignore_errors=True)
    started = time.perf_counter()
    done = subprocess.run(contestant.command(source, out), capture_output=True, text=True, timeout=900)
    elapsed = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"{contestant.name} failed:\n{done.stderr[-2000:]}")
    return elapsed


def spread(values: Sequence[float]) -> dict[str, float]:
    """Minimum, median and maximum."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def stages(source: Path) -> dict[str, float]:
    """Where one worker's time goes: microseconds of CPU per image, median of five passes over at most 240 images."""
    paths = sorted(source.rglob("*.jpeg"))[:240]
    resize, form = parse_resize("max=400", quality=90, subsampling="4:2:0"), ShardFormat(2**26)
    data = [path.read_bytes() for path in paths]
    encoded = [encode_sample(number, jpeg, 0) for number, jpeg in enumerate(data)]
    return {
        "read": microseconds(lambda: [path.read_bytes() for path in paths], len(paths)),
        "check (decode every coefficient)": microseconds(lambda: [check_image(jpeg) for jpeg in data], len(paths)),
        "check and resize to max=400": microseconds(lambda: [check_image(jpeg, resize) for jpeg in data], len(paths)),
        "lay out and hash the shard": microseconds(lambda: encode_shard(0, encoded, form), len(paths)),
    }


def microseconds(work: Callable[[], Any], count: int) -> float:
    """CPU time of `work` for each of `count` images."""
    times = []
    for _ in range(5):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return statistics.median(times) / count * 1e6


def projection(rows: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Minutes for ImageNet on named instances, CPU alone, at the efficiency that 2 workers have here."""
    found: dict[str, dict[str, float]] = {}
    for what in ("copy + full check", "max=400"):
        one = rows[f"ours, {what}, 1 worker"]["images_per_sec"]["median"]
        for instance, vcpus in INSTANCES.items():
            per_sec = one * vcpus * HYPERTHREAD_FRACTION
            found.setdefault(instance, {})[what] = IMAGENET_IMAGES / per_sec / 60
    return found


def lines_of(report: dict[str, Any]) -> Iterator[str]:
    """The report, fit to be read."""
    rows = report["contestants"]
    base = rows["mosaicml, copy"]["images_per_sec"]["median"]
    yield f"{report['images']:,} images of {report['bytes_per_image'] / 1e3:.0f} KB, {report['rounds']} rounds"
    yield f"{'':36}{'images/s (min - max)':>26}{'MB/s':>7}{'ratio':>7}{'start':>8}"
    for name, row in rows.items():
        rate = row["images_per_sec"]
        figures = f"{rate['median']:,.0f} ({rate['min']:,.0f} - {rate['max']:,.0f})"
        mb = row["mb_per_sec"]["median"]
        yield f"{name:36}{figures:>26}{mb:7.0f}{rate['median'] / base:7.2f}{row['startup_s']:7.1f}s"
    for what in ("copy + full check", "max=400"):
        one, two = (rows[f"ours, {what}, {n}"]["images_per_sec"]["median"] for n in ("1 worker", "2 workers"))
        yield f"2 workers are {two / one:.2f} times as fast as 1 ({what})"
    yield "CPU time of one image, microseconds:"
    for stage, us in report["stages_us_per_image"].items():
        yield f"  {stage:34}{us:8.0f}"
    yield f"projected for ImageNet ({IMAGENET_IMAGES:,} images), minutes of CPU work; the network may bind before:"
    for instance, minutes in report["projection_minutes"].items():
        yield f"  {instance:16}" + "".join(f"{what}: {value:6.1f}   " for what, value in minutes.items())


def print_report(report: dict[str, Any]) -> None:
    """Print the report."""
    print("\n".join(lines_of(report)))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
