"""A checkpoint's network before a split's samples, as evaluate.py and export.py have it."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from composer import Trainer
from composer.core import Callback, Evaluator
from composer.devices import Device
from composer.utils import dist
from torch import nn

from imagestream.data.dataset_files import DatasetFiles
from imagestream.data.labels import Labels, labels_for
from imagestream.loader import Loader
from train.config.run_config import Config, ConfigError, config_from_dict
from train.data import dataset_files, eval_loader, eval_spec
from train.model import ImageClassifier, build_model
from train.process import precision_on, torch_device
from train.resume.checkpoint_file import CheckpointError
from train.resume.checkpoint_file import load as load_checkpoint
from train.weights.loading import load_into
from train.weights.reading import read_weights

DIST_TIMEOUT_SECONDS = 600.0  # base.yaml's

WeightsChoice = Literal["averaged", "trained"]


def add_weights_option(parser: argparse.ArgumentParser) -> None:
    """Let a command choose between the weights of a run with EMA, as WeightsChoice has them."""
    parser.add_argument(
        "--weights",
        choices=get_args(WeightsChoice),
        default="averaged",
        help="of a run with EMA: trained: not the averages but what they are of; default: averaged",
    )


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Let a command be told which dataset to take, as `with_data` has it."""
    parser.add_argument("--data", metavar="DIR_OR_S3", help="the MDS dataset; default: the run's own")
    parser.add_argument(
        "--cache",
        metavar="DIR",
        help="folder for shards that are in S3; for the run's own dataset, default: data.local",
    )
    parser.add_argument("--local", dest="cache", help=argparse.SUPPRESS)  # its name in 0.1.0


def read_run(path: Path) -> dict[str, Any]:
    """Return what a checkpoint says of its run: `config`, `num_classes`, `classes` (its names, or None), `exif`
    (what was done with the orientation of its images; None: not known).

    Raises:
        CheckpointError: it is damaged, unsafe, or not of this program.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist")
    record: dict[str, Any] | None = load_checkpoint(path)["state"].get("callbacks", {}).get("RunRecord")
    if record is None:
        raise CheckpointError(f"{path} was not written by train/main.py: it does not say how its model is built")
    return record


def with_data(
    cfg: Config,
    data: str | None,
    cache: str | None,
    *,
    columns: str | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
) -> Config:
    """Return a run's configuration with the data that a command names; without `data`, with its own.

    Raises:
        ConfigError: a dataset in S3 without a folder for its shards, or one of the other arguments is not usable.
    """
    if data is None:
        data = cfg.data.remote or str(cfg.data.local)
        cache = cache or (str(cfg.data.local) if cfg.data.remote else None)
    if "://" in data and not cache:
        raise ConfigError(f"--cache: {data} is not on this machine; give a folder for its shards")
    remote = data if cache else None
    changes: dict[str, Any] = {"remote": remote, "local": cache or data}
    if remote is None:
        changes["cache_limit_gb"] = None  # of a cache, and the shards are read where they are
    if columns is not None:
        names = columns.split(",")
        if len(names) != 2:
            raise ConfigError(f"--columns: {columns} must be two names, of images and of labels, as in image,label")
        changes["columns"] = dict(zip(("image", "label"), names, strict=True))
    if batch_size is not None:
        changes["eval_batch_size"] = batch_size
    if workers is not None:
        changes["num_workers"] = workers
    stored = cfg.model_dump(mode="json")
    stored["data"] |= changes
    return config_from_dict(stored)


def open_split(cfg: Config, saved: dict[str, Any], split: str, device: Device) -> tuple[DatasetFiles, Loader, Labels]:
    """Open a split, its labels as the checkpoint's network numbers them; collective over all ranks.

    Raises:
        DataError: it is not there, is damaged, or has classes that the network does not know.
    """
    files = dataset_files(cfg.data)
    batch_size = max(1, cfg.data.eval_batch_size // dist.get_world_size())
    loader = eval_loader(cfg.data, files, split, batch_size=batch_size, device=torch_device(device))
    labels = loader.labels = labels_for(
        saved.get("classes"), saved["num_classes"], files.class_names(), where=files.where(split)
    )
    return files, loader, labels


def trainer_for(
    cfg: Config,
    saved: dict[str, Any],
    path: Path,
    loader: Loader,
    device: Device,
    *,
    shown: str,
    weights: WeightsChoice,
    callbacks: Sequence[Callback] = (),
    progress_bar: bool = False,
) -> Trainer:
    """Return Composer's Trainer with the checkpoint's network, which `eval()` evaluates; collective.

    Args:
        path: the checkpoint.
        shown: its name for messages.
        weights: of a run with EMA, the averages or what they are of.
    """
    trainer = Trainer(
        model=build_model(cfg.model, saved["num_classes"], image_px=cfg.data.crop_size),
        eval_dataloader=Evaluator(label="eval", dataloader=eval_spec(loader)),
        # Only what changes the network's shape counts here: the checkpoint's weights are EMA's where there is one.
        algorithms=cfg.build_algorithms(),
        callbacks=list(callbacks),
        device=device,
        precision=precision_on(device, cfg),
        progress_bar=progress_bar,
        load_path=str(path),
        load_weights_only=True,
        dist_timeout=DIST_TIMEOUT_SECONDS,
    )
    if weights == "trained":
        trained = read_weights(path, shown, wants_average=False)
        load_into(classifier_of(trainer).module, trained, num_classes=saved["num_classes"], classes=None, shown=shown)
    return trainer


def classifier_of(trainer: Trainer) -> ImageClassifier:
    """Return the trainer's model without what DistributedDataParallel wraps around it."""
    model = trainer.state.model
    found: ImageClassifier = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    return found
