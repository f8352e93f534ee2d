"""Decode thousands of damaged images, and augment them, under AddressSanitizer and UBSan.

    python tests/sanitize/run.py [--images 12000]

Exits 0 when neither had anything to report. Boxes, target sizes, where they shrink, threads and instruction sets vary.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from imagestream.decode.build import compile_sources  # noqa: E402  # found only now
from tests.jpegs import SAMPLINGS, jpeg  # noqa: E402  # found only now
from tests.unit.test_convert_fuzz import mutants  # noqa: E402  # found only now

SANITIZE = ("-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")


def whole_images() -> list[bytes]:
    """Every sampling, at sizes about the edges of its blocks."""
    rng = random.Random(0)
    edges = (1, 7, 16, 17, 33, 90)
    return [
        jpeg(
            rng.choice(edges), rng.choice(edges), sampling, seed, progressive=progressive, restart_marker_blocks=blocks
        )
        for seed, blocks in enumerate((0, 1, 3))
        for sampling in SAMPLINGS
        for progressive in (False, True)
    ]


def damaged(count: int) -> Iterator[bytes]:
    """Whole images, then mutants: flipped bits, cut ends, exchanged segments, rewritten headers."""
    rng, sources = random.Random(1), whole_images()
    yield from sources
    yield from mutants(count // 2)
    for _ in range(count - count // 2 - len(sources)):
        data = bytearray(rng.choice(sources))
        for _ in range(rng.choice((1, 1, 2, 8))):
            data[rng.randrange(len(data))] = rng.randrange(256)
        yield bytes(data[: rng.randrange(len(data))] if rng.random() < 0.2 else data)


def write_corpus(path: Path, images: Iterable[bytes]) -> None:
    """Write images as harness.c reads them."""
    with path.open("wb") as out:
        for data in images:
            out.write(len(data).to_bytes(4, "little") + data)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=12000)
    count, started = parser.parse_args().images, time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        harness, corpus = Path(folder, "harness"), Path(folder, "corpus")
        compile_sources(harness, (*SANITIZE, str(Path(__file__).with_name("harness.c"))))
        write_corpus(corpus, damaged(count))
        environment = os.environ | {"ASAN_OPTIONS": "detect_leaks=1:allocator_may_return_null=1"}
        done = subprocess.run([str(harness), str(corpus)], env=environment)
    print(f"exit status {done.returncode}, {time.monotonic() - started:.0f} s")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
