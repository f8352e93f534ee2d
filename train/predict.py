"""Say what a trained network sees in images that have no labels.

python train/predict.py exported photos/                                   # CSV on the terminal
python train/predict.py runs/x photos/ more/cat.jpg --out predictions.parquet --html page.html
python train/predict.py s3://bucket/models/x s3://bucket/photos --out s3://bucket/predictions.csv
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

# Started as a script, Python puts this file's own folder on the path; the packages are in the one above.
_HERE = Path(__file__).resolve().parent
if Path(sys.path[0] or ".").resolve() == _HERE:
    sys.path[0] = str(_HERE.parent)

from imagestream.cores import wait_passively

wait_passively()  # before torch is imported

import torch
from composer.utils import dist
from tqdm import tqdm

from imagestream.mds.names import printable, shown
from train.config.run_config import ConfigError
from train.evaluation import DIST_TIMEOUT_SECONDS, add_weights_option
from train.model import EVAL_PASS
from train.predicting.images import Batch, Reading, batches_of, check_location, count_images, crop_of, exif_of
from train.predicting.model import PredictingModel, logits_of, open_model
from train.predicting.page import Page
from train.predicting.results import RANKS, Prediction, open_table
from train.process import start_process, torch_device
from train.resume.start import RefusedError

BATCH_SIZE = {"cpu": 32, "cuda": 128}
SHOWN_FAULTS = 20


def main(argv: Sequence[str]) -> int:
    """Run the command; return its exit code: 0, 1 when some images could not be used, 2 when it cannot be begun."""
    args = parse(argv)
    try:
        return 1 if predict(args) else 0
    except RefusedError as error:
        print(shown(str(error)), file=sys.stderr)
        return 2


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the command's arguments."""
    parser = argparse.ArgumentParser(prog="train/predict.py", description="Classify images with a trained network.")
    parser.add_argument("model", help="what train/export.py made, a run's save folder, or a .pt in it; local or s3://")
    parser.add_argument("images", nargs="+", help="files, folders with images below them, or of shards; local or s3://")
    parser.add_argument("--out", metavar="FILE", help=".csv or .parquet; local or s3://; default: CSV on stdout")
    parser.add_argument("--html", metavar="FILE", help="also a page of the first images; local or s3://")
    parser.add_argument("--checkpoint", choices=["best", "last"], default="best", help="of a run's; default: best")
    add_weights_option(parser)
    parser.add_argument("--batch-size", type=int, metavar="N", help="images at a time; default: 32, on a GPU 128")
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes that decode; default: the cores but for one"
    )
    parser.add_argument(
        "--exif",
        choices=["ignore", "apply"],
        help="whether files are turned as their EXIF orientation says; default: as when the training images were "
        "converted",
    )
    parser.add_argument("--cache", metavar="DIR", help="folder for shards that are in S3")
    args = parser.parse_args(argv)
    if args.out and not args.out.endswith((".csv", ".parquet")):
        parser.error(f"--out: {args.out} must end in .csv or .parquet")
    if args.batch_size is not None and args.batch_size < 1:
        parser.error("--batch-size: must be at least 1")
    if args.workers is not None and args.workers < 0:
        parser.error("--workers: must be at least 0")
    return args


def predict(args: argparse.Namespace) -> int:
    """Write the predictions, and return how many images could not be used.

    Raises:
        RefusedError: nothing could be begun.
    """
    device = torch_device(start_process(DIST_TIMEOUT_SECONDS))
    if dist.get_world_size() > 1:
        raise ConfigError(f"predictions are made by one process, and here are {dist.get_world_size()}; use python")
    model = open_model(args.model, which=args.checkpoint, weights=args.weights)
    model.network.to(device)
    reading = Reading(
        crop_of(model.described),
        turn=(args.exif or exif_of(model.described)) == "apply",
        batch_size=args.batch_size or BATCH_SIZE[device.type],
        num_workers=args.workers,
        cache=args.cache,
    )
    for location in args.images:
        check_location(location)
    table = open_table(args.out)
    page = None if args.html is None else Page(args.html, model)
    faults = 0
    total = count_images(args.images) if os.isatty(2) else None
    with tqdm(total=total, unit="image", unit_scale=False, disable=None, file=sys.stderr) as progress:
        for batch in batches_of(args.images, reading):
            predictions = predicted(model, batch, device)
            table.add(predictions)
            if page is not None:
                page.add(predictions, batch.raw.images)
            for prediction in predictions:
                if prediction.error:
                    faults += 1
                    if faults <= SHOWN_FAULTS:
                        progress.write(f"{shown(prediction.path)}: {shown(prediction.error)}", file=sys.stderr)
            progress.update(len(predictions))
    table.finish()
    if page is not None:
        page.finish()
    if faults:
        where = "the column error names each" if faults > SHOWN_FAULTS else "see above"
        print(f"{faults:,} of the images could not be used; {where}", file=sys.stderr)
    return faults


def predicted(model: PredictingModel, batch: Batch, device: torch.device) -> list[Prediction]:
    """Return what the network says of each image of a batch.

    Passes are of a fixed number of images, so that what is said of one does not depend on its neighbours.
    """
    images, size = batch.raw.images, EVAL_PASS[device.type]
    count = len(images)
    padded = torch.nn.functional.pad(images, (0,) * 7 + (-count % size,))
    with torch.inference_mode():
        parts = [logits_of(model.network, part.to(device), model.described) for part in padded.split(size)]
        probabilities, classes = torch.cat(parts)[:count].softmax(1).topk(min(RANKS, len(model.classes)))
    faults, names = dict(batch.raw.faults), model.classes
    found = []
    rows = zip(batch.paths, batch.ids, classes.tolist(), probabilities.tolist(), strict=True)
    for place, (path, sample_id, best, shares) in enumerate(rows):
        name = printable(path)  # no table takes bytes that are not UTF-8, and files.parquet has such names so too
        if place in faults:
            found.append(Prediction(name, (), (), printable(faults[place]), sample_id))
        else:
            found.append(Prediction(name, [names[number] for number in best], shares, "", sample_id))
    return found


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
