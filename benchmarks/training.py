"""Train on a GPU from each loader, beside the same training on synthetic data already on the GPU; interleaved.

    python benchmarks/training.py --images DIR [--loaders ours,mosaicml] [--storage original,short=256] [--sizes 224]
                                  [--batch 256] [--rounds 5] [--cores 12] [--copies 100] [--json FILE]
                                  [key.path=value ...]

DIR is an ImageFolder with train/; its files are stored --copies times as shards. What trains is yamls/full.yaml's model
with its algorithms, optimizer and precision, by Composer's Trainer, at one size at a time; key.path=value change it.
Augmentations that our loader applies are its alone; the heading names them.
Each round trains an epoch from each loader in turn, and reads an epoch without training. The first WARM_UP batches of
an epoch are not timed.

`synthetic` is one batch of noise that lies on the device, used again and again: what the device can do. A
loader's `share` of it is the median over the rounds of its rate to synthetic's in the same round. `alone` is what
arrives on the device of ours, normalised, when nothing trains on it. --cores pins everything to so many cores, as a
machine with more GPUs has for each. All loaders have as many workers, which data.num_workers=N changes.
"""

import argparse
import gc
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch
from composer import Trainer
from composer.core import Callback, DataSpec, State
from composer.loggers import Logger
from composer.utils import dist, get_device
from tqdm import tqdm

from benchmarks import loader_peers
from benchmarks.loader import last_cores, ratio_of, spread
from benchmarks.loader_stores import Stores
from benchmarks.step_trainers import trainer_of
from imagestream.data.batches import RawBatch
from imagestream.loader import Normalize, ToDevice
from train.config.run_config import Config, load_config
from train.data import dataset_files, train_loader, train_spec, workers_of
from train.process import precision_on, torch_device

WARM_UP = 20  # batches, so that what workers have made ready before is used up
OURS, PEER, SYNTHETIC = "ours", "mosaicml", "synthetic"
CLASSES = 1000
NOTHING = torch.zeros(0)


@dataclass
class Contest:
    """One loader on one storage at one size.

    Attributes:
        spec: its data, for Composer.
        trainer: what trains on it.
        clock: of the trainer.
        rates: images/s of each round, by what was done: `trained`, and `alone` for ours.
    """

    loader: str
    storage: str
    size: int
    spec: DataSpec
    trainer: Trainer
    clock: "Clock"
    rates: dict[str, list[float]] = field(default_factory=lambda: {"trained": [], "alone": []})


class Clock(Callback):
    """Images/s from an epoch's batch WARM_UP to its last; of the device, which is waited for at both."""

    def __init__(self, batches: int) -> None:
        if batches <= WARM_UP:
            raise SystemExit(
                f"benchmarks/training.py: {batches} batches an epoch; {WARM_UP} are not timed: more --copies"
            )
        self.batches, self.seen, self.images = batches, 0, 0
        self.started = self.ended = 0.0

    def add(self, images: int) -> None:
        """Count a batch that has been used."""
        self.seen = self.seen % self.batches + 1
        self.images = self.images + images if self.seen > WARM_UP else 0
        if self.seen == WARM_UP:
            self.started = now()
        if self.seen == self.batches:
            self.ended = now()

    @property
    def images_per_sec(self) -> float:
        """Of the epoch that has just ended."""
        assert self.seen == self.batches, f"{self.seen} batches came of {self.batches}"
        return self.images / (self.ended - self.started)

    def batch_end(self, state: State, logger: Logger) -> None:
        self.add(int(state.timestamp.sample - (state.previous_timestamp or state.timestamp).sample))


class OneBatch:
    """A batch of noise that is on the device, again and again."""

    def __init__(self, batch_size: int, size: int, count: int, device: torch.device) -> None:
        self.batch_size, self.count = batch_size, count  # Composer asks for the first
        images = torch.randint(256, (batch_size, size, size, 3), dtype=torch.uint8, device=device)
        labels = torch.randint(CLASSES, (batch_size,), device=device)
        self.batch = RawBatch(images, labels, NOTHING, 0, NOTHING)

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[RawBatch]:
        return itertools.repeat(self.batch, self.count)


def now() -> float:
    """Seconds, once the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def main(argv: Sequence[str]) -> int:
    """Run the benchmark, print its table, and write its JSON."""
    args = parse(argv)
    if args.cores:
        os.sched_setaffinity(0, last_cores(args.cores))
    device = get_device(None)
    dist.initialize_dist(device, timeout=60)
    torch.backends.cudnn.benchmark = True
    loader_peers.BATCH = args.batch
    with tempfile.TemporaryDirectory(prefix="bench-training-") as scratch:
        stores = Stores(args.images, Path(scratch), args.copies)
        contests = list(contests_of(args, stores, device))
        measure(contests, args.rounds)
        report = summary(contests, args, device)
        print("\n".join(lines_of(report)))
        if args.json:
            args.json.write_text(json.dumps(report, indent=2) + "\n")
        sys.stdout.flush()
        for contest in contests:
            contest.trainer.close()
        contests.clear()
        gc.collect()  # ends the workers
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")
    parser.add_argument("--images", type=Path, required=True, metavar="DIR")
    parser.add_argument("--loaders", default=f"{OURS},{PEER}", metavar="NAMES", help=f"of {OURS}, {PEER}")
    parser.add_argument("--storage", default="original", metavar="NAMES", help="for ours: original or a --resize value")
    parser.add_argument("--sizes", default="224", metavar="PX")
    parser.add_argument("--batch", type=int, default=256, help="images of a step")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cores", type=int, help="default: all")
    parser.add_argument("--copies", type=int, default=100)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_intermixed_args(argv)
    if unknown := set(args.loaders.split(",")) - {OURS, PEER}:
        parser.error(f"--loaders: {', '.join(sorted(unknown))}: there are {OURS} and {PEER}")
    return args


def contests_of(args: argparse.Namespace, stores: Stores, device: Any) -> Iterator[Contest]:
    """Every loader at every size, and synthetic data."""
    for size in map(int, args.sizes.split(",")):
        for loader in args.loaders.split(","):
            for storage in args.storage.split(",") if loader == OURS else ["original"]:
                data = stores.for_loader(loader, storage, {})
                cfg = config(args, data)
                spec = our_spec(cfg, size, device) if loader == OURS else peer_spec(loader, data, cfg, size, device)
                yield Contest(loader, storage, size, spec, *trainer_for(spec, cfg, device))
        synthetic = OneBatch(args.batch, size, len(spec.dataloader), torch_device(device))
        spec = spec_of(synthetic, to_device_of(cfg, device))
        yield Contest(SYNTHETIC, "none", size, spec, *trainer_for(spec, cfg, device))


def config(args: argparse.Namespace, data: Path) -> Config:
    """full.yaml's; how large images are is Resolution's business."""
    place = [f"data.local={data}", "data.remote=null", "checkpoint.save_folder=unused"]
    place += [f"global_batch_size={args.batch}"]
    return load_config(ROOT / "yamls/full.yaml", [*place, *args.overrides])


def our_spec(cfg: Config, size: int, device: Any) -> DataSpec:
    """What train/main.py trains from."""
    loader = train_loader(
        cfg.data,
        dataset_files(cfg.data),
        seed=cfg.seed,
        batch_size=cfg.global_batch_size,
        resolution=lambda step: size,
        device=torch_device(device),
        algorithms=cfg.per_sample_algorithms,
    )
    return train_spec(loader, on_batch=lambda: None)


def peer_spec(loader: str, data: Path, cfg: Config, size: int, device: Any) -> DataSpec:
    """Another loader's batches, pinned as its authors do, copied and normalised as ours are."""
    batches: Any = loader_peers.LOADERS[loader](str(data), size, workers_of(cfg.data))()
    batches.pin_memory = torch.cuda.is_available()
    to_device = to_device_of(cfg, device)
    return spec_of(batches, lambda batch: to_device(RawBatch(batch[0], batch[1], NOTHING, 0, NOTHING)))


def to_device_of(cfg: Config, device: Any) -> ToDevice:
    return ToDevice(torch_device(device), Normalize(cfg.data.mean, cfg.data.std))


def spec_of(batches: Iterable[Any], transform: Callable[[Any], Any]) -> DataSpec:
    return DataSpec(batches, batch_transforms=transform, get_num_samples_in_batch=lambda batch: len(batch[1]))


def trainer_for(spec: DataSpec, cfg: Config, device: Any) -> tuple[Trainer, Clock]:
    """The recipe's training, without evaluation, checkpoints and loggers."""
    clock = Clock(len(spec.dataloader))
    cfg = cfg.model_copy(update={"max_duration": "1000ep"})
    trainer = trainer_of("ours", cfg, spec, device, callbacks=[clock])
    return trainer, clock


def measure(contests: Sequence[Contest], rounds: int) -> None:
    """Every contest in every round, in turning order; a first round, which starts workers, is not counted."""
    for number in tqdm(range(rounds + 1), unit=" rounds", disable=None):
        for contest in contests if number % 2 else contests[::-1]:
            contest.trainer.fit(duration="1ep")
            found = {"trained": contest.clock.images_per_sec}
            if contest.loader == OURS:
                found["alone"] = rate_alone(contest.spec, contest.clock)
            tqdm.write(f"round {number}: {contest.loader}, {contest.storage}, {contest.size} px: {found}")
            for name, rate in found.items() if number else ():
                contest.rates[name].append(rate)


def rate_alone(spec: DataSpec, clock: Clock) -> float:
    """Images/s that arrive on the device."""
    for batch in spec.dataloader:
        clock.add(len(spec.batch_transforms(batch)[1]))
    return clock.images_per_sec


def summary(contests: Sequence[Contest], args: argparse.Namespace, device: Any) -> dict[str, Any]:
    """The report."""
    base = {contest.size: contest.rates["trained"] for contest in contests if contest.loader == SYNTHETIC}
    cfg = config(args, Path("."))
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "cores": len(os.sched_getaffinity(0)),
        "workers": workers_of(cfg.data),
        "model": cfg.model.name,
        "algorithms": [algorithm.name for algorithm in cfg.algorithms if not algorithm.runs_in_loader],
        "augmentations": [algorithm.name for algorithm in cfg.algorithms if algorithm in cfg.per_sample_algorithms],
        "precision": precision_on(device, cfg).value,
        "batch": args.batch,
        "rounds": args.rounds,
        "versions": {"torch": torch.__version__},
        "rows": [
            {
                "loader": contest.loader,
                "storage": contest.storage,
                "size": contest.size,
                "images_per_sec": spread(contest.rates["trained"]),
                "share_of_synthetic": spread(
                    [mine / most for mine, most in zip(contest.rates["trained"], base[contest.size], strict=True)]
                ),
                "alone_images_per_sec": spread(contest.rates["alone"]) if contest.rates["alone"] else None,
            }
            for contest in contests
        ],
    }


def lines_of(report: dict[str, Any]) -> Iterator[str]:
    """The report, fit to be read."""
    yield (
        f"{report['model']} with {', '.join(report['algorithms'])}; "
        + (f"{', '.join(report['augmentations'])} in our loader; " if report["augmentations"] else "")
        + f"{report['precision']}, batch {report['batch']}; "
        f"{report['device']}, {report['cores']} cores, {report['workers']} workers; torch "
        f"{report['versions']['torch']}; {report['rounds']} rounds"
    )
    yield (
        f"{'loader':12}{'storage':12}{'px':>4}{'trains, images/s (min - max)':>32}{'share of synthetic':>26}"
        f"{'alone, images/s':>28}"
    )
    for row in report["rows"]:
        share, rate, alone = row["share_of_synthetic"], row["images_per_sec"], row["alone_images_per_sec"]
        yield (
            f"{row['loader']:12}{row['storage']:12}{row['size']:4}{rates(rate):>32}"
            f"{ratio_of(share):>26}" + (f"{rates(alone):>28}" if alone else "")
        ).rstrip()


def rates(found: dict[str, float]) -> str:
    """A spread, fit to be read."""
    return f"{found['median']:,.0f} ({found['min']:,.0f} - {found['max']:,.0f})"


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
