"""What smaller images cost and save: bytes an image, and images/s of decoding them for training, for each --resize.

    python benchmarks/storage.py --images DIR [--rounds 5] [--json FILE]

DIR is an ImageFolder with train/. Its files are stored by the converter's own code in each way; then the training's
decoder cuts random crops of 224 px out of them, in one process, the ways interleaved. Use the ratios: they hold on
other machines, the images/s do not.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch
from tqdm import tqdm

from convert.images import check_image, parse_resize
from imagestream.decode.backends import open_decoder
from imagestream.decode.crops import random_resized_crop, sample_draws

WAYS = (None, "max=500", "max=400", "short=256")
CROP_PX, BATCH = 224, 32


def main(argv: Sequence[str]) -> int:
    """Run the benchmark, print its table, and write its JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, metavar="DIR")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    originals = [path.read_bytes() for path in sorted((args.images / "train").rglob("*")) if path.is_file()]
    if not originals:
        raise SystemExit(f"benchmarks/storage.py: {args.images}/train holds no files; give an ImageFolder")
    decoder = open_decoder("auto")
    stored = {way: store(originals, way) for way in tqdm(WAYS, unit=" ways", desc="store", disable=None)}
    rates: dict[str | None, list[float]] = {way: [] for way in WAYS}
    for number in tqdm(range(args.rounds), unit=" rounds", disable=None):
        for way in WAYS if number % 2 == 0 else WAYS[::-1]:
            rates[way].append(images_per_sec(decoder, stored[way], epoch=number))
    report = {
        "decoder": decoder.version,
        "images": len(originals),
        "rounds": args.rounds,
        "ways": {str(way or "original"): row(stored[way], rates[way], rates[None]) for way in WAYS},
    }
    print(f"{report['images']} images, {report['rounds']} rounds, {report['decoder']}, one core, {CROP_PX} px")
    print(f"{'':12}{'KB/image':>10}{'images/s (min - max)':>26}{'ratio':>8}")
    for way, values in report["ways"].items():
        rate = values["images_per_sec"]
        figures = f"{rate['median']:,.0f} ({rate['min']:,.0f} - {rate['max']:,.0f})"
        print(f"{way:12}{values['bytes_per_image'] / 1e3:10.1f}{figures:>26}{values['ratio_to_original']:8.2f}")
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


def store(originals: Sequence[bytes], way: str | None) -> list[bytes]:
    """The images as the converter stores them."""
    resize = parse_resize(way, quality=90, subsampling="4:2:0") if way else None
    return [check_image(data, resize).data for data in originals]


def images_per_sec(decoder: Any, images: Sequence[bytes], *, epoch: int) -> float:
    """One pass of random crops over the images, batch by batch, as a loader worker does it."""
    started = time.perf_counter()
    for start in range(0, len(images), BATCH):
        batch = images[start : start + BATCH]
        views = [
            random_resized_crop(
                width,
                height,
                sample_draws(0, epoch, start + number),
                scale=(0.08, 1.0),
                ratio=(3 / 4, 4 / 3),
                flip_prob=0.5,
            )
            for number, (width, height) in enumerate(decoder.image_sizes(batch))
        ]
        decoder.decode_batch(batch, views, CROP_PX, bounded=True)
    return len(images) / (time.perf_counter() - started)


def row(images: Sequence[bytes], rates: Sequence[float], base: Sequence[float]) -> dict[str, Any]:
    """The figures of one way; the ratio is the median over the rounds of this way's rate to the originals'."""
    ratios = [rate / original for rate, original in zip(rates, base, strict=True)]
    return {
        "bytes_per_image": sum(map(len, images)) / len(images),
        "images_per_sec": {"min": min(rates), "median": statistics.median(rates), "max": max(rates)},
        "ratio_to_original": statistics.median(ratios),
    }


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
