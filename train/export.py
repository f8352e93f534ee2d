"""Export a trained network for others: safetensors, TorchScript, torch.export, ONNX, each compared with the checkpoint.

python train/export.py runs/x --to exported
python train/export.py s3://bucket/runs/x --to s3://bucket/models/x --data s3://bucket/mds --cache /tmp/cache
python train/export.py runs/x/ep90-ba56250.pt --to exported --weights trained --formats onnx
"""

import argparse
import logging
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Started as a script, Python puts this file's own folder on the path; the packages are in the one above.
_HERE = Path(__file__).resolve().parent
if Path(sys.path[0] or ".").resolve() == _HERE:
    sys.path[0] = str(_HERE.parent)

from imagestream.cores import wait_passively

wait_passively()  # before torch is imported

from importlib.metadata import version

from composer.devices import Device
from composer.utils import dist

from imagestream.data.job_dir import scratch_folder
from imagestream.mds.names import shown
from imagestream.storage.places import open_place
from imagestream.storage.protocol import Place
from train.config.argument_keys import in_options
from train.config.run_config import ConfigError, config_from_dict
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
from train.exporting.card import CheckedFile, Exported, card, recipe
from train.exporting.checks import FOLDED_BOUND, Evaluated, ExportError, check_graph, evaluate_both, loaded
from train.exporting.files import (
    ALL_NAMES,
    CARD_NAME,
    GRAPHS,
    RECIPE_NAME,
    describe,
    write_graph,
    write_model,
)
from train.exporting.network import is_folded, plain_tensors
from train.exporting.shipped_model import CONFIG_NAME
from train.model import weights_sha256
from train.process import precision_on, start_process
from train.resume.start import RefusedError
from train.weights.choosing import choose_checkpoint, read_record

RUNTIMES = {"torchscript": "torch", "torch_export": "torch", "onnx": "onnxruntime"}
IMAGES = 1024
CACHE = "__pycache__/"  # Python's, of whoever has imported model.py there

log = logging.getLogger(__name__)


def main(argv: Sequence[str]) -> int:
    """Run the command; return its exit code: 0, 1 when a file is not as the checkpoint, 2 when it cannot be begun."""
    args = parse(argv)
    try:
        export(args)
    except RefusedError as error:
        print(shown(in_options(error)), file=sys.stderr)
        return 2
    except ExportError as error:
        print(f"nothing is exported: {shown(str(error))}", file=sys.stderr)
        return 1
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the command's arguments."""
    parser = argparse.ArgumentParser(prog="train/export.py", description="Export a trained network for others.")
    parser.add_argument("run", metavar="RUN_OR_CHECKPOINT", help="a run's save folder, or a .pt in it; local or s3://")
    parser.add_argument("--to", required=True, metavar="DIR", help="an empty or new folder; local or s3://")
    parser.add_argument(
        "--checkpoint",
        choices=["best", "last"],
        default="best",
        help="of a folder: the one with the highest top-1 of those that are left, or the newest; default: best",
    )
    add_weights_option(parser)
    parser.add_argument(
        "--formats",
        default=",".join(GRAPHS),
        metavar="LIST",
        help=f"beside model.safetensors, which is always there; default: {','.join(GRAPHS)}; '' for none",
    )
    add_data_options(parser)
    parser.add_argument("--split", help="default: the run's own data.val_split")
    parser.add_argument("--images", type=int, default=IMAGES, help=f"to check each graph on; default: {IMAGES:,}")
    parser.add_argument("--workers", type=int, metavar="N", help="loader processes; default: the run's")
    parser.add_argument("--replace", action="store_true", help="replace the export that is in --to")
    parser.add_argument("--data-licence", metavar="TEXT", help="of the training images, for the model card")
    parser.add_argument("--dollars-per-hour", type=float, metavar="X", help="of the machines, for the model card")
    args = parser.parse_args(argv)
    args.formats = [name for name in args.formats.split(",") if name]
    if unknown := [name for name in args.formats if name not in GRAPHS]:
        parser.error(f"--formats: {unknown[0]!r} must be one of {', '.join(GRAPHS)}")
    if args.images < 1:
        parser.error("--images: must be at least 1")
    return args


def export(args: argparse.Namespace) -> None:
    """Write, check and describe an export.

    Raises:
        RefusedError: nothing could be begun.
        ExportError: a file is not as the checkpoint.
    """
    device = start_process(DIST_TIMEOUT_SECONDS)
    if dist.get_world_size() > 1:
        raise ConfigError(f"an export is made by one process, and here are {dist.get_world_size()}; use python")
    target = open_place(args.to)
    check_target(target, replace=args.replace)
    place, name = choose_checkpoint(args.run, args.checkpoint)
    with tempfile.TemporaryDirectory(prefix="export-", dir=scratch_folder()) as scratch:
        folder = Path(scratch, "model")
        folder.mkdir()
        log.info("export: %s/%s", place, name)
        make(args, place.get(name, Path(scratch)), name, read_record(place), device, folder)
        made = put_files(target, folder)
    print(f"exported to {args.to}: {', '.join(made)}")


def put_files(target: Place, folder: Path) -> list[str]:
    """Put an export's files into a place, in place of those of an export before; return their names.

    Without config.json nothing is read. It goes first and comes last, so that what is interrupted here is no export
    rather than half of two.
    """
    made = [name for name in ALL_NAMES if (folder / name).exists()]
    there = [name for name in target.names() if name in ALL_NAMES]
    target.delete([name for name in there if name == CONFIG_NAME])
    target.delete([name for name in there if name not in made])
    for name in sorted(made, key=lambda name: name == CONFIG_NAME):
        target.put(name, folder / name)
    return made


def make(args: argparse.Namespace, path: Path, name: str, record: dict[str, Any], device: Device, folder: Path) -> None:
    """Write the files of an export to an empty folder, and compare each with the checkpoint.

    Args:
        path: the checkpoint.
        name: its name.
        record: the run's run.json.

    Raises:
        RefusedError: the checkpoint or the data cannot be used.
        ExportError: a file is not as the checkpoint.
    """
    saved = read_run(path)
    cfg = config_from_dict(saved["config"])
    cfg = with_data(cfg, args.data, args.cache, workers=args.workers)
    split = args.split if args.split is not None else cfg.data.val_split
    is_own_split = args.data is None and split == cfg.data.val_split
    files, loader, _ = open_split(cfg, saved, split, device)
    trainer = trainer_for(cfg, saved, path, loader, device, shown=name, weights=args.weights)
    reference = classifier_of(trainer)
    sha256 = weights_sha256(reference)
    tensors = plain_tensors(reference.module)
    described = describe(cfg, reference.module, saved, files.manifest())
    write_model(folder, described, tensors)
    evaluated = evaluate_both(
        reference,
        loaded(folder),
        loader,
        precision_on(device, cfg),
        (cfg.data.mean, cfg.data.std),
        keep=args.images,
        bound=FOLDED_BOUND if is_folded(reference.module) else 0.0,
    )
    log.info("export: %s", evaluated.figures)
    checked = [make_graph(kind, folder, described, evaluated) for kind in args.formats]
    (folder / RECIPE_NAME).write_text(recipe(cfg), encoding="utf-8")
    text = card(
        cfg,
        record,
        described,
        evaluated.figures,
        checked,
        Exported(name, args.weights, sha256, split, files.fingerprint(split), is_own_split),
        data_licence=args.data_licence,
        dollars_per_hour=args.dollars_per_hour,
    )
    (folder / CARD_NAME).write_text(text, encoding="utf-8")


def make_graph(kind: str, folder: Path, described: dict[str, Any], evaluated: Evaluated) -> CheckedFile:
    """Write one of GRAPHS, and compare it."""
    path = folder / GRAPHS[kind]
    write_graph(kind, loaded(folder), described, path)
    agreement = check_graph(kind, path, evaluated)
    checked = CheckedFile(kind, agreement, f"{RUNTIMES[kind]} {version(RUNTIMES[kind])}")
    log.info("export: %s: %s", path.name, checked)
    return checked


def check_target(target: Place, *, replace: bool) -> None:
    """Refuse a folder in which there is something, but for an export that is to be replaced.

    Raises:
        ConfigError: there is.
        PlaceError: it cannot be written.
    """
    there = [name for name in target.names() if name != CACHE]
    strange = [name for name in there if name not in ALL_NAMES]
    if there and (strange or not replace):
        remedy = "give another folder" if strange else "give another folder, or --replace"
        raise ConfigError(f"--to: {target} holds {(strange or there)[0]}; {remedy}")
    target.check_writable()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
