"""What a conversion by many machines costs beside the making of shards: processor time on one core.

    python benchmarks/conversion_costs.py [--rounds 5] [--json FILE]

infra/plan/conversion.py builds on these figures. Listing: class folders on a disk, and tars in S3, whose bytes are all
read on the way. Planning: order, hash and shards. Reading from S3: an image at a time, several at once. Upload: a
shard of 64 MB. Completing: the journal's records, counted and written to files.parquet. The S3 server is a local one
(requirements-dev.txt), whose own time does not count. What is measured is the processor time of this process.
"""

import argparse
import io
import json
import logging
import os
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

# Started as a script, Python puts this file's own folder on the path; the packages are one above.
_HERE = Path(__file__).resolve().parent
if Path(sys.path[0] or ".").resolve() == _HERE:
    sys.path[0] = str(_HERE.parent)

from convert.files_table import write_files_table
from convert.journal import Journal, Record
from convert.plan import ShardTask, choose_samples, listing_hash, plan_split
from convert.sources import Listing, Sample, open_source
from convert.tally import KeptImage, ShardResult, SplitTally
from convert.workers import _read_all
from imagestream.mds.shards import DEFAULT_HASHES, ShardFormat
from imagestream.storage.local import LocalPlace
from imagestream.storage.places import open_place
from tests.s3_server import running_s3_server

IMAGE_BYTES, SHARD_BYTES = 113_100, 64 << 20
IMAGES_A_CLASS = 150
IN_S3, IN_FOLDERS, PLANNED, RECORDED = 2_400, 30_000, 300_000, 60_000


def main(argv: Sequence[str]) -> int:
    """Run the benchmark, print its table, and write its JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    logging.disable(logging.WARNING)
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-costs-") as folder:
        for name in ("s3", "folders", "journal"):
            Path(folder, name).mkdir()
        with running_s3_server(Path(folder, "s3")) as server:
            os.environ.update(server.env)
            works = contestants(Path(folder), f"s3://{server.bucket}")
            for _ in range(args.rounds):
                for name, (count, work) in works.items():
                    rates.setdefault(name, []).append(count / processor_s(work))
    print(f"on one core, {args.rounds} rounds: median (min - max)")
    for name, found in rates.items():
        print(f"{name:44}{statistics.median(found):12,.0f} ({min(found):,.0f} - {max(found):,.0f})")
    if args.json:
        args.json.write_text(json.dumps(rates, indent=2) + "\n")
    return 0


def processor_s(work: Callable[[], object]) -> float:
    """Seconds of processor time that this process, all of its threads, takes for it."""
    started = time.process_time()
    work()
    return time.process_time() - started


def contestants(folder: Path, bucket: str) -> dict[str, tuple[float, Callable[[], object]]]:
    """What is measured: name -> how many images or MB, and the work."""
    save_tars(bucket)
    save_folders(folder / "folders")
    samples = made_up(PLANNED)
    output, tasks = save_journal(folder / "journal")
    place, shard = open_place(f"{bucket}/out"), os.urandom(SHARD_BYTES)
    files, tars = open_source(f"{bucket}/source").files, listed(f"{bucket}/source").samples
    return {
        "list class folders on a disk, images/s": (IN_FOLDERS, lambda: listed(str(folder / "folders"))),
        "list tars in S3, MB/s": (IN_S3 * IMAGE_BYTES / 1e6, lambda: listed(f"{bucket}/source")),
        "plan, images/s": (PLANNED, lambda: plan(samples)),
        "read from tars in S3, images/s": (
            IN_S3,
            lambda: sum(len(data) for data in _read_all(list(enumerate(tars)), files, {})),
        ),
        "upload shards to S3, MB/s": (SHARD_BYTES / 1e6, lambda: place.write("shard", shard)),
        "complete, images/s": (RECORDED, lambda: complete(output, tasks)),
    }


def listed(source: str) -> Listing:
    """The listing of a source's training split."""
    opened = open_source(source)
    return opened.listing("train", opened.class_names(["train"]))


def plan(samples: tuple[Sample, ...]) -> None:
    """What becomes of a listing before the first shard."""
    listing = Listing("train", samples, {})
    listing = choose_samples(listing, names=["a"], chosen=["a"], seed=0, per_class=None)
    listing_hash(listing, ["a"])
    form = ShardFormat(SHARD_BYTES, DEFAULT_HASHES, None)
    plan_split(listing, seed=0, form=form, stored_bytes=[sample.size_bytes for sample in samples])


def complete(output: LocalPlace, tasks: Sequence[ShardTask]) -> None:
    """What the last of several machines does out of the journal."""
    tally = SplitTally(1000)
    for _, record in Journal(output, "train").get_each(task.index for task in tasks):
        assert record
        tally.add(record.result)
    write_files_table(output, {"train": tasks}, kept=())


def made_up(count: int) -> tuple[Sample, ...]:
    """Samples with names as ImageNet has them."""
    names = [f"train/n{n // IMAGES_A_CLASS:08}/n{n // IMAGES_A_CLASS:08}_{n}.JPEG" for n in range(count)]
    return tuple(Sample(name, 0, IMAGE_BYTES, name) for name in names)


def save_tars(bucket: str) -> None:
    """Class tars of noise in a bucket."""
    body = os.urandom(IMAGE_BYTES)
    for label in range(IN_S3 // IMAGES_A_CLASS):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for n in range(IMAGES_A_CLASS):
                member = tarfile.TarInfo(f"n{label:08}_{n}.JPEG")
                member.size = len(body)
                tar.addfile(member, io.BytesIO(body))
        open_place(f"{bucket}/source").write(f"train/n{label:08}.tar", buffer.getvalue())


def save_folders(root: Path) -> None:
    """Class folders of tiny files."""
    for sample in made_up(IN_FOLDERS):
        path = root / sample.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def save_journal(folder: Path) -> tuple[LocalPlace, list[ShardTask]]:
    """The records of a conversion whose shards are all made."""
    output, tasks, images = LocalPlace(folder), [], SHARD_BYTES // IMAGE_BYTES
    samples = made_up(RECORDED)
    for start in range(0, RECORDED, images):
        numbered = tuple(enumerate(samples))[start : start + images]
        tasks.append(ShardTask("train", start // images, numbered))
        result = ShardResult("train", tasks[-1].index, len(numbered))
        result.kept = [KeptImage(n, n % 1000, 500, 375, IMAGE_BYTES, f"{n:064x}") for n, _ in numbered]
        Journal(output, "train").add(Record(result, "train/shard", 1, ""))
    return output, tasks


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
