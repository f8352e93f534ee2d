"""Tell whether two runs are the same and, if not, where they part.

    python train/compare.py RUN_A RUN_B

RUN_A and RUN_B are save folders, local or s3://. Exit status: 0 the same, 1 not the same, 2 nothing to compare.
Compared are the samples and crops of every batch (the ledger), the loss of every batch, and each tensor and number of
every checkpoint that both runs have: weights, averages, optimizer, schedules, algorithms. Of the first checkpoint that
differs the differences are listed. Times do not count.
"""

import argparse
import math
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

# Started as a script, Python puts this file's own folder on the path; the packages are in the one above.
_HERE = Path(__file__).resolve().parent
if Path(sys.path[0] or ".").resolve() == _HERE:
    sys.path[0] = str(_HERE.parent)

import torch
from tqdm import tqdm

from imagestream.mds.names import shown
from imagestream.storage.errors import PlaceError
from imagestream.storage.places import open_place
from imagestream.storage.protocol import Place
from train.resume.checkpoint_file import CheckpointError, load
from train.resume.checkpoints import list_checkpoints

EXIT_SAME, EXIT_OTHER, EXIT_CANNOT_TELL = 0, 1, 2
SHOWN = 20
TRAILS = ("samples", "loss")  # what a checkpoint tells of each batch so far

# Wall-clock times, speeds, names of runs and folders, and what only says how a run was started.
NOT_COMPARED = (
    "rng",  # of the process; every batch reseeds from (seed, batch, rank)
    "state/timestamp/Timestamp/total_wct",
    "state/timestamp/Timestamp/epoch_wct",
    "state/timestamp/Timestamp/batch_wct",
    "state/timestamp/Timestamp/iteration_wct",
    "state/run_name",
    "state/integrations",
    "state/metadata",
    "state/callbacks/DurableCheckpointSaver",
    "state/callbacks/RunRecord/config",
    "state/callbacks/RunRecord/page",  # how often it was started, and pictures
    "state/callbacks/ResumeGuard/contract",
    "state/callbacks/ResumeGuard/changes",
)
NOT_COMPARED_NAMES = (
    "repr",
    "images_per_sec",
    "host_memory_bytes",
    "device_memory_bytes",
    "data_wait_fraction",
    "stages",
    "bottleneck",
    "total_wct",
    "epoch_wct",
    "batch_wct",
    "iteration_wct",
)


class CompareError(ValueError):
    """There is nothing to compare; the message says what was seen."""


def main(argv: Sequence[str]) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="train/compare.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run_a", metavar="RUN_A", help="a run's save folder")
    parser.add_argument("run_b", metavar="RUN_B", help="another's")
    args = parser.parse_args(argv)
    try:
        found = compare(args.run_a, args.run_b)
    except (CompareError, CheckpointError, PlaceError) as error:
        print(shown(f"compare: {error}"), file=sys.stderr)
        return EXIT_CANNOT_TELL
    print(shown("\n".join(found)))
    return EXIT_SAME if found[-1].startswith("the same") else EXIT_OTHER


def compare(run_a: str, run_b: str) -> list[str]:
    """What there is to say of two runs, a line each; the last one is the verdict."""
    folders = [open_place(run_a), open_place(run_b)]
    common = _common_checkpoints(folders, (run_a, run_b))
    for place, name in enumerate(tqdm(common, desc="compare", unit="checkpoint", leave=False, disable=None), start=1):
        one, other = (_load(folder, name, run) for folder, run in zip(folders, (run_a, run_b), strict=True))
        lines = [f"{name} of both, {place} of {len(common)}: {len(_trail(one, name, 'loss'))} batches"]
        parted = [_first_other_batch(what, _trail(one, name, what), _trail(other, name, what)) for what in TRAILS]
        lines += [line for line in parted if line]
        if different := differences(one, other):
            lines += [f"  {path}" for path in different[:SHOWN]]
            if len(different) > SHOWN:
                lines.append(f"  ... and {len(different) - SHOWN:,} more")
            if place > 1:
                parted_at = f"they part at {name}; the checkpoints before it are the same"
            else:
                parted_at = f"they part at or before {name}, the first checkpoint that both have"
            return [*lines, parted_at, "not the same"]
    count = f"{len(common)} checkpoint{'s' if len(common) > 1 else ''}"
    return [*lines, f"the same, up to {common[-1]}, in {count}: every sample, crop, loss, tensor and number"]


def differences(one: Any, other: Any) -> list[str]:
    """The paths at which two checkpoints differ, in the order in which a checkpoint holds them."""
    return list(_differences(one, other, ""))


def _differences(one: Any, other: Any, path: str) -> Iterator[str]:
    if not _is_compared(path):
        return
    if isinstance(one, dict) and isinstance(other, dict):
        for key in [*one, *(key for key in other if key not in one)]:
            below = f"{path}/{key}" if path else str(key)
            if key not in one or key not in other:
                if _is_compared(below):
                    yield f"{below}: in one run only"
            else:
                yield from _differences(one[key], other[key], below)
    elif isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        for index, (a, b) in enumerate(zip(one, other, strict=True)):
            yield from _differences(a, b, f"{path}/{index}")
    elif isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        if one.dtype != other.dtype or one.shape != other.shape:
            yield f"{path}: {one.dtype} {tuple(one.shape)} and {other.dtype} {tuple(other.shape)}"
        elif not _equal(one, other):
            apart = (one.double() - other.double()).abs()
            yield f"{path}: {int((apart != 0).sum()):,} of {one.numel():,} values, by up to {float(apart.max()):g}"
    elif not _same_value(one, other):
        yield f"{path}: {_short(one)} and {_short(other)}"


def _is_compared(path: str) -> bool:
    return path not in NOT_COMPARED and path.rpartition("/")[2] not in NOT_COMPARED_NAMES


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Bit for bit: NaN equals itself, and 0 is not -0."""
    return torch.equal(
        *(t.flatten().clone(memory_format=torch.contiguous_format).view(torch.uint8) for t in (one, other))
    )


def _same_value(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float) and math.isnan(one) and math.isnan(other):
        return True
    try:
        return bool(one == other)
    except (ValueError, RuntimeError):  # arrays and the like
        return repr(one) == repr(other)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else text[:57] + "..."


def _common_checkpoints(folders: Sequence[Place], names: Sequence[str]) -> list[str]:
    found = [list_checkpoints(folder) for folder in folders]
    for name, checkpoints in zip(names, found, strict=True):
        if not checkpoints:
            raise CompareError(f"{name} holds no checkpoints; give a run's checkpoint.save_folder")
    common = [name for name in found[0] if name in found[1]]
    if not common:
        raise CompareError(
            f"no checkpoint is of the same batch: {names[0]} has {', '.join(found[0][-3:])}, {names[1]} has "
            f"{', '.join(found[1][-3:])}. Train both to the same length, or keep more of them (checkpoint.keep)"
        )
    return common


def _load(folder: Place, name: str, run: str) -> dict[str, Any]:
    """Load a checkpoint that was listed; the run may still be running, and delete its old ones."""
    try:
        with tempfile.TemporaryDirectory(prefix="compare-") as scratch:
            return load(folder.get(name, Path(scratch)))
    except (OSError, CheckpointError) as error:  # PlaceError is an OSError
        if folder.stat(name) is not None:
            raise
        raise CompareError(
            f"{name} in {run} was listed and cannot be loaded: {error}. If that run is still running, it may have "
            "deleted it since (checkpoint.keep): compare again"
        ) from error


def _trail(content: dict[str, Any], name: str, what: str) -> list[Any]:
    """What a run has noted of each of its batches."""
    try:
        trail: list[Any] = content["state"]["callbacks"]["ResumeGuard"]["trail"][what].tolist()
    except (KeyError, TypeError, AttributeError) as error:
        raise CompareError(f"{name} was not written by train/main.py: it does not say what its batches were") from error
    return trail


def _first_other_batch(what: str, one: Sequence[Any], other: Sequence[Any]) -> str:
    """A line on the first batch in which two runs differ; '' where there is none."""
    for batch, (a, b) in enumerate(zip(one, other, strict=False)):
        if not _same_value(a, b):
            said = "samples or crops" if what == "samples" else f"loss, {a:g} and {b:g}"
            return f"batch {batch} is the first with other {said}"
    return ""


if __name__ == "__main__":
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # nothing here needs one
    raise SystemExit(main(sys.argv[1:]))
