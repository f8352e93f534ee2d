"""Convert ImageNet, in any layout that it comes in, to MDS shards on a disk or in S3.

    python convert/imagenet_to_mds.py --source /data/imagenet --out s3://bucket/imagenet

reads the images (a folder for each class, a CSV with a path and a label in each row, the original tars, WebDataset
tars, Kaggle's, Hugging Face's or Tiny-ImageNet's files, or MDS shards), decodes every one once, and writes

    <out>/train/shard.00000.mds ...  <out>/train/index.json  (val the same)  <out>/manifest.json

A JPEG is stored byte for byte, unless --resize is given and it is larger. Files that are no JPEG, or a CMYK one, are
re-encoded and listed in the manifest. The index.json files are written last, so a dataset is complete as soon as it
can be read. The output depends on the images and the options alone, not on --workers, on the layout, on where it is
written, or on how often the conversion was interrupted: the same command resumes where it was. Several machines can
share a conversion: give each its --part.
"""

import contextlib
import hashlib
import logging
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

# `python convert/imagenet_to_mds.py` puts convert/ on the path, where the package `convert` cannot be found.
_HERE = Path(__file__).resolve().parent
if Path(sys.path[0] or ".").resolve() == _HERE:
    sys.path[0] = str(_HERE.parent)

from convert.arguments import Args, parse_args
from convert.claims import SessionOverError
from convert.conversion import convert, warnings_of
from convert.files_table import FilesTableError
from convert.journal import FOLDER, RecordsGoneError
from convert.lock import LockedError, only_converter
from convert.looking import look
from convert.machines import OtherPlanError
from convert.sources import SourceError, open_source
from convert.sources.base import DEFAULT_SPLITS
from convert.state import BadImagesError, Conversion, OutputError, UsageError
from convert.together import convert_part
from convert.workers import WorkerError
from imagestream.mds.manifest import ManifestError
from imagestream.mds.names import shown
from imagestream.storage.errors import PlaceError
from imagestream.storage.local import LocalPlace
from imagestream.storage.places import open_place
from imagestream.storage.protocol import Place

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED, EXIT_TERMINATED = 0, 1, 2, 130, 143


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(__doc__ or "", argv)
    to_terminal = logging.StreamHandler(sys.stderr)
    to_terminal.setFormatter(_ShownFormatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[to_terminal])
    logging.getLogger("botocore").setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, _exit_on_sigterm)
    try:
        run(args)
    except (UsageError, SourceError, ManifestError, OtherPlanError) as error:
        return _report(error, EXIT_USAGE)
    except (
        *(BadImagesError, FilesTableError, LockedError, OutputError, RecordsGoneError, SessionOverError, WorkerError),
    ) as error:
        return _report(error, EXIT_FAILED)
    except PlaceError as error:
        full = ". Free some space or choose another --out; a dataset takes as much room as its images"
        return _report(f"{error}{full * error.is_full}", EXIT_FAILED)
    except KeyboardInterrupt:
        return _report("interrupted", EXIT_INTERRUPTED)
    return EXIT_OK


class _ShownFormatter(logging.Formatter):
    """Messages hold names of files that others chose."""

    def format(self, record: logging.LogRecord) -> str:
        return shown(super().format(record))


def run(args: Args) -> None:
    """Convert, while no other converter works on the same output but those that share this conversion."""
    output = _open_output(args)
    _refuse_out_inside_source(args.source, output)
    spool = _spool(args, output)
    labels = Path(args.labels) if args.labels else None
    source = open_source(args.source, args.layout, spool=spool, share=args.share, labels=labels)
    splits = source.splits(args.splits)
    _check_reachable(output)
    if args.part:
        conversion = convert_part(args, source, splits, output)
    else:
        with only_converter(output, args.out):
            conversion = look(args, source, splits, output)
            convert(conversion)
    if args.spool is None:
        _remove_spool(spool)
    if conversion:
        _summarise(conversion)
    else:
        print(shown(f"part {args.part}: nothing left to do, {args.out} is complete"))


def _open_output(args: Args) -> Place:
    try:
        output = open_place(args.out)
    except PlaceError as error:
        raise UsageError(f"--out {error}") from error
    return LocalPlace(output.path, several_writers=True) if args.part and output.path is not None else output


def _check_reachable(output: Place) -> None:
    """Raise PlaceError now rather than after an hour's work where the output cannot be written."""
    if output.path is not None:
        output.check_writable()
        return
    from imagestream.storage.s3 import reach  # here, since boto3 takes long to import for those who need no bucket

    reach(output)


def _refuse_out_inside_source(source: str, output: Place) -> None:
    if output.path is not None:
        inside = "://" not in source and output.path.resolve().is_relative_to(Path(source).resolve())
    else:
        inside = f"{output}/".startswith(f"{source.rstrip('/')}/")
    if inside:
        raise UsageError(f"--out {output} lies inside --source {source}; choose a place outside of it")


def _spool(args: Args, output: Place) -> Path:
    """Where sources that cannot be read in place are unpacked: the same place when the command is repeated."""
    if args.spool:
        return Path(args.spool)
    if output.path is not None:
        return output.path / FOLDER / "spool"
    name = hashlib.sha256(f"{os.path.abspath(args.source)} {args.out}".encode()).hexdigest()[:16]
    if args.part:  # machines may be processes of one host, and the first to end removes its own
        name += f"-{args.part.index}-of-{args.part.count}"
    return Path(tempfile.gettempdir()) / f"convert-spool-{os.getuid()}-{name}"


def _remove_spool(spool: Path) -> None:
    shutil.rmtree(spool, ignore_errors=True)
    if spool.parent.name == FOLDER:
        with contextlib.suppress(OSError):  # there was none, or something else lies in it
            spool.parent.rmdir()


def _summarise(conversion: Conversion) -> None:
    args, images, elapsed_s = conversion.args, 0, time.monotonic() - conversion.started
    for split in conversion.splits:
        tally = split.tally
        if split.complete:
            remade = f", {len(tally.entries)} of them made anew" if tally.entries else ""
            done = f"{split.name}: complete, {len(split.tasks):,} shards{remade}"
            print(shown(f"{done}; convert/audit.py checks their content"))
            continue
        images += tally.samples + len(tally.refused)
        reused = f", {tally.reused_shards:,} of them written before" if tally.reused_shards else ""
        resized = f"{tally.resized:,} resized, " if args.resize else ""
        made = f"{split.name}: {tally.samples:,} samples in {len(tally.entries):,} shards{reused}"
        counts = f"{resized}{len(tally.mended):,} mended, {len(tally.refused):,} refused"
        print(shown(f"{made}, {tally.shard_bytes / 1e6:,.1f} MB; {counts}"))
        for warning in warnings_of(split, conversion.names):
            print(shown(f"warning: {split.name}: {warning}"), file=sys.stderr)
    if args.part:
        print(f"part {args.part}: this machine completed the dataset")
    elif images:
        print(f"{images:,} images in {elapsed_s:.1f} s, {images / elapsed_s:,.0f} images/s")
    _warn_without_val(conversion)
    key = "data.remote" if args.out.startswith("s3://") else "data.local"
    print(shown(f"next: python train/main.py yamls/local.yaml {key}={shlex.quote(args.out)}"))


def _warn_without_val(conversion: Conversion) -> None:
    there = {split.name for split in conversion.splits} | set(conversion.manifest.splits if conversion.manifest else ())
    lacking = [split for split in DEFAULT_SPLITS if split not in there]
    if lacking:
        lacks = (
            f"warning: {conversion.args.out} has no {' and no '.join(lacking)}, which train/main.py looks for; convert "
            f"it too, or name another split with {' and '.join(f'data.{split}_split' for split in lacking)} ('' for "
            "none)"
        )
        print(shown(lacks), file=sys.stderr)


def _exit_on_sigterm(signum: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(EXIT_TERMINATED)  # an exception, so that the workers are ended and the lock is given back


def _report(problem: object, status: int) -> int:
    print(shown(f"imagenet_to_mds: {problem}"), file=sys.stderr)
    return status


if __name__ == "__main__":
    raise SystemExit(main())
