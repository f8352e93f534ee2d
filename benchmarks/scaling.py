"""How much faster more ranks are: images/s of short training runs on 1, 2, 4, ... processes, interleaved.

    python benchmarks/scaling.py --data SHARDS [--ranks 1,2,4,8] [--rounds 3] [--json FILE] [key.path=value ...]
    python benchmarks/scaling.py --runs runs/one-node/run.json runs/two-nodes/run.json [--json FILE]

Each rank has as many images a step (--images-a-rank), as when a batch grows with the machine (weak scaling). What runs
is train/main.py by yamls/local.yaml; its run.json says the speed, without evaluation and checkpoints. The first
WARM_UP steps of a run do not count. Runs made elsewhere, over several machines, are compared by their run.json.
infra/plan/plan.py --measured takes the file.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from demo.processes import exit_on_signals, started
from infra.launch.node import count_gpus
from train.record.curves import intervals

SECONDS_FOR_A_RUN = 1800
WARM_UP = 10  # steps: workers start, kernels are chosen and memory is taken; of a shorter run all but the last one


def main(argv: Sequence[str]) -> int:
    """Run the benchmark, print its table, and write its JSON."""
    exit_on_signals()
    args = parse(argv)
    found = [json.loads(path.read_text()) for path in args.runs] if args.runs else measure(args)
    report = summary(found)
    print("\n".join(lines(report)))
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the command's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")
    parser.add_argument("--data", metavar="SHARDS", help="a folder of MDS shards, with train/ and val/")
    parser.add_argument("--runs", nargs="+", type=Path, metavar="RUN_JSON", help="compare these instead of running any")
    parser.add_argument("--ranks", help="numbers of processes, such as 1,2,4; by default powers of 2 up to the GPUs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30, help=f"of each run; the first {WARM_UP} do not count")
    parser.add_argument("--images-a-rank", type=int, default=256, help="of each step")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_intermixed_args(argv)
    if bool(args.data) == bool(args.runs):
        parser.error("give --data to measure, or --runs to compare")
    return args


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The run.json of each run: every number of ranks in every round, in turning order."""
    ranks = [int(word) for word in args.ranks.split(",")] if args.ranks else up_to(max(1, count_gpus()))
    records = []
    for number in range(args.rounds):
        for count in ranks if number % 2 == 0 else ranks[::-1]:
            records.append(train(args, count))
            print(f"round {number + 1}, {count} ranks: {speed(records[-1])['images_per_sec']:,.1f} images/s")
    return records


def up_to(most: int) -> list[int]:
    """Powers of two up to `most`, and it."""
    return sorted({2**power for power in range(most.bit_length()) if 2**power <= most} | {most})


def train(args: argparse.Namespace, ranks: int) -> dict[str, Any]:
    """One short run; return its record."""
    with tempfile.TemporaryDirectory(prefix="scaling-") as folder:
        settings = [
            *(f"data.local={args.data}", f"checkpoint.save_folder={folder}", "checkpoint.save_interval=1000ep"),
            *(f"global_batch_size={args.images_a_rank * ranks}", f"max_duration={args.steps}ba"),
            *("eval_interval=1000ep", "scheduler.t_warmup=0ba", "loggers.file=false", "algorithms=[]"),
        ]
        command = [str(Path(sys.executable).parent / "composer"), "-n", str(ranks), "train/main.py", "yamls/local.yaml"]
        command += [*settings, *args.overrides]
        log = Path(folder) / "output.txt"
        with started(command, log, cwd=ROOT, env={"OMP_NUM_THREADS": "1"}) as process:
            try:
                failed = process.wait(SECONDS_FOR_A_RUN) != 0
            except subprocess.TimeoutExpired:
                raise SystemExit(f"benchmarks/scaling.py: {ranks} ranks took over {SECONDS_FOR_A_RUN} s") from None
        if failed:
            raise SystemExit(f"benchmarks/scaling.py: {ranks} ranks failed:\n{log.read_text()[-5000:]}")
        record: dict[str, Any] = json.loads((Path(folder) / "run.json").read_text())
        return record


def speed(record: dict[str, Any]) -> dict[str, Any]:
    """`images_per_sec` and `data_wait_fraction` of a run after its first WARM_UP steps, from its curve.

    Raises:
        SystemExit: it has no step after them.
    """
    curve = record["curve"]
    warm_up = min(WARM_UP, curve[-1]["batch"] - 1) if curve else 0
    began_after = [0, *(point["batch"] for point in curve)]  # a point's interval begins where the one before ended
    found = intervals([point for point, began in zip(curve, began_after, strict=False) if began >= warm_up > 0], most=1)
    if not found:
        raise SystemExit("benchmarks/scaling.py: a run shows no speed after its first steps; give more --steps")
    return found[0]


def summary(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Images/s by the number of ranks, and each one's share of linear scaling from the fewest."""
    rates: dict[int, list[float]] = {}
    waits: dict[int, list[float]] = {}
    for record in records:
        ranks, found_of_run = record["hardware"]["world_size"], speed(record)
        rates.setdefault(ranks, []).append(found_of_run["images_per_sec"])
        waits.setdefault(ranks, []).append(found_of_run["data_wait_fraction"] or 0.0)
    fewest = min(rates)
    one = statistics.median(rates[fewest]) / fewest
    rows = [
        {
            "ranks": ranks,
            "images_per_sec_rounds": found,
            "efficiency": statistics.median(found) / ranks / one,
            "data_wait_fraction": max(waits[ranks]),
        }
        for ranks, found in sorted(rates.items())
    ]
    first = records[0]
    return {
        "device": first["hardware"]["device"],
        "model": first["config"]["model"]["name"],
        "image_px": first["config"]["data"]["crop_size"],
        "versions": first["versions"],
        "rows": rows,
    }


def lines(report: dict[str, Any]) -> list[str]:
    """The table."""
    head = f"{report['model']} at {report['image_px']} px on {report['device']}, torch {report['versions']['torch']}"
    table = [head, f"{'ranks':>6}{'images/s (min - max)':>28}{'efficiency':>12}{'waits for data':>16}"]
    for row in report["rows"]:
        found = row["images_per_sec_rounds"]
        spread = f"{statistics.median(found):,.1f} ({min(found):,.1f} - {max(found):,.1f})"
        table.append(
            f"{row['ranks']:>6}{spread:>28}{100 * row['efficiency']:>11.0f}%{100 * row['data_wait_fraction']:>15.1f}%"
        )
    return table


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
