"""The command line of `convert/imagenet_to_mds.py`."""

import argparse
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from convert.images import SUBSAMPLINGS, Resize, parse_resize
from convert.parts import Part, parse_part, part_of_array
from convert.sources import LAYOUTS
from convert.sources.share import Share
from convert.workers import OnBad
from imagestream.cores import available_cores
from imagestream.mds.names import printable
from imagestream.mds.shards import DEFAULT_HASHES, HASHES, MAX_SIZE_LIMIT_BYTES, ZSTD_LEVELS, ShardFormat

DEFAULT_QUALITY, DEFAULT_SUBSAMPLING = 90, "4:2:0"
DEFAULT_ZSTD_LEVEL = 3


@dataclass(frozen=True, slots=True)
class Args:
    """The command line, parsed."""

    source: str
    out: str
    layout: str | None
    splits: tuple[str, ...] | None
    classes: int | tuple[str, ...] | None
    per_class: int | None
    workers: int
    seed: int
    on_bad: OnBad
    resize: str | None
    quality: int
    subsampling: str
    size_limit: int
    compression: str | None
    hashes: tuple[str, ...]
    spool: str | None
    overwrite: bool
    exif: Literal["ignore", "apply"]
    class_order: Literal["words", "numbers"] | None
    val_fraction: float | None
    labels: str | None
    part: Part | None  # None: this machine converts alone

    @property
    def form(self) -> ShardFormat:
        return ShardFormat(self.size_limit, self.hashes, self.compression)

    @property
    def share(self) -> Share | None:
        """What is for validation, of a source without splits."""
        return None if self.val_fraction is None else Share(self.val_fraction, self.seed)

    @property
    def resizing(self) -> Resize | None:
        if self.resize is None:
            return None
        return parse_resize(self.resize, quality=self.quality, subsampling=self.subsampling)


def parse_args(description: str, argv: Sequence[str] | None) -> Args:
    """Parse the command line; on a mistake argparse prints it and exits with status 2."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    _add_places(parser)
    _add_choice_of_images(parser)
    _add_storage(parser)
    _add_way_of_working(parser)
    parser.epilog = (
        "S3: credentials as boto3 finds them; set S3_ENDPOINT_URL for a server other than AWS.\n"
        "Exit status: 0 converted; 1 failed (bad images, disk full, upload failed, another converter at work);\n"
        "2 the command needs correcting; 130, 143 interrupted. After 1, 130, 143 or a crash the same command resumes;\n"
        "one with --overwrite begins anew, so give it again without."
    )
    values = vars(parser.parse_args(argv))
    part = values.pop("part") or part_of_array(os.environ)
    args = Args(**values, part=part if part and part.count > 1 else None)
    try:
        args.out.encode()
    except UnicodeEncodeError:  # pyarrow, which writes files.parquet at the end, opens no such path
        parser.error(f"--out: {printable(args.out)} has bytes that are not UTF-8; give a folder whose name has none")
    if args.part and args.overwrite:
        parser.error(
            f"--overwrite does not go with part {args.part} (from {args.part.given_by}): a machine that comes late "
            "would remove what the others have made. Delete the old dataset, choose another --out, or convert on one "
            "machine, with --part 0/1"
        )
    if args.resize is None and (args.quality, args.subsampling) != (DEFAULT_QUALITY, DEFAULT_SUBSAMPLING):
        parser.error("--quality and --subsampling are of images that --resize makes smaller; without it none is")
    return args


def _add_places(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("what and where").add_argument
    add(
        "--source",
        required=True,
        metavar="SRC",
        help="a folder, a CSV (see --labels), or s3://bucket/prefix for tars, WebDataset, parquet and shards",
    )
    add("--out", required=True, metavar="DIR_OR_S3", help="a local folder, or s3://bucket/prefix (see below)")
    add("--layout", choices=LAYOUTS, help="of the source (default: recognised by what lies there)")
    add(
        "--labels",
        metavar="FILE.csv",
        help="list of the images, with a header: path, label and, if there is one, split; paths are below --source or "
        "the file's folder",
    )
    add(
        "--val-fraction",
        type=_fraction,
        metavar="F",
        help="of a source without splits (class folders, or a CSV), the part that is for validation, such as 0.2; it "
        "is drawn by --seed, class and file name, so more images move none of the others",
    )
    add("--splits", type=_splits, metavar="A,B", help="splits to convert (default: those of train,val that exist)")
    add(
        "--spool",
        metavar="DIR",
        help="local folder for images of a source that cannot be read in place (parquet, compressed shards, shards in "
        "S3); takes as much room as they (default: in --out or, if that is S3, in the folder for temporary files)",
    )


def _add_choice_of_images(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("a part of the images, the same for the same --seed").add_argument
    add("--classes", type=_classes, metavar="N|A,B", help="N classes drawn by --seed, or those named (default: all)")
    add(
        "--class-order",
        choices=("words", "numbers"),
        help="of classes that are numbers: 10 before 9 as in torchvision, or after (default: words, with a warning)",
    )
    add("--per-class", type=_at_least(1), metavar="N", help="at most N images of each class and split")


def _add_storage(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("how they are stored").add_argument
    add("--resize", type=_resize, metavar="short=N|max=N", help="make larger images smaller: the short or longer side")
    add(
        "--quality",
        type=_between(1, 95),
        default=DEFAULT_QUALITY,
        metavar="Q",
        help="of resized JPEGs, 1 to 95 (default: %(default)s)",
    )
    add(
        "--subsampling",
        choices=SUBSAMPLINGS,
        default=DEFAULT_SUBSAMPLING,
        help="of their chroma (default: %(default)s)",
    )
    add(
        "--exif",
        choices=("ignore", "apply"),
        default="ignore",
        help="turn images as their EXIF orientation says; those turned are re-encoded (default: %(default)s, as all "
        "readers of ImageNet do)",
    )
    add("--size-limit", type=_size, default="64MB", metavar="SIZE", help="of one shard (default: %(default)s)")
    add(
        "--compression",
        type=_compression,
        metavar="zstd[:LEVEL]",
        help="of the shards; JPEGs hardly shrink (default: none)",
    )
    add(
        "--hashes",
        type=_hashes,
        default=",".join(DEFAULT_HASHES),
        metavar="A,B",
        help=f"in index.json, out of {', '.join(HASHES)} (default: %(default)s)",
    )


def _add_way_of_working(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("how the work is done").add_argument
    add(
        "--workers",
        type=_at_least(1),
        default=available_cores(),
        metavar="N",
        help="processes (default: %(default)s, all cores)",
    )
    add(
        "--part",
        type=parse_part,
        metavar="I/N",
        help="N machines share this conversion, and this one begins with part I, from 0 to N - 1; then it helps with "
        "the other parts. All give the same command but for I, and the last to finish completes the dataset. 0/1 is one"
        " machine (default: what an array job of Slurm, AWS Batch or SkyPilot says of itself, else one machine)",
    )
    add("--seed", type=_at_least(0), default=0, metavar="N", help="of the samples' order (default: %(default)s)")
    add(
        "--on-bad",
        choices=("fail", "skip"),
        default="fail",
        help="an image that cannot be decoded stops the conversion, or is left out and listed (default: %(default)s)",
    )
    add("--overwrite", action="store_true", help="replace splits that --out already holds; touches no other file")


def _splits(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
            raise argparse.ArgumentTypeError(f"{name!r} is not the name of a folder; write for example train,val")
    return _without_repeats(text, names)


def _classes(text: str) -> int | tuple[str, ...]:
    if text.isdecimal():
        return _at_least(1)(text)
    return tuple(sorted(_without_repeats(text, tuple(name.strip() for name in text.split(",")))))


def _hashes(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    unknown = [name for name in names if name not in HASHES]
    if unknown:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)} is not among {', '.join(HASHES)}")
    return tuple(sorted(_without_repeats(text, names)))  # in the order that MDS asks for


def _without_repeats(text: str, names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"{text} names one twice")
    return names


def _resize(text: str) -> str:
    try:
        parse_resize(text, quality=DEFAULT_QUALITY, subsampling=DEFAULT_SUBSAMPLING)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def _compression(text: str) -> str:
    match = re.fullmatch(r"zstd(?::(\d{1,2}))?", text)
    level = int(match[1] or DEFAULT_ZSTD_LEVEL) if match else 0
    if level not in ZSTD_LEVELS:
        raise argparse.ArgumentTypeError(
            f"{text} is not zstd or zstd:LEVEL, with a level from {ZSTD_LEVELS[0]} to {ZSTD_LEVELS[-1]}"
        )
    return f"zstd:{level}"


def _at_least(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
        return int(text)

    return parse


def _fraction(text: str) -> float:
    try:
        fraction = float(text)
    except ValueError:
        fraction = 0.0
    if not 0 < fraction < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 and below 1, such as 0.2")
    return fraction


def _between(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} to {most}")
        return int(text)

    return parse


_UNITS = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3}


def _size(text: str) -> int:
    """Bytes in a size such as 64MB; as in MDSWriter, 1 MB is 1024 x 1024 bytes."""
    match = re.fullmatch(r"(\d+)\s*(|k|m|g)b?", text.lower())
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write for example 64MB")
    size = int(match[1]) * _UNITS[match[2]]
    if not 0 < size <= MAX_SIZE_LIMIT_BYTES:
        raise argparse.ArgumentTypeError(f"{text} is out of range: more than 0, less than 2GB")
    return size
