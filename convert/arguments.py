"""The command line of `convert/imagenet_to_mds.py`."""

import argparse
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from convert.shards import MAX_SIZE_LIMIT_BYTES
from convert.workers import OnBad


@dataclass(frozen=True, slots=True)
class Args:
    """The command line, parsed."""

    source: str
    out: str
    splits: tuple[str, ...] | None
    workers: int
    seed: int
    on_bad: OnBad
    size_limit: int
    overwrite: bool


def parse_args(description: str, argv: Sequence[str] | None) -> Args:
    """Parse the command line; on a mistake argparse prints it and exits with status 2."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--source", required=True, metavar="DIR", help="the folder that holds train/ and val/, each with class folders")
    add("--out", required=True, metavar="DIR_OR_S3", help="a local folder, or s3://bucket/prefix (see below)")
    add("--splits", type=_splits, metavar="A,B", help="splits to convert (default: those of train,val that exist)")
    add(
        "--workers",
        type=_at_least(1),
        default=_cores(),
        metavar="N",
        help="processes (default: %(default)s, all cores)",
    )
    add("--seed", type=_at_least(0), default=0, metavar="N", help="seed of the samples' order (default: %(default)s)")
    add(
        "--on-bad",
        choices=("fail", "skip"),
        default="fail",
        help="an image that cannot be decoded stops the conversion, or is left out and listed (default: %(default)s)",
    )
    add("--size-limit", type=_size, default="64MB", metavar="SIZE", help="of one shard (default: %(default)s)")
    add("--overwrite", action="store_true", help="replace splits that --out already holds; touches no other file")
    parser.epilog = (
        "S3: credentials as boto3 finds them; set S3_ENDPOINT_URL for a server other than AWS.\n"
        "Exit status: 0 converted; 1 failed (bad images, disk full, upload failed); 2 the command needs correcting."
    )
    return Args(**vars(parser.parse_args(argv)))


def _splits(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
            raise argparse.ArgumentTypeError(f"{name!r} is not the name of a folder; write for example train,val")
    if len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"{text} names a split twice")
    return names


def _at_least(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
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


def _cores() -> int:
    """Cores this process may use, which is fewer than the machine's in most containers and batch jobs."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
