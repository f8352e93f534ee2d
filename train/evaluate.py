"""Evaluate a checkpoint on exactly the samples of a split.

python train/evaluate.py runs/x/ep90-ba56250.pt --data shards
python train/evaluate.py runs/x/ep90-ba56250.pt --data shards --predictions out.parquet
composer -n 8 train/evaluate.py s3://bucket/runs/x/ep90-ba56250.pt --data s3://bucket/mds --local /tmp/cache
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Started as a script, Python puts this file's own folder on the path; the packages are in the one above.
_HERE = Path(__file__).resolve().parent
if Path(sys.path[0] or ".").resolve() == _HERE:
    sys.path[0] = str(_HERE.parent)

from imagestream.cores import wait_passively

wait_passively()  # before torch is imported

from composer import Trainer
from composer.core import Evaluator
from composer.utils import dist

from imagestream.data.labels import labels_for
from imagestream.mds.names import shown
from imagestream.storage.places import folder_and_name, open_place
from train.config.run_config import Config, config_from_dict
from train.data import dataset_files, eval_loader, eval_spec
from train.model import build_model, weights_sha256
from train.predictions import Predictions
from train.process import precision_on, start_process, torch_device
from train.resume.checkpoint_file import CheckpointError
from train.resume.checkpoint_file import load as load_checkpoint
from train.resume.checkpoints import Found, on_every_node
from train.resume.start import RefusedError
from train.signals import listening

DIST_TIMEOUT_SECONDS = 600.0  # base.yaml's


def main(argv: Sequence[str]) -> int:
    """Run the command; return its exit code: 0, or 2 when the checkpoint or the data cannot be used."""
    args = parse(argv)
    try:
        with listening(will_save=False):
            figures = evaluate(args)
    except RefusedError as error:
        if int(os.environ.get("RANK", "0")) == 0:
            print(shown(str(error)), file=sys.stderr)
        return 2
    if dist.get_global_rank() == 0:
        for name, value in figures.items():
            print(f"{name:18} {value}")
        if args.json:
            Path(args.json).write_text(json.dumps(figures, indent=2) + "\n")
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the command's arguments."""
    parser = argparse.ArgumentParser(prog="train/evaluate.py", description="Evaluate a checkpoint on a whole split.")
    parser.add_argument("checkpoint", help="a .pt file that train/main.py wrote; local or s3://")
    parser.add_argument("--data", required=True, metavar="DIR_OR_S3", help="the MDS dataset")
    parser.add_argument("--local", metavar="DIR", help="cache folder, needed when --data is in S3")
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
    parser.add_argument("--batch-size", type=int, metavar="N", help="images a step over all ranks; default: the run's")
    parser.add_argument("--workers", type=int, metavar="N", help="loader processes a rank; default: the run's")
    parser.add_argument(
        "--predictions",
        metavar="FILE",
        help="write a row a sample there, as Parquet: id, label, the five likeliest classes, loss; local or s3://",
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    return parser.parse_args(argv)


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """Return top1, top5, loss, samples_evaluated and weights_sha256, and tta if it was asked for; collective."""
    device = start_process(DIST_TIMEOUT_SECONDS)
    where, name = folder_and_name(args.checkpoint)
    predictions = None if args.predictions is None else Predictions(args.predictions)
    with on_every_node(open_place(where), Found(name)) as path:
        assert path is not None
        saved = read_run(Path(path))
        cfg = with_data(config_from_dict(saved["config"]), args)
        split = args.split if args.split is not None else cfg.data.val_split
        files = dataset_files(cfg.data)
        batch_size = max(1, cfg.data.eval_batch_size // dist.get_world_size())
        loader = eval_loader(cfg.data, files, split, batch_size=batch_size, device=torch_device(device))
        loader.labels = labels_for(
            saved.get("classes"), saved["num_classes"], files.class_names(), where=files.where(split)
        )
        model = build_model(cfg.model, saved["num_classes"], image_px=cfg.data.crop_size)
        model.averages_mirrored = args.tta == "flip"
        trainer = Trainer(
            model=model,
            eval_dataloader=Evaluator(label="eval", dataloader=eval_spec(loader)),
            # Only what changes the network's shape counts here: the checkpoint's weights are EMA's where there is one.
            algorithms=cfg.build_algorithms(),
            callbacks=predictions,
            device=device,
            precision=precision_on(device, cfg),
            progress_bar=os.isatty(2),
            load_path=path,
            load_weights_only=True,
            dist_timeout=DIST_TIMEOUT_SECONDS,
        )
    trainer.eval()
    values = {key: metric.compute().item() for key, metric in trainer.state.eval_metrics["eval"].items()}
    if predictions is not None:
        predictions.write(loader.dataset, count=int(values["samples"]))
    return {
        "top1": values["top1"],
        "top5": values["top5"],
        "loss": values["loss"],
        "samples_evaluated": int(values["samples"]),
        "weights_sha256": weights_sha256(trainer.state.model),
    } | ({"tta": args.tta} if args.tta else {})


def read_run(path: Path) -> dict[str, Any]:
    """Return what a checkpoint says of its run: `config`, `num_classes`, `classes` (its names, or None).

    Raises:
        CheckpointError: it is damaged, unsafe, or not of this program.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist")
    record: dict[str, Any] | None = load_checkpoint(path)["state"].get("callbacks", {}).get("RunRecord")
    if record is None:
        raise CheckpointError(f"{path} was not written by train/main.py: it does not say how its model is built")
    return record


def with_data(cfg: Config, args: argparse.Namespace) -> Config:
    """Return the run's configuration with the data that the command names."""
    remote = args.data if "://" in args.data or args.local else None
    changes: dict[str, Any] = {"remote": remote, "local": args.local or (None if remote else args.data)}
    if args.columns is not None:
        changes["columns"] = dict(zip(("image", "label"), args.columns.split(",", 1), strict=False))
    if args.batch_size:
        changes["eval_batch_size"] = args.batch_size
    if args.workers is not None:
        changes["num_workers"] = args.workers
    stored = cfg.model_dump(mode="json")
    stored["data"] |= changes
    return config_from_dict(stored)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
