"""Time our loader with each augmentation, beside torchvision's and timm's pipelines with the same one, interleaved.

    python benchmarks/augmentations.py --images DIR [--policies trivial_augment,...] [--resize short=256]
                                       [--size 224] [--rounds 5] [--copies 8] [--json FILE]

DIR is an ImageFolder with train/. Its images are stored once by --resize, and all loaders read these JPEGs: ours out of
shards, the others as torchvision's ImageFolder does, by PIL. Each loader is a process on the same core with one worker;
then each round has every loader read all the images, in turn. Rates are images per second of that core's time, which
other programs on the machine disturb less than the clock's. A ratio is the median over the rounds of two rates of the
same round, with minimum and maximum: of ours to our own without an augmentation, and to each peer's with the same one.
timm is that of `make test-examples` (build/examples), and is left out where it is not there. Composer's own functions
run in torchvision's pipeline.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.loader import Contest, last_cores, measure, ratio_of, spread
from benchmarks.loader_stores import Stores
from convert.images import check_image, parse_resize

OURS, PEERS = "ours", ("torchvision_pipeline", "timm_pipeline")
NONE = "none"
POLICIES: dict[str, tuple[str, ...]] = {
    NONE: PEERS,
    "torchvision_randaugment": PEERS[:1],
    "trivial_augment": PEERS[:1],
    "auto_augment": PEERS[:1],
    "timm_randaugment": PEERS[1:],
    "three_augment": PEERS[1:],
    "color_jitter": PEERS,
    "randaugment": PEERS[:1],
    "augmix": PEERS[:1],
}
"""Which peers have what; benchmarks/loader_peers.py says what each calls it."""


def main(argv: Sequence[str]) -> int:
    """Run the benchmark, print its table, and write its JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, metavar="DIR")
    parser.add_argument("--policies", default=",".join(POLICIES), metavar="NAMES")
    parser.add_argument("--resize", default="short=256")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--copies", type=int, default=8)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    policies = list(dict.fromkeys([NONE, *args.policies.split(",")]))
    contests = list(contests_of(policies, args.resize, args.size))
    with tempfile.TemporaryDirectory(prefix="bench-augment-") as scratch:
        stores = Stores(resized(args.images, Path(scratch, "resized"), args.resize), Path(scratch), args.copies)
        folder, shards = stores.folder, stores.for_loader(OURS, "original", {})
        data = {contest: shards if contest.loader.startswith(OURS) else folder for contest in contests}
        pythons = {contest.loader: sys.executable for contest in contests}
        answers = measure(contests, data, pythons, args.rounds)
    rounds = {
        contest.loader: [answer["images"] / answer["cpu_s"] for answer in found] for contest, found in answers.items()
    }
    rows = [row(policy, rounds) for policy in policies]
    report = {"images": stores.count, "rounds": args.rounds, "core": last_cores(1), "policies": rows}
    print("\n".join(lines_of(report)))
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


def contests_of(policies: Sequence[str], storage: str, size: int) -> Iterator[Contest]:
    """Ours and its peers, policy by policy."""
    has_timm = (ROOT / "build/examples/timm").is_dir()
    for policy in policies:
        for loader in (OURS, *POLICIES[policy]):
            if loader != "timm_pipeline" or has_timm:
                yield Contest(f"{loader}:{policy}", storage, size, 1)


def resized(images: Path, out: Path, resize: str) -> Path:
    """The ImageFolder with its images as the converter stores them."""
    wanted = parse_resize(resize, quality=90, subsampling="4:2:0")
    for path in sorted((images / "train").rglob("*")):
        if path.is_file():
            target = out / "train" / path.parent.name / f"{path.stem}.jpeg"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(check_image(path.read_bytes(), wanted).data)
    return out


def row(policy: str, rounds: dict[str, list[float]]) -> dict[str, Any]:
    """The figures of one policy."""
    ours = rounds[f"{OURS}:{policy}"]

    def ratio(other: str) -> dict[str, float] | None:
        return (
            spread([rate / base for rate, base in zip(ours, rounds[other], strict=True)]) if other in rounds else None
        )

    return {
        "policy": policy,
        "images_per_sec": spread(ours),
        "us": 1e6 / spread(ours)["median"],
        "ratio_to_none": ratio(f"{OURS}:{NONE}"),
        **{peer: spread(rounds[name]) if (name := f"{peer}:{policy}") in rounds else None for peer in PEERS},
        **{f"ratio_to_{peer}": ratio(f"{peer}:{policy}") for peer in PEERS},
    }


def lines_of(report: dict[str, Any]) -> Iterator[str]:
    """The report, fit to be read."""
    yield f"{report['images']:,} images, {report['rounds']} rounds, one core"
    yield f"{'policy':25}{'images/core s (min - max)':>27}{'us':>7}{'to none':>22}" + "".join(
        f"{peer + ': images/core s':>37}{'ours to it':>22}" for peer in PEERS
    )
    for found in report["policies"]:
        rate = found["images_per_sec"]
        rates = f"{rate['median']:,.0f} ({rate['min']:,.0f} - {rate['max']:,.0f})"
        peers = "".join(
            f"{found[peer]['median']:37,.0f}{ratio_of(found['ratio_to_' + peer]):>22}" if found[peer] else " " * 59
            for peer in PEERS
        )
        yield f"{found['policy']:25}{rates:>27}{found['us']:7.0f}{ratio_of(found['ratio_to_none']):>22}{peers}".rstrip()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
