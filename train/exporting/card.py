"""README.md of an exported model: what it is, how it was made, how to load it, and how far to trust it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from imagestream import __version__
from train.config.run_config import Config
from train.exporting.checks import Agreement, Figures
from train.exporting.files import GRAPHS, OPSET, RECIPE_NAME

SECONDS_PER_HOUR = 3600
NAMES = {"torchscript": "TorchScript", "torch_export": "torch.export", "onnx": f"ONNX, opset {OPSET}"}


@dataclass(frozen=True)
class CheckedFile:
    """A graph and how near it comes to the checkpoint.

    Attributes:
        kind: one of GRAPHS.
        runtime: what ran it.
    """

    kind: str
    agreement: Agreement
    runtime: str

    def __str__(self) -> str:
        found = self.agreement
        first = f"the same class first{f' but for {found.ties} ties' if found.ties else ''}"
        return f"{found.images:,} images by {self.runtime}: {first}, logits within {found.largest_difference:.1e}"


@dataclass(frozen=True)
class Exported:
    """Whose figures a card has.

    Attributes:
        checkpoint: its name.
        weights: "averaged" or "trained".
        sha256: of its tensors.
        split: on which it was compared.
        split_fingerprint: SHA-256 of its index.
        is_own_split: whether the run's own evaluations are on that split.
    """

    checkpoint: str
    weights: str
    sha256: str
    split: str
    split_fingerprint: str
    is_own_split: bool

    @property
    def batch(self) -> int | None:
        """The batches that the checkpoint has seen; None for a file of another name."""
        match = re.search(r"-ba(\d+)\.pt$", self.checkpoint)
        return int(match[1]) if match else None


def card(
    cfg: Config,
    record: Mapping[str, Any],
    described: Mapping[str, Any],
    figures: Figures,
    checked: Sequence[CheckedFile],
    exported: Exported,
    *,
    data_licence: str | None,
    dollars_per_hour: float | None,
) -> str:
    """Return the model card, in Hugging Face's form."""
    name = cfg.model.name
    is_end = exported.batch is not None and exported.batch == record.get("batches")
    parts = [
        _front_matter(cfg, described, figures, exported),
        f"# {_plain(cfg.run_name)}: {name}, {described['num_classes']:,} classes\n",
        _figures(figures, record, exported),
        _files(described, checked),
        _use(described),
        _training(cfg, record, exported, is_end=is_end),
        _cost(record, dollars_per_hour, is_end=is_end),
        f"## Licence\n\nOf the training images: {_plain(data_licence) if data_licence else 'not stated'}. "
        "It may limit what the weights may be used for. ImageNet's images are for non-commercial research.\n",
    ]
    return "\n".join(part for part in parts if part)


def recipe(cfg: Config) -> str:
    """Return the run's whole configuration as a file for train/main.py, without the places that it read and wrote.

    `model.weights` stays: without it the run would be another one.
    """
    stored = cfg.model_dump(mode="json")
    stored["data"] |= {"remote": None, "local": "SHARDS", "cache_limit_gb": None}
    stored["checkpoint"] |= {"save_folder": f"runs/{cfg.run_name}"}
    stored["loggers"] |= {"wandb": None, "mlflow": None}
    return yaml.safe_dump(stored, sort_keys=False, allow_unicode=True)


def _front_matter(cfg: Config, described: Mapping[str, Any], figures: Figures, exported: Exported) -> str:
    matter: dict[str, Any] = {
        "library_name": "timm" if "architecture" in described else "torchvision",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", cfg.model.name.replace(":", "-")],
    }
    metrics = [
        {"type": "accuracy", "name": "top-1", "value": round(100 * figures.top1, 4)},
        {"type": "accuracy", "name": "top-5", "value": round(100 * figures.top5, 4)},
    ]
    result = {
        "task": {"type": "image-classification"},
        "dataset": {
            "name": "the run's validation split" if exported.is_own_split else f"the split {exported.split or '.'}",
            "type": "images",
        },
        "metrics": metrics,
    }
    matter["model-index"] = [{"name": cfg.run_name, "results": [result]}]
    return f"---\n{yaml.safe_dump(matter, sort_keys=False)}---\n"


def _figures(figures: Figures, record: Mapping[str, Any], exported: Exported) -> str:
    rows = [
        "| | top-1 | top-5 | loss, nats |",
        "|---|---|---|---|",
        f"| `model.safetensors`, all {figures.samples:,} images of the split | {figures.top1:.2%} ({figures.hits:,}) | "
        f"{figures.top5:.2%} ({figures.hits5:,}) | {figures.loss:.4f} |",
    ]
    has_own = exported.is_own_split and exported.weights == "averaged"  # as the run evaluates
    for row in record.get("evaluations", []) if has_own else ():
        if row["batch"] == exported.batch:
            hits, hits5 = (round(row[key] * row["samples_evaluated"]) for key in ("top1", "top5"))
            rows.append(
                f"| the run's own evaluation, {row['samples_evaluated']:,} images | {row['top1']:.2%} ({hits:,}) | "
                f"{row['top5']:.2%} ({hits5:,}) | {row['loss']:.4f} |"
            )
    split = f"`{exported.split or '.'}`, fingerprint `{exported.split_fingerprint}`"
    of = f"Of the split {split}: each image once; in brackets, the hits.\n"
    return "\n".join(rows) + "\n\n" + of


def _files(described: Mapping[str, Any], checked: Sequence[CheckedFile]) -> str:
    network, timms = described["network"], "architecture" in described
    rows = [
        "## Files\n",
        "| file | what it is | compared with the checkpoint |",
        "|---|---|---|",
        f"| `model.safetensors` | the tensors, under the names of {network['library']}'s network | see above |",
        "| `model.py` | builds and loads it; one file, for torch, torchvision and safetensors | |",
        f"| `config.json` | network, classes, pixels{'; timm and transformers read it too' if timms else ''} | |",
        f"| `{RECIPE_NAME}` | the whole configuration that it was trained by | |",
    ]
    rows += [f"| `{GRAPHS[file.kind]}` | {NAMES[file.kind]}, any number of images | {file} |" for file in checked]
    text = "\n".join(rows) + "\n"
    if layers := network["layers"]:
        some = ", ".join(list(layers)[:4]) + (", ..." if len(layers) > 4 else "")
        text += (
            f"\nThis is not {network['library']}'s {network['name']}: {len(layers)} of its layers blur or weight "
            f"channels ({some}). The tensors fit that network, but there they are another function, with far worse "
            "figures. Load it by `model.py`.\n"
        )
    return text


def _use(described: Mapping[str, Any]) -> str:
    pixels = described["pixels"]
    crop, resize = pixels["crop_px"], pixels["resize_px"]
    lines = [
        "## Use\n",
        f"An image is taken as RGB, its short side resized to {resize} px ({pixels['interpolation']}, antialiased), "
        f"and the middle {crop} px are cut out. `model.py` and timm normalise it by mean {pixels['mean']} and std "
        f"{pixels['std']} (of 0 to 255). The graphs do so themselves: they take `pixels`, uint8 RGB (batch, 3, {crop}, "
        f"{crop}), and give `logits`, float32 (batch, {described['num_classes']}).\n",
        "```python",
        "from model import class_names, load, transform  # in this folder",
        "",
        "network, names = load(), class_names()",
        'logits = network(transform()(PIL.Image.open("cat.jpg")).unsqueeze(0))',
        "print(names[logits.argmax()])",
        "```",
    ]
    if "architecture" in described:
        lines += [
            "\n```python",
            'network = timm.create_model("local-dir:THIS_FOLDER", pretrained=True).eval()',
            "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))",
            "```",
        ]
    return "\n".join(lines) + "\n"


def _training(cfg: Config, record: Mapping[str, Any], exported: Exported, *, is_end: bool) -> str:
    data, hardware, batch = (record.get(key, {}) for key in ("dataset", "hardware", "batch"))
    name, total = exported.checkpoint.rpartition("/")[2], batch.get("total_steps")
    final = record.get("ledger", {}).get("final") if is_end else None
    seen = f"{exported.batch:,} of {total:,} batches; " if exported.batch and total else ""
    facts = {
        "checkpoint": f"`{name}`, {exported.weights}; SHA-256 of its tensors `{exported.sha256}`",
        "length": f"{seen}the run: {cfg.max_duration}, global batch {cfg.global_batch_size:,}, seed {cfg.seed}",
        "images": f"{data['train_samples']:,}, fingerprint `{data['fingerprint']}`" if data else None,
        "order": f"ledger of all batches `{final}`" if final else None,
        "machines": f"{batch.get('world_size')} x {hardware['device']}" if hardware else None,
        "speed": f"{speed:,.0f} images/s" if (speed := record.get("throughput", {}).get("images_per_sec")) else None,
        "versions": ", ".join(f"{name} {version}" for name, version in record.get("versions", {}).items()) or None,
        "exported by": f"resnet-streaming {__version__}",
    }
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items() if value)
    return (
        f"## How it was trained\n\n| | |\n|---|---|\n{rows}\n\nAgain, from the same shards:\n\n```bash\n"
        f"python train/main.py {RECIPE_NAME} data.local=SHARDS\n```\n"
    )


def _cost(record: Mapping[str, Any], dollars_per_hour: float | None, *, is_end: bool) -> str:
    """Return what the training took, where the record says it; it counts the whole run."""
    times = record.get("time", {})
    hours, price = times.get("train_s", 0) / SECONDS_PER_HOUR, dollars_per_hour or times.get("usd_per_hour")
    if not hours:
        return ""
    batches = record.get("batches")  # of a run that has ended
    what = "Training" if is_end else f"The whole run, {batches:,} batches," if batches else "So far the run"
    text = f"{what} took {hours:,.2f} hours, without evaluations and what was lost to interruptions."
    if price is not None:
        text += f" At {price:,.2f} dollars an hour that is {hours * price:,.2f} dollars."
    return text + "\n"


def _plain(text: str | None) -> str:
    """Return a text as Markdown shows it, whatever is in it."""
    return re.sub(r"([\\`*_{}\[\]<>#|])", r"\\\1", " ".join((text or "").split()))
