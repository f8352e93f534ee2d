"""Say what a dataset holds, read every sample of it once, and measure how many loader processes it needs.

    python train/check_data.py DATA                   the whole check; `make test-data DATA=...`
    python train/check_data.py DATA --convert-only    make shards of images, nothing else
    python train/check_data.py DATA --where           print the folder of the shards, do nothing

DATA is a folder of MDS shards, of images in train/<class>/ and val/<class>/, or of images in <class>/, a fifth of which
becomes val. Images are converted once, into runs/shards-<name>-<hash>, below the current folder.
"""

import argparse
import contextlib
import gc
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Started as a script, Python puts this file's own folder on the path; the packages are in the one above.
_HERE = Path(__file__).resolve().parent
if Path(sys.path[0] or ".").resolve() == _HERE:
    sys.path[0] = str(_HERE.parent)

from tqdm import tqdm

from imagestream.cores import available_cores
from imagestream.data.worker import stop_workers
from imagestream.mds.manifest import MANIFEST_NAME, Manifest, ManifestError, Spread, load_manifest
from imagestream.mds.names import shown
from train.config.run_config import Config, ConfigError, load_config

if TYPE_CHECKING:
    from imagestream.data.dataset_files import DatasetFiles

EXIT_REFUSED = 2
SPLITS = ("train", "val")  # of a folder of images
VAL_FRACTION = 0.2  # of a folder of images without splits
READ_BATCH, SPEED_BATCH = 64, 32
SECONDS_PER_SPEED = 4.0
GOOD_ENOUGH_FRACTION = 0.9  # of the fastest; a process more costs memory, and speeds vary by some per cent


class CheckError(ValueError):
    """The data cannot be used as it stands; the message says what was seen and what to do."""


def main(argv: Sequence[str]) -> int:
    """Run the command; return its exit code."""
    args = parse(argv)
    try:
        shards = find_shards(args.data)
        if args.where:
            print(shards)
            return 0
        if shards != args.data.absolute():
            convert_images(args.data, shards)
        if not args.convert_only:
            own = ["data.remote=null", f"data.local={json.dumps(str(shards))}", "checkpoint.save_folder=runs/unused"]
            check(load_config(args.config, [*args.overrides, *own]), shards)
    except (CheckError, ConfigError, ManifestError) as error:
        print(shown(f"check_data: {error}"), file=sys.stderr)
        return EXIT_REFUSED
    except KeyboardInterrupt:
        return 130
    finally:
        stop_workers()
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the command's arguments."""
    parser = argparse.ArgumentParser(
        prog="train/check_data.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, metavar="DATA", help="a folder of MDS shards or of images")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="e.g. data.crop_size=224")
    parser.add_argument("--config", default="yamls/local.yaml", help="sizes and splits (default: %(default)s)")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--convert-only", action="store_true", help="convert images unless that is done; nothing else")
    only.add_argument("--where", action="store_true", help="print the folder of the shards; nothing else")
    return parser.parse_intermixed_args(argv)


def find_shards(data: Path) -> Path:
    """Return the folder, absolute, where the shards of `data` are or will be."""
    if not data.is_dir():
        raise CheckError(f"{data} is not a folder; give a folder of shards or of images")
    if (data / MANIFEST_NAME).exists() or (data / "index.json").exists() or any(data.glob("*/index.json")):
        return data.absolute()
    missing = [f"{split}/" for split in SPLITS if not (data / split).is_dir()]
    if len(missing) == 1 or not any(entry.is_dir() for entry in data.iterdir()):
        raise CheckError(
            f"{data} has no {' and no '.join(missing)}; images have to lie in train/<class>/ and, some others of "
            "each class, in val/<class>/, or all of them in <class>/"
        )
    name = re.sub(r"[^A-Za-z0-9._-]", "_", data.resolve().name)
    path_hash = hashlib.sha256(os.fsencode(data.resolve())).hexdigest()[:8]
    return Path("runs").absolute() / f"shards-{name}-{path_hash}"


def convert_images(images: Path, shards: Path) -> None:
    """Convert a folder of images, unless an earlier call has come to its end; an index is what it writes last."""
    if (shards / MANIFEST_NAME).exists() and all((shards / split / "index.json").exists() for split in SPLITS):
        newer = newer_than(images, (shards / MANIFEST_NAME).stat().st_mtime)
        if newer is None:
            print(f"{images} was converted before, to {shards}, and has not changed since")
            return
        print(f"{newer} has changed since {images} was converted; it is converted again")
    command = [sys.executable, str(_HERE.parent / "convert/imagenet_to_mds.py")]
    command += ["--source", str(images), "--out", str(shards), "--overwrite", "--part", "0/1"]  # in an array job too
    if not has_splits(images):
        print(f"{images} has no train/ and no val/: {VAL_FRACTION:.0%} of the images are taken for val")
        command += ["--val-fraction", str(VAL_FRACTION)]
    code = subprocess.run(command, check=False).returncode
    if code:
        raise CheckError(
            f"the conversion failed with exit status {code}, for the reason above; to give it other options: "
            f"python convert/imagenet_to_mds.py --source {images} --out SHARDS --on-bad skip, then DATA=SHARDS"
        )


def has_splits(images: Path) -> bool:
    """Whether a folder of images has one of train/ and val/."""
    return any((images / split).is_dir() for split in SPLITS)


def newer_than(images: Path, time_s: float) -> Path | None:
    """Return a file or folder of the images that is newer than this (Unix time), if there is one.

    A folder is newer when a file was added to it, removed or renamed, whatever the time of the file itself.
    """
    for top in [images / split for split in SPLITS] if has_splits(images) else [images]:
        for folder, _, names in os.walk(top, followlinks=True):
            for name in ("", *names):
                path = Path(folder, name)
                with contextlib.suppress(FileNotFoundError):  # a link that leads nowhere: the converter says so
                    if path.stat().st_mtime > time_s:
                        return path
    return None


def check(cfg: Config, shards: Path) -> None:
    """Read the whole dataset and print what it holds; raise CheckError if it is not whole or `cfg` cannot use it."""
    # Imported only now: torch and Composer take seconds, which --where and --convert-only do without.
    from composer.utils import dist, get_device

    from imagestream.data.dataset import ShortEpochError
    from imagestream.decode.pillow import DecodeError
    from train.config.argument_keys import in_yaml
    from train.data import workers_of
    from train.facts import gather_facts
    from train.resume.start import RefusedError

    dist.initialize_dist(get_device("cpu"), timeout=cfg.dist_timeout)
    try:
        facts = gather_facts(cfg)
        manifest = load_manifest(shards) if (shards / MANIFEST_NAME).exists() else None
        print(f"data      {shards}, {facts.num_classes:,} classes, fingerprint {facts.fingerprint[:16]}")
        for split in (cfg.data.val_split, cfg.data.train_split):
            images_per_sec = check_split(cfg, facts.files, split, manifest, num_classes=facts.num_classes)
        one_worker = images_per_sec / max(1, workers_of(cfg.data))
        speeds = measure_speeds(cfg, facts.files, samples=facts.train_samples, images_per_sec=one_worker)
    except RefusedError as error:
        raise CheckError(in_yaml(error)) from error
    except (DecodeError, ShortEpochError) as error:  # a worker's comes with its traceback, the reason last
        raise CheckError(str(error).strip().splitlines()[-1]) from error
    print(speed_table(speeds, cfg.data.crop_size))


def check_split(
    cfg: Config, files: "DatasetFiles", split: str, manifest: Manifest | None, *, num_classes: int
) -> float:
    """Check a split's hashes, count and labels, print what it holds, and return the images/s of reading it."""
    index = files.index(split)
    check_hashes(Path(str(cfg.data.local)) / split, index["shards"])
    per_class, images_per_sec = read_once(cfg, files, split)
    if strange := sorted(label for label in per_class if not 0 <= label < num_classes):
        raise CheckError(f"{split}: labels {strange[:5]} are outside of 0 to {num_classes - 1}, the model's classes")
    counts = [per_class[label] for label in range(num_classes)]
    print(f"{split:9} {sum(counts):,} samples in {len(index['shards']):,} shards, each read and decoded once")
    print(f"{'':9} per class {min(counts):,} to {max(counts):,} (mean {sum(counts) / num_classes:,.1f})")
    if manifest and split in manifest.splits:
        info = manifest.splits[split]
        if {label: count for label, count in enumerate(info.histogram) if count} != per_class:
            raise CheckError(f"{split}: the labels read are not those that {MANIFEST_NAME} counts; convert again")
        print(f"{'':9} width {spread(info.width_px)} px, height {spread(info.height_px)} px")
        print(f"{'':9} image file {spread(info.image_bytes)} bytes")
        print(f"{'':9} {len(info.mended):,} mended, {len(info.refused):,} refused (listed in {MANIFEST_NAME})")
    return images_per_sec


def spread(values: Spread) -> str:
    """Return the range of a quantity."""
    return f"{values.min:,} to {values.max:,} (mean {values.mean:,.0f})"


def check_hashes(folder: Path, shards: Sequence[dict[str, Any]]) -> None:
    """Compare each shard with its hash in the index: Streaming checks what it downloads, not what lies there."""
    from streaming.base.hashing import get_hash, is_hash

    for shard in tqdm(shards, desc=f"hashes of {folder.name}", unit=" shards", leave=False, disable=None):
        path, hashes = folder / shard["raw_data"]["basename"], shard["raw_data"]["hashes"]
        if not path.exists():
            if shard.get("zip_data"):
                continue  # compressed; the reading below unpacks it
            raise CheckError(f"{path} is missing, though index.json lists it; copy or convert the dataset again")
        name = min(filter(is_hash, hashes), key=lambda name: not name.startswith("xx"), default=None)  # xxhash is fast
        if name and get_hash(name, path.read_bytes()) != hashes[name]:
            raise CheckError(f"{path} is damaged: its {name} is not that of index.json; copy or convert it again")


def read_once(cfg: Config, files: "DatasetFiles", split: str) -> tuple[Counter[int], float]:
    """Read and decode every sample of a split by the evaluation's loader; return the labels' counts and images/s."""
    import torch

    from train.data import eval_loader

    gc.collect()  # of earlier loaders: left to a worker forked below, it would try to end their processes there
    loader = eval_loader(cfg.data, files, split, batch_size=READ_BATCH, device=torch.device("cpu"))
    expected = files.count(split)
    per_class: Counter[int] = Counter()
    start = time.perf_counter()
    with tqdm(total=expected, desc=f"read {split}", unit=" images", leave=False, disable=None) as bar:
        for _, labels in loader:
            per_class.update(labels.tolist())
            bar.update(len(labels))
    if per_class.total() != expected:
        raise CheckError(f"{split}: {per_class.total():,} samples were read, index.json promises {expected:,}")
    return per_class, expected / (time.perf_counter() - start)


def measure_speeds(cfg: Config, files: "DatasetFiles", *, samples: int, images_per_sec: float) -> dict[int, float]:
    """Return images/s of the training's loader by its number of processes; `images_per_sec` is a guess for one."""
    most = available_cores()
    batch_size = max(1, min(SPEED_BATCH, samples // (4 * (most + 1))))
    speeds: dict[int, float] = {}
    # 0 comes last: it starts threads in this process, and workers forked after it would wait for them for ever.
    counts = [*sorted({count for count in (1, 2, 3, 4, 6, 8, 12, 16, 24) if count < most} | {most}), 0]
    for count in tqdm(counts, desc="speed", unit=" settings", leave=False, disable=None):
        steps = max(count, 1) * (1 + int(images_per_sec * SECONDS_PER_SPEED / batch_size))
        speeds[count] = measure_speed(cfg, files, count, batch_size=batch_size, steps=steps)
        images_per_sec = speeds[count] / max(count, 1)
    return dict(sorted(speeds.items()))


def measure_speed(cfg: Config, files: "DatasetFiles", workers: int, *, batch_size: int, steps: int) -> float:
    """Return images/s over `steps` batches of an epoch, without the time until the workers have given their first."""
    import torch

    from train.data import train_loader

    gc.collect()  # of earlier loaders: left to a worker forked below, it would try to end their processes there
    data = cfg.data.model_copy(update={"num_workers": workers, "aug_repeats": 1})  # which divides any batch
    loader = train_loader(
        data,
        files,
        algorithms=cfg.per_sample_algorithms,
        seed=cfg.seed,
        batch_size=batch_size,
        resolution=lambda step: data.crop_size,
        device=torch.device("cpu"),
    )
    # A short epoch ends well, an abandoned one leaves threads.
    loader.dataset.steps_per_epoch = steps = min(loader.dataset.steps_per_epoch, steps)
    images, start = 0, time.perf_counter()
    for number, (_, labels) in enumerate(loader, start=1):
        images += len(labels)
        if number == workers and number < steps:
            images, start = 0, time.perf_counter()
    return images / (time.perf_counter() - start)


def speed_table(speeds: dict[int, float], crop_size: int) -> str:
    """Return the speeds, and the number of workers to take: the fewest that are nearly the fastest."""
    enough = GOOD_ENOUGH_FRACTION * max(speeds.values())
    best = next((count for count in speeds if count and speeds[count] >= enough), 1)
    rows = "".join(f"{count:9}  {speed:8,.0f}\n" for count, speed in speeds.items())
    return (
        f"\n  workers  images/s   (training crops of {crop_size} px, nothing else running)\n{rows}\n"
        f"recommended for one GPU: data.num_workers={best}; several GPUs share the machine's cores"
    )


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
