"""The files of an exported model: tensors, graphs and what describes them."""

import contextlib
import json
import logging
import math
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from imagestream.mds.manifest import Manifest
from train.config.networks import RESNETS, TIMM, VITS
from train.config.run_config import Config
from train.exporting import shipped_model
from train.exporting.network import altered_layers
from train.exporting.shipped_model import CONFIG_NAME, WEIGHTS_NAME, FromPixels

MODEL_NAME, CARD_NAME, RECIPE_NAME = "model.py", "README.md", "recipe.yaml"
GRAPHS = {"torchscript": "model.torchscript.pt", "torch_export": "model.pt2", "onnx": "model.onnx"}
ALL_NAMES = (MODEL_NAME, CONFIG_NAME, WEIGHTS_NAME, CARD_NAME, RECIPE_NAME, *GRAPHS.values())
EXPORT_FORMAT = 1  # of config.json: what model.py and train/predict.py read in it
OPSET = 18  # of ONNX; the one that torch 2.7 to 2.15 write by default
PIXELS, LOGITS = "pixels", "logits"
"""What goes into a graph, uint8 RGB (batch, 3, height, width), and what comes out, float32 (batch, classes)."""
FLOAT_SCALE = 255.0  # timm's mean and std are of pixels from 0 to 1

log = logging.getLogger(__name__)


def describe(cfg: Config, network: nn.Module, saved: Mapping[str, Any], manifest: Manifest | None) -> dict[str, Any]:
    """Return config.json: what model.py reads, and beside it timm's and Hugging Face's own keys.

    `architecture` is there where timm's network of that name is the same function, and only there.

    Args:
        saved: what the checkpoint says of its run, as `train.evaluation.read_run` returns it.
    """
    num_classes, classes = int(saved["num_classes"]), saved.get("classes")
    layers = altered_layers(network)
    names = list(classes) if classes is not None else [str(number) for number in range(num_classes)]
    names += [str(number) for number in range(len(names), num_classes)]
    readable = {} if manifest is None else {info.wnid: info.name for info in manifest.classes}
    data = cfg.data
    described: dict[str, Any] = {
        "format": EXPORT_FORMAT,
        "network": {"library": "torchvision", "name": cfg.model.name, "image_px": None, "layers": layers},
        "pixels": {
            "resize_px": data.eval_resize_size,
            "crop_px": data.eval_crop_size,
            "interpolation": data.eval_interpolation,
            "mean": list(data.mean),
            "std": list(data.std),
            "exif": saved.get("exif") or "ignore",
        },
        "num_classes": num_classes,
        "label_names": names,
        "label_descriptions": {name: readable.get(name, name) for name in names},
        "num_labels": num_classes,
        "id2label": {str(number): readable.get(name, name) for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
    }
    described["network"] |= _of_one_size(cfg)
    if timms := timms_name(cfg.model.name, layers):
        described |= {
            "architecture": timms,
            "model_type": "timm_wrapper",
            "pretrained_cfg": {
                "input_size": [3, data.eval_crop_size, data.eval_crop_size],
                "interpolation": data.eval_interpolation,
                "crop_pct": crop_fraction(data.eval_crop_size, data.eval_resize_size),
                "crop_mode": "center",
                "mean": [value / FLOAT_SCALE for value in data.mean],
                "std": [value / FLOAT_SCALE for value in data.std],
                "num_classes": num_classes,
                "license": "unknown",
            },
        }
    return described


def _of_one_size(cfg: Config) -> dict[str, Any]:
    """Return the library and name of a network, and the edge of its images where it takes one size alone."""
    if cfg.model.name.startswith(TIMM):
        import timm

        name = cfg.model.name.removeprefix(TIMM)
        known = timm.models.get_pretrained_cfg(name)
        is_fixed = bool(known and known.fixed_input_size)
        return {"library": "timm", "name": name, "image_px": cfg.data.crop_size if is_fixed else None}
    return {"image_px": cfg.data.crop_size} if cfg.model.name in VITS else {}


def timms_name(name: str, layers: Mapping[str, Any]) -> str | None:
    """Return the name of timm's network that is the same function with the same names of tensors; None: there is none.

    torchvision's ResNets are: timm has them under the same names. With BlurPool they are not: timm blurs elsewhere.
    """
    if layers:
        return None
    if name.startswith(TIMM):
        return name.removeprefix(TIMM)
    return name if name in RESNETS else None


def crop_fraction(crop_px: int, resize_px: int) -> float:
    """Return timm's crop_pct, from which it works out floor(crop_px / crop_pct) as the edge to resize to."""
    fraction = crop_px / resize_px
    while math.floor(crop_px / fraction) < resize_px:
        fraction = math.nextafter(fraction, 0)
    return fraction


def write_model(folder: Path, described: Mapping[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write what model.py needs, and model.py."""
    shutil.copyfile(shipped_model.__file__, folder / MODEL_NAME)
    (folder / CONFIG_NAME).write_text(json.dumps(described, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    save_file(tensors, folder / WEIGHTS_NAME, metadata={"format": "pt"})


def write_graph(kind: str, network: nn.Module, described: Mapping[str, Any], path: Path) -> None:
    """Write the network behind its normalisation as one of GRAPHS, for any number of images; on the CPU, in float32."""
    pixels = described["pixels"]
    module = FromPixels(network, pixels["mean"], pixels["std"]).eval()
    example = torch.zeros(2, 3, pixels["crop_px"], pixels["crop_px"], dtype=torch.uint8)
    with torch.no_grad(), quiet():
        if kind == "torchscript":
            traced = torch.jit.trace(module, example, check_trace=False)
            torch.jit.save(traced, str(path), _extra_files={CONFIG_NAME: json.dumps(described)})
            return
        program = torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        if kind == "torch_export":
            torch.export.save(program, path, extra_files={CONFIG_NAME: json.dumps(described)})
            return
        onnx_program = torch.onnx.export(
            program, dynamo=True, opset_version=OPSET, input_names=[PIXELS], output_names=[LOGITS], verbose=False
        )
        assert onnx_program is not None
        onnx_program.model.metadata_props[CONFIG_NAME] = json.dumps(described)
        onnx_program.save(path)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep torch's exporters from writing of their own changes: TorchScript's end, which opset was taken."""
    level = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.getLogger("torch.onnx").setLevel(level)
