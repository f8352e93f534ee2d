"""Evaluate a run or one of its checkpoints on exactly the samples of a split.

python train/evaluate.py runs/x
python train/evaluate.py runs/x/ep90-ba56250.pt --data shards --predictions out.parquet
composer -n 8 train/evaluate.py s3://bucket/runs/x/ep90-ba56250.pt --data s3://bucket/mds --cache /tmp/cache
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Started as a script, Python puts this file's own folder on the path; the packages are in the one above.
_HERE = Path(__file__).resolve().parent
if Path(sys.path[0] or ".").resolve() == _HERE:
    sys.path[0] = str(_HERE.parent)

from imagestream.cores import wait_passively

wait_passively()  # before torch is imported

import numpy as np
import torch
from composer.utils import dist

from imagestream.data.dataset_files import DatasetFiles
from imagestream.data.labels import Labels
from imagestream.data.source_paths import SourcePaths
from imagestream.mds.index import DataError
from imagestream.mds.names import shown
from imagestream.storage.errors import PlaceError
from imagestream.storage.places import folder_and_name, open_place
from train.config.argument_keys import in_options
from train.config.run_config import config_from_dict
from train.evaluation import (
    DIST_TIMEOUT_SECONDS,
    add_data_options,
    add_weights_option,
    classifier_of,
    open_split,
    read_run,
    trainer_for,
    with_data,
)
from train.figures import by_class, calibration, in_words, worst_pairs
from train.model import weights_sha256
from train.predictions import Columns, Predictions, ResultFile, as_parquet
from train.process import start_process
from train.ranks import raise_first_of_any_rank
from train.real import image_numbers, read_classes_of_files, read_real, real_figures
from train.resume.checkpoint_file import CheckpointError
from train.resume.checkpoints import Found, on_every_node
from train.resume.start import RefusedError
from train.signals import listening
from train.weights.choosing import Which, choose_checkpoint

TABLES = ("reliability", "worst_pairs")  # printed by themselves

log = logging.getLogger(__name__)

Real = tuple[list[list[int]], list[tuple[int, str]]]
"""ReaL's labels by image, and the class of each file."""


def main(argv: Sequence[str]) -> int:
    """Run the command; return its exit code: 0, or 2 when the checkpoint or the data cannot be used."""
    args = parse(argv)
    try:
        with listening(will_save=False):
            figures = evaluate(args)
    except RefusedError as error:
        if int(os.environ.get("RANK", "0")) == 0:
            print(shown(in_options(error)), file=sys.stderr)
        return 2
    if dist.get_global_rank() == 0:
        for name, value in figures.items():
            if name not in TABLES:
                print(f"{name:18} {value}")
        if args.details:
            print(in_words(figures))
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the command's arguments."""
    parser = argparse.ArgumentParser(prog="train/evaluate.py", description="Evaluate a network on a whole split.")
    parser.add_argument("run", metavar="RUN_OR_CHECKPOINT", help="a run's save folder, or a .pt in it; local or s3://")
    add_data_options(parser)
    parser.add_argument("--split", help="default: the run's own data.val_split")
    parser.add_argument(
        "--columns",
        metavar="IMAGE,LABEL",
        help="names of the shards' columns of images and labels, as in image,label; default: the run's",
    )
    parser.add_argument(
        "--tta",
        choices=["flip"],
        help="flip: average the logits of each image and of its mirror image, as for FFCV's figures",
    )
    parser.add_argument(
        "--checkpoint",
        choices=["best", "last"],
        default="best",
        help="of a folder: the one with the highest top-1 of those that are left, or the newest; default: best",
    )
    add_weights_option(parser)
    parser.add_argument("--batch-size", type=int, metavar="N", help="images a step over all ranks; default: the run's")
    parser.add_argument("--workers", type=int, metavar="N", help="loader processes a rank; default: the run's")
    parser.add_argument(
        "--predictions",
        metavar="FILE",
        help="write a row a sample there, as Parquet: id, label, the five likeliest classes, loss; local or s3://",
    )
    parser.add_argument(
        "--among",
        choices=["model", "dataset"],
        default="model",
        help="dataset: predict none but the dataset's classes, as ImageNet-A's and -R's papers do; default: model, all",
    )
    parser.add_argument(
        "--details", action="store_true", help="calibration, and the classes that are most often confused"
    )
    parser.add_argument(
        "--per-class", metavar="FILE", help="write the hits of each class there, as CSV; local or s3://"
    )
    parser.add_argument("--real", metavar="FILE", help="ReaL's real.json: also count its labels; local or s3://")
    parser.add_argument(
        "--val-classes",
        metavar="FILE",
        help="with --real: LOC_val_solution.csv, the class of each of ImageNet's validation files; local or s3://",
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures there too; local or s3://")
    args = parser.parse_args(argv)
    if args.val_classes and not args.real:
        parser.error("--val-classes goes with --real")
    return args


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """Return checkpoint, top1, top5, loss, samples_evaluated, weights_sha256, and what was asked for; collective."""
    device = start_process(DIST_TIMEOUT_SECONDS)
    files_to_write = {
        option: ResultFile(place) for option in ("predictions", "per_class", "json") if (place := vars(args)[option])
    }
    real = read_lists(args)
    where, name = checkpoint_of(args.run, args.checkpoint)
    wants_each = args.predictions or args.per_class or args.real or args.details
    predictions = Predictions() if wants_each else None
    with on_every_node(open_place(where), Found(name)) as path:
        assert path is not None
        saved = read_run(Path(path))
        cfg = with_data(
            config_from_dict(saved["config"]),
            args.data,
            args.cache,
            columns=args.columns,
            batch_size=args.batch_size,
            workers=args.workers,
        )
        split = args.split if args.split is not None else cfg.data.val_split
        files, loader, labels = open_split(cfg, saved, split, device)
        among = classes_among(args.among, labels, files, saved["num_classes"], where=files.where(split))
        trainer = trainer_for(
            cfg,
            saved,
            Path(path),
            loader,
            device,
            shown=f"{where}/{name}",
            weights=args.weights,
            callbacks=[predictions] if predictions else [],
            progress_bar=os.isatty(2),
        )
    model = classifier_of(trainer)
    model.averages_mirrored, model.among = args.tta == "flip", among
    trainer.eval()
    values = {key: metric.compute().item() for key, metric in trainer.state.eval_metrics["eval"].items()}
    figures: dict[str, Any] = {
        "checkpoint": name,
        "top1": values["top1"],
        "top5": values["top5"],
        "loss": values["loss"],
        "samples_evaluated": int(values["samples"]),
        "weights_sha256": weights_sha256(trainer.state.model),
    }
    figures |= {"tta": args.tta} if args.tta else {}
    figures |= {"weights": args.weights} if args.weights == "trained" else {}
    figures |= {} if among is None else {"among": int(among.sum())}
    columns = predictions.gather(loader.dataset, count=int(values["samples"])) if predictions else None
    error: Exception | None = None
    if dist.get_global_rank() == 0:
        try:
            if columns is not None:
                figures |= more_figures(args, saved, split, columns, real, files_to_write, files)
            if "json" in files_to_write:
                files_to_write["json"].write((json.dumps(figures, indent=2) + "\n").encode())
        except (DataError, PlaceError) as caught:
            error = caught
    raise_first_of_any_rank(error)
    return figures


def checkpoint_of(location: str, which: Which) -> tuple[str, str]:
    """Return the folder and the name of the checkpoint that rank 0 chooses; collective.

    Raises:
        CheckpointError, PlaceError: there is none; on all ranks alike.
    """
    name, error = "", None
    if dist.get_global_rank() == 0:
        try:
            _, name = choose_checkpoint(location, which)
        except (CheckpointError, PlaceError) as caught:
            error = caught
    raise_first_of_any_rank(error)
    folder = folder_and_name(location)[0] if location.endswith(".pt") else location.rstrip("/") or "/"
    return folder, dist.all_gather_object(name)[0]


def read_lists(args: argparse.Namespace) -> Real | None:
    """Read the files of `--real` and `--val-classes` on rank 0, before anything is evaluated; collective.

    Raises:
        DataError, PlaceError: one is not there, or no such list; on all ranks alike.
    """
    found: Real | None = None
    error: Exception | None = None
    if args.real is not None and dist.get_global_rank() == 0:
        try:
            found = read_real(args.real), read_classes_of_files(args.val_classes) if args.val_classes else []
        except (DataError, PlaceError) as caught:
            error = caught
    raise_first_of_any_rank(error)
    return found


def more_figures(
    args: argparse.Namespace,
    saved: Mapping[str, Any],
    split: str,
    columns: Columns,
    real: Real | None,
    files_to_write: Mapping[str, ResultFile],
    files: DatasetFiles,
) -> dict[str, Any]:
    """Return the figures that options ask for, and write their files; on rank 0.

    Raises:
        DataError: the samples are not those that `--real` is about.
        PlaceError: a file cannot be written.
    """
    known = list(saved.get("classes") or [])
    names = known + [str(number) for number in range(len(known), saved["num_classes"])]
    labels, classes = columns["label"].astype(np.int64), columns["classes"].astype(np.int64)
    found: dict[str, Any] = {}
    if args.details:
        found |= calibration(columns["probabilities"][:, 0], classes[:, 0] == labels)
        found |= {"worst_pairs": worst_pairs(labels, classes[:, 0], names)}
    if real is not None:
        if "sample_id" not in columns:
            raise DataError("--real: the shards have no column i, by which their images could be told")
        ids = columns["sample_id"]
        numbers = image_numbers(ids, labels, real[1], names) if real[1] else ids
        found |= real_figures(real[0], numbers, labels, classes[:, 0], saved.get("classes"))
    if "predictions" in files_to_write:
        source = SourcePaths(open_place(files.remote or files.local), split)
        paths = source.of(columns["sample_id"]) if source and "sample_id" in columns else None
        files_to_write["predictions"].write(as_parquet(columns, names, paths))
    if "per_class" in files_to_write:
        files_to_write["per_class"].write(by_class(labels, classes, names).encode())
    return found


def classes_among(
    among: str, labels: Labels, files: DatasetFiles, num_classes: int, *, where: str
) -> torch.Tensor | None:
    """Return which of the model's classes may be predicted: None for all, else those that the dataset has."""
    names = files.class_names()
    numbers = range(num_classes if names is None else len(names)) if labels.numbers is None else labels.numbers.tolist()
    if len(numbers) < num_classes:
        words = "all of these" if among == "model" else "the dataset's alone"
        log.warning(
            "%s has %d of the model's %d classes; predictions are among %s (--among)",
            *(where, len(numbers), num_classes, words),
        )
    if among == "model":
        return None
    chosen = torch.zeros(num_classes, dtype=torch.bool)
    chosen[list(numbers)] = True
    return chosen


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
