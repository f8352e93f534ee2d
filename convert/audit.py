"""Check a dataset of MDS shards from the first byte to the last, and say everything that is wrong with it.

    python convert/audit.py /data/imagenet-mds
    python convert/audit.py s3://bucket/imagenet --decode 0.01 --report audit-report

reads every shard once and checks: each index.json; each shard's size and hashes; the bounds of each record; that
every image decodes; labels, ids and class counts against manifest.json; files.parquet against the images;
fingerprints; files that do not belong.
Images that are stored twice are warnings, since ImageNet has some: within a split, in two splits, or with two
labels. Shards of other writers, which have no manifest, are checked as far as that goes; images that the converter
would have mended or refused are warnings there. Nothing is changed.
"""

import argparse
import logging
import sys
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

# `python convert/audit.py` puts convert/ on the path, where the package `convert` cannot be found.
_HERE = Path(__file__).resolve().parent
if Path(sys.path[0] or ".").resolve() == _HERE:
    sys.path[0] = str(_HERE.parent)

from tqdm import tqdm

from convert.auditing.files_table import check_files_table
from convert.auditing.findings import Finding, Findings, Kind
from convert.auditing.index import UNFINISHED_FOLDER, SplitIndex, find_splits, leftovers, read_index
from convert.auditing.report import ReportError, check_report_folder, write_report
from convert.auditing.shards import Rules, ShardAudit, ShardToAudit, audit_shard, deadly_images, joined
from convert.auditing.splits import (
    Audited,
    SplitRows,
    check_manifest,
    check_records,
    class_counts,
    duplicates,
    range_of,
)
from convert.pool import WorkersDied, in_order
from imagestream.cores import available_cores
from imagestream.mds.manifest import MANIFEST_NAME, Manifest, ManifestError, parse_manifest
from imagestream.mds.names import printable, shown
from imagestream.storage.errors import PlaceError
from imagestream.storage.places import open_place
from imagestream.storage.protocol import Place, read_if_there

EXIT_OK, EXIT_FINDINGS, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130


class UsageError(ValueError):
    """There is nothing here that can be audited, or the command asks for what cannot be done."""


@dataclass(frozen=True, slots=True)
class Args:
    """The command line, parsed."""

    dataset: str
    decode: float  # the fraction of images to decode
    report: Path | None
    source: Path | None
    workers: int


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    args = parse_args(argv)
    logging.getLogger("botocore").setLevel(logging.WARNING)
    try:
        started = time.monotonic()
        audited = audit(args)
        elapsed_s = time.monotonic() - started
        if args.report:
            write_report(audited, args.report, source=args.source)
    except (UsageError, ReportError) as error:
        return _stop(error, EXIT_USAGE)
    except WorkersDied as died:
        how = died.deaths[0].how if died.deaths else "how is not known"
        why = f"a worker process was killed ({how}) by none of the images, perhaps because memory ran out"
        return _stop(f"{why}; use fewer --workers", EXIT_FINDINGS)
    except KeyboardInterrupt:
        return _stop("interrupted; not all of the dataset was looked at", EXIT_INTERRUPTED)
    print_result(audited, args, elapsed_s=elapsed_s)
    return EXIT_FINDINGS if audited.findings.errors else EXIT_OK


def parse_args(argv: Sequence[str] | None) -> Args:
    """Parse the command line; on a mistake argparse prints it and exits with status 2."""
    parser = argparse.ArgumentParser(
        prog="convert/audit.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        epilog="S3: credentials as boto3 finds them; set S3_ENDPOINT_URL for a server other than AWS.\n"
        "Exit status: 0 nothing found, or warnings only; 1 findings, each on a line; 2 the command needs correcting.",
    )
    add = parser.add_argument
    add("dataset", metavar="DATASET", help="a local folder, or s3://bucket/prefix")
    add(
        "--decode",
        type=_fraction,
        default=1.0,
        metavar="all|F",
        help="decode all images (default), or a fraction of them such as 0.01, always the same ones; 0 decodes none",
    )
    add("--report", type=Path, metavar="DIR", help="write DIR/index.html, with pictures")
    add("--source", type=Path, metavar="DIR", help="the folder of the original images; the report shows mended ones")
    words = "processes (default: %(default)s, all cores)"
    add("--workers", type=_positive, default=available_cores(), metavar="N", help=words)
    args = Args(**vars(parser.parse_args(argv)))
    if args.source and not args.report:
        parser.error("--source is for the report; add --report DIR")
    return args


def audit(args: Args) -> Audited:
    """The whole audit: look at what is there, read every shard, hold all of it against each other."""
    files = _open(args.dataset)
    if args.report:
        check_report_folder(args.report, files)
    findings = Findings()
    try:
        splits, manifest_bytes = find_splits(files), read_if_there(files, MANIFEST_NAME)
    except OSError as error:
        raise UsageError(f"{args.dataset} cannot be read: {error}") from error
    if not splits and manifest_bytes is None:
        raise UsageError(_nothing_there(args.dataset, files))
    ours = manifest_bytes is not None
    manifest = _parse_manifest(manifest_bytes, findings) if manifest_bytes is not None else None
    indexes = _read_indexes(files, splits, findings, ours=ours)
    if manifest:
        findings.add(check_manifest(manifest, indexes))
    rules = Rules(len(manifest.classes) if manifest else None, args.decode, ours)
    rows, decoded = _read_shards(files, indexes, rules, findings, workers=args.workers)
    for split in rows:
        findings.add(check_records(split, manifest))
    if ours:
        findings.add(check_files_table(files, rows))
    findings.add(duplicates(rows))
    return Audited(args.dataset, files, manifest, rows, findings, decoded, args.decode, args.workers)


def _open(dataset: str) -> Place:
    try:
        files = open_place(dataset)
        if files.path is None:
            from imagestream.storage.s3 import reach  # here, since boto3 takes long to import

            reach(files)
    except PlaceError as error:
        raise UsageError(str(error)) from error
    if files.path is not None and not files.path.is_dir():
        raise UsageError(f"{dataset} is not a folder; give the one that holds {MANIFEST_NAME} or train/index.json")
    return files


def _nothing_there(dataset: str, files: Place) -> str:
    names = files.names()
    if UNFINISHED_FOLDER in names:
        return f"{dataset} holds an unfinished conversion and no split that is whole; finish the conversion first"
    held = ", ".join(map(printable, names[:5])) or "nothing"
    return f"{dataset} has no index.json, at its root or one folder below; it holds {held}"


def _parse_manifest(text: bytes, findings: Findings) -> Manifest | None:
    try:
        return parse_manifest(text, where=MANIFEST_NAME)
    except ManifestError as error:
        _, *faults = str(error).splitlines()
        findings.add(Finding(Kind.MANIFEST, MANIFEST_NAME, fault.strip()) for fault in faults)
        return None


def _read_indexes(files: Place, splits: Iterable[str], findings: Findings, *, ours: bool) -> dict[str, SplitIndex]:
    indexes = {}
    for split in splits:
        indexes[split], faults = read_index(files, split, ours=ours)
        findings.add(faults)
    try:
        findings.add(leftovers(files, indexes.values()))
    except OSError as error:
        findings.add([Finding(Kind.LEFTOVER, "the dataset's folders", f"cannot be listed: {error}")])
    return indexes


def _read_shards(
    files: Place, indexes: dict[str, SplitIndex], rules: Rules, findings: Findings, *, workers: int
) -> tuple[list[SplitRows], int]:
    """Read every shard; return what is known of the records of each split, and how many images were decoded."""
    tasks = [task for index in indexes.values() for task in _tasks(index)]
    parts: dict[str, list[ShardAudit]] = {split: [] for split in indexes}
    results = _audits(tasks, files, rules, workers=max(1, min(workers, len(tasks))))
    total = sum(index.samples for index in indexes.values())
    # None: no bar without a terminal.
    with closing(results), tqdm(total=total, desc="audit", unit=" images", smoothing=0.05, disable=None) as bar:
        for result in results:
            findings.add(result.findings)
            result.findings = []
            parts[result.task.split].append(result)
            bar.set_postfix(findings=findings.errors, refresh=False)
            bar.update(result.task.entry.samples)
    for audits in parts.values():
        audits.sort(key=lambda audit: audit.task.number)
    rows = [SplitRows(indexes[split], joined(part.rows for part in audits)) for split, audits in parts.items()]
    return rows, sum(part.decoded for audits in parts.values() for part in audits)


def _audits(
    tasks: Iterable[ShardToAudit], files: Place, rules: Rules, *, workers: int
) -> Generator[ShardAudit, None, None]:
    """The audit of each shard. An image that kills its worker is found, and the rest continues without it."""
    waiting = iter(tasks)
    while True:
        try:
            yield from in_order(partial(audit_shard, files=files, rules=rules), waiting, workers=workers)
            return
        except WorkersDied as died:
            yield from died.finished
            deadly = deadly_images(died, files, rules)
            if not deadly:
                raise
            rules = replace(rules, deadly=rules.deadly | deadly)
            waiting = chain(died.unfinished, waiting)


def _tasks(index: SplitIndex) -> Iterable[ShardToAudit]:
    position = 0
    for number, entry in index.shards.items():
        yield ShardToAudit(index.split, number, position, entry)
        position += entry.samples


def print_result(audited: Audited, args: Args, *, elapsed_s: float) -> None:
    """Print each finding on a line, a line for each split, and a summary."""
    for line in audited.findings.lines():
        print(line)
    for split in audited.splits:
        print(describe(split))
    if not audited.manifest:
        print(f"no {MANIFEST_NAME} to compare with: classes, counts and fingerprints were taken as they are")
    if args.report:
        print(shown(f"report: {args.report / 'index.html'}"))
    print(
        f"{printable(args.dataset)}: {_counted(audited.findings.errors, 'finding')}, "
        f"{_counted(audited.findings.warnings, 'warning')}; {_counted(audited.images, 'image')} read, "
        f"{audited.decoded:,} decoded, in {elapsed_s:.1f} s, {audited.images / elapsed_s:,.0f} images/s"
    )


def describe(split: SplitRows) -> str:
    """A split in a line."""
    index, counts = split.index, [count for count in class_counts(split.rows) if count]
    hashes = sorted({name for entry in index.shards.values() for name in entry.stored.hashes})
    classes = f"{len(counts):,} classes of {range_of(counts)}" if counts else "no labels"
    return (
        f"{printable(split.split) or 'the dataset'}: {index.samples:,} samples in {_counted(index.listed, 'shard')}, "
        f"{index.stored_bytes / 1e6:,.1f} MB, {classes}; hashes: {', '.join(hashes) or 'none'}"
    )


def _counted(count: int, one: str) -> str:
    return f"{count:,} {one}" if count == 1 else f"{count:,} {one}s"


def _fraction(text: str) -> float:
    if text == "all":
        return 1.0
    try:
        fraction = float(text)
    except ValueError:
        fraction = -1.0
    if not 0 <= fraction <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is neither 'all' nor a fraction from 0 to 1, such as 0.01")
    return fraction


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _stop(problem: object, status: int) -> int:
    print(shown(f"audit: {problem}"), file=sys.stderr)
    return status


if __name__ == "__main__":
    raise SystemExit(main())
