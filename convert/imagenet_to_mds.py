"""Convert ImageNet, a folder of JPEGs, to MDS shards on a disk or in S3.

    python convert/imagenet_to_mds.py --source /data/imagenet --out s3://bucket/imagenet

reads /data/imagenet/{train,val}/<class>/<file>, decodes every image once, and writes

    <out>/train/shard.00000.mds ...  <out>/train/index.json  (val the same)  <out>/manifest.json

A JPEG is stored byte for byte. Files that are no JPEG, or a CMYK one, are re-encoded and listed in the manifest.
The index.json files are written last, so a dataset is complete as soon as it can be read. The output depends
on the source and the options alone, not on --workers or on where it is written.
"""

import logging
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from types import FrameType
from typing import NoReturn

# `python convert/imagenet_to_mds.py` puts convert/ on the path, where the package `convert` cannot be found.
_HERE = Path(__file__).resolve().parent
if Path(sys.path[0] or ".").resolve() == _HERE:
    sys.path[0] = str(_HERE.parent)

from tqdm import tqdm

from convert.arguments import Args, parse_args
from convert.manifest import (
    MANIFEST_NAME,
    ClassInfo,
    Manifest,
    ManifestError,
    Options,
    RefusedFile,
    parse_manifest,
)
from convert.outputs import LocalOutput, Output, OutputError, open_output
from convert.shards import INDEX_NAME, plan_shards, shuffled_ids
from convert.sources import Listing, Source, SourceError, open_source
from convert.tally import SplitTally
from convert.workers import ShardResult, ShardTask, WorkerError, build_shards

logger = logging.getLogger("convert")

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED, EXIT_TERMINATED = 0, 1, 2, 130, 143
BAD_IMAGES_SHOWN = 50
LOG_EVERY_S = 30


class UsageError(ValueError):
    """The command cannot do what was asked for; nothing has been touched."""


class BadImagesError(RuntimeError):
    """There are images that cannot be converted, and --on-bad says to fail."""


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(__doc__ or "", argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("botocore").setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, _exit_on_sigterm)
    try:
        convert(args)
    except (UsageError, SourceError, ManifestError) as error:
        return _report(error, EXIT_USAGE)
    except (BadImagesError, OutputError, WorkerError) as error:
        return _report(error, EXIT_FAILED)
    except KeyboardInterrupt:
        return _report("interrupted; what this run wrote is removed", EXIT_INTERRUPTED)
    return EXIT_OK


def convert(args: Args) -> None:
    """The whole conversion: look, plan, build, publish."""
    source, output = open_source(args.source), _open_output(args.out)
    _refuse_out_inside_source(args.source, output)
    splits = source.splits(args.splits)
    output.check()
    existing = _existing_manifest(output, args.out)
    _refuse_existing_splits(output, args, splits, existing)

    names = source.class_names(splits)
    classes = tuple(ClassInfo(index=i, wnid=name, name=name) for i, name in enumerate(names))
    kept = _without(existing, splits)
    if kept is not None:
        _refuse_other_classes(kept, names, args.out)
    listings = [source.listing(split, names) for split in splits]
    for listing in listings:
        _describe(listing, names)

    started = time.monotonic()
    clear(output, splits, kept)
    try:
        tallies = _build(args, source, output, listings, num_classes=len(names))
        _publish(args, output, classes, tallies, kept)
    except BaseException:
        _clear_after_failure(output, splits, kept)
        raise
    _summarise(args, tallies, elapsed_s=time.monotonic() - started)


def clear(output: Output, splits: Iterable[str], kept: Manifest | None) -> None:
    """Remove the files of these splits, and their part of the manifest; `kept` is what stays of it.

    The index goes first: without it nobody takes the rest for a dataset.
    """
    for split in splits:
        files = [f"{split}/{name}" for name in output.our_files(split)]
        index = f"{split}/{INDEX_NAME}"
        if index in files:
            output.delete([index])
        output.delete([name for name in files if name != index])
    if kept is not None:
        output.write(MANIFEST_NAME, kept.to_json())
    else:
        output.delete([MANIFEST_NAME])


def plan(listings: Iterable[Listing], *, seed: int, size_limit_bytes: int) -> list[ShardTask]:
    """The shards of all splits: which samples each one holds, in which order."""
    tasks = []
    for listing in listings:
        ids = shuffled_ids(listing.samples, split=listing.split, seed=seed)
        sizes = [listing.samples[sample_id].size_bytes for sample_id in ids]
        for index, run in enumerate(plan_shards(sizes, size_limit_bytes)):
            samples = tuple((ids[position], listing.samples[ids[position]]) for position in run)
            tasks.append(ShardTask(listing.split, index, samples))
    return tasks


def _build(
    args: Args, source: Source, output: Output, listings: Sequence[Listing], *, num_classes: int
) -> dict[str, SplitTally]:
    """Build the shards of all splits."""
    tasks = plan(listings, seed=args.seed, size_limit_bytes=args.size_limit)
    workers = min(args.workers, len(tasks))
    logger.info("%d shards to build with %d workers", len(tasks), workers)
    _warn_of_little_space(output, listings)
    tallies = {listing.split: SplitTally(num_classes) for listing in listings}
    results = build_shards(
        tasks,
        source=source,
        output=output,
        on_bad=args.on_bad,
        size_limit_bytes=args.size_limit,
        workers=workers,
    )
    with closing(results), Progress(sum(len(listing.samples) for listing in listings)) as progress:
        for result in results:
            tallies[result.split].add(result)
            progress.add(result)
    refused = [file for tally in tallies.values() for file in tally.refused]
    if refused and args.on_bad == "fail":
        raise BadImagesError(_bad_images_message(refused))
    for split, tally in tallies.items():
        if not tally.samples:
            raise BadImagesError(f"{split}: not one image can be used; the first: {_bad_line(tally.refused[0])}")
    return tallies


def _publish(
    args: Args,
    output: Output,
    classes: tuple[ClassInfo, ...],
    tallies: dict[str, SplitTally],
    kept: Manifest | None,
) -> None:
    """Write the manifest and then, last of all, the index files that make the splits readable."""
    options = Options(on_bad=args.on_bad, size_limit_bytes=args.size_limit)
    infos = {split: tally.info(seed=args.seed, options=options) for split, tally in tallies.items()}
    manifest = Manifest.of(classes, {**(kept.splits if kept else {}), **infos})
    output.write(MANIFEST_NAME, manifest.to_json())
    for split, tally in tallies.items():
        output.write(f"{split}/{INDEX_NAME}", tally.index_json())


class Progress:
    """Images done, rate and time left: a bar on a terminal, else a line now and then."""

    def __init__(self, total: int) -> None:
        self._bar = tqdm(total=total, unit=" images", smoothing=0.05, disable=None)  # None: off without a terminal
        self._total, self._done = total, 0
        self._started = self._last_line = time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.close()

    def add(self, result: ShardResult) -> None:
        self._bar.update(result.images)
        self._done += result.images
        now = time.monotonic()
        if self._bar.disable and now - self._last_line >= LOG_EVERY_S:
            self._last_line = now
            per_sec = self._done / (now - self._started)
            left_min = (self._total - self._done) / per_sec / 60
            logger.info(
                "%s of %s images, %.0f images/s, %.0f min left",
                f"{self._done:,}",
                f"{self._total:,}",
                per_sec,
                left_min,
            )


def _open_output(out: str) -> Output:
    try:
        return open_output(out)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _refuse_out_inside_source(source: str, output: Output) -> None:
    if isinstance(output, LocalOutput) and output.root.resolve().is_relative_to(Path(source).resolve()):
        raise UsageError(f"--out {output.root} lies inside --source {source}; choose a folder outside of it")


def _existing_manifest(output: Output, out: str) -> Manifest | None:
    text = output.read(MANIFEST_NAME)
    return None if text is None else parse_manifest(text, where=f"{out}/{MANIFEST_NAME}")


def _refuse_existing_splits(output: Output, args: Args, splits: Iterable[str], existing: Manifest | None) -> None:
    if args.overwrite:
        return
    for split in splits:
        files = output.our_files(split)
        if files or (existing and split in existing.splits):
            seen = f"{len(files):,} files of a conversion, such as {files[0]}" if files else "an entry in the manifest"
            raise UsageError(f"--out {args.out} already has {split}: {seen}. Replace it with --overwrite")


def _without(existing: Manifest | None, splits: Sequence[str]) -> Manifest | None:
    """The existing manifest less these splits; None where nothing is left of it."""
    others = {split: info for split, info in existing.splits.items() if split not in splits} if existing else {}
    return Manifest.of(existing.classes, others) if existing and others else None


def _refuse_other_classes(kept: Manifest, names: Sequence[str], out: str) -> None:
    known = [info.wnid for info in kept.classes]
    if known != list(names):
        gone, new = sorted(set(known) - set(names)), sorted(set(names) - set(known))
        raise UsageError(
            f"--out {out} holds {', '.join(sorted(kept.splits))} with {len(known):,} classes, the source has "
            f"{len(names):,}: {_some('missing from the source', gone)}{_some('new in the source', new)}"
            "labels would mean different things in the splits. Use the same classes, or another --out"
        )


def _some(what: str, names: Sequence[str]) -> str:
    return f"{what}: {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}; " if names else ""


def _describe(listing: Listing, names: Sequence[str]) -> None:
    size_mb = sum(sample.size_bytes for sample in listing.samples) / 1e6
    logger.info(
        "%s: %s files, %s classes, %.1f MB", listing.split, f"{len(listing.samples):,}", f"{len(names):,}", size_mb
    )
    for what, count in listing.ignored.items():
        logger.warning("warning: %s: ignored %s %s", listing.split, f"{count:,}", what + ("s" if count > 1 else ""))
    used = {sample.label for sample in listing.samples}
    empty = [name for index, name in enumerate(names) if index not in used]
    if empty:
        logger.warning("warning: %s: %d of the classes have no files, such as %s", listing.split, len(empty), empty[0])


def _warn_of_little_space(output: Output, listings: Iterable[Listing]) -> None:
    if isinstance(output, LocalOutput):
        needed = sum(sample.size_bytes for listing in listings for sample in listing.samples)
        free = shutil.disk_usage(output.root).free
        if free < needed:
            logger.warning("warning: %s has %.0f MB free, %.0f MB are needed", output.root, free / 1e6, needed / 1e6)


def _clear_after_failure(output: Output, splits: Iterable[str], kept: Manifest | None) -> None:
    try:
        clear(output, splits, kept)
    except OutputError as error:
        logger.warning("warning: some shards of this run are left behind: %s", error)


def _bad_images_message(refused: Sequence[RefusedFile]) -> str:
    lines = [_bad_line(file) for file in refused[:BAD_IMAGES_SHOWN]]
    if len(refused) > BAD_IMAGES_SHOWN:
        lines.append(f"... and {len(refused) - BAD_IMAGES_SHOWN:,} more")
    return (
        f"{len(refused):,} bad image(s) found before the conversion stopped; nothing is left in --out:\n  "
        + "\n  ".join(lines)
        + "\nRepair or remove them, or leave out all such files with --on-bad skip"
    )


def _bad_line(file: RefusedFile) -> str:
    return f"{file.path}: {file.reason}"


def _summarise(args: Args, tallies: dict[str, SplitTally], *, elapsed_s: float) -> None:
    images = 0
    for split, tally in tallies.items():
        images += tally.samples + len(tally.refused)
        print(
            f"{split}: {tally.samples:,} samples in {len(tally.entries):,} shards, {tally.shard_bytes / 1e6:,.1f} MB; "
            f"{len(tally.mended):,} mended, {len(tally.refused):,} refused"
        )
        if tally.refused:
            logger.warning(
                "warning: %s: left out %s bad images, such as %s; all are listed in %s",
                split,
                f"{len(tally.refused):,}",
                _bad_line(tally.refused[0]),
                MANIFEST_NAME,
            )
    print(f"{images:,} images in {elapsed_s:.1f} s, {images / elapsed_s:,.0f} images/s")
    key = "data.remote" if args.out.startswith("s3://") else "data.local"
    print(f"next: python train/main.py yamls/local.yaml {key}={shlex.quote(args.out)}")


def _exit_on_sigterm(signum: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(EXIT_TERMINATED)  # an exception, so that this run's files are removed on the way out


def _report(problem: object, status: int) -> int:
    print(f"imagenet_to_mds: {problem}", file=sys.stderr)
    return status


if __name__ == "__main__":
    raise SystemExit(main())
