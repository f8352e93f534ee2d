"""Time from a loader's construction to its first batch, out of S3 with nothing cached; ours beside MosaicML's.

    python benchmarks/cold_start.py --data s3://BUCKET/imagenet [--rounds 5] [--workers 2] [--json FILE]

DATA is what convert/imagenet_to_mds.py wrote; S3_ENDPOINT_URL and the usual AWS variables say where it is. Each time is
of a process of its own, imports not counted, and of a batch of 64 at 224 px. The loaders take turns.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

PEERS_FILE = Path(__file__).resolve().with_name("loader_peers.py")
LOADERS = ("ours", "mosaicml")
SECONDS = 300


def main(argv: Sequence[str]) -> int:
    """Run the benchmark, print its table, and write its JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, metavar="s3://BUCKET/PATH")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    took: dict[str, list[float]] = {loader: [] for loader in LOADERS}
    for number in tqdm(range(args.rounds), unit=" rounds", disable=None):
        for loader in LOADERS if number % 2 else LOADERS[::-1]:
            took[loader].append(first_batch_s(loader, args.data, args.workers))
    ratios = [other / mine for mine, other in zip(took["ours"], took["mosaicml"], strict=True)]
    print(f"seconds to the first batch of 64, {args.rounds} rounds, {args.workers} workers: median (min - max)")
    for loader, seconds in took.items():
        print(f"{loader:10}{statistics.median(seconds):6.2f} ({min(seconds):.2f} - {max(seconds):.2f})")
    print(f"ratio     {statistics.median(ratios):6.2f} ({min(ratios):.2f} - {max(ratios):.2f})")
    if args.json:
        args.json.write_text(json.dumps({"workers": args.workers, "first_batch_s": took}, indent=2) + "\n")
    return 0


def first_batch_s(loader: str, data: str, workers: int) -> float:
    """One start of a loader."""
    command = [sys.executable, str(PEERS_FILE), loader, data, "224", str(workers), "--first-batch"]
    with tempfile.TemporaryDirectory(prefix="bench-cold-") as cache:
        environment = os.environ | {"TMPDIR": cache}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS)
    if done.returncode:
        raise SystemExit(f"{loader} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    answer: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return answer["first_batch_s"]


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
