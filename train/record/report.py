"""report.png: a run at a glance."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # the backend is chosen first: there may be no screen
from matplotlib.axes import Axes


def draw(record: dict[str, Any], path: Path) -> Path:
    """Draw loss, accuracy, learning rate, image size and throughput of a run record over its batches."""
    curve, evaluated = record["curve"], record["evaluations"]
    figure, axes = plt.subplots(2, 3, figsize=(13, 7))
    figure.subplots_adjust(left=0.055, right=0.98, bottom=0.07, top=0.9, wspace=0.16, hspace=0.3)
    loss, accuracy, text, lr, size, speed = axes.flat
    _line(loss, curve, "loss", "train")
    _line(loss, evaluated, "loss", "val (cross-entropy)", marker="o")
    _line(accuracy, evaluated, "top1", "top-1", marker="o", to=lambda value: 100 * value)
    _line(accuracy, evaluated, "top5", "top-5", marker="o", to=lambda value: 100 * value)
    _line(lr, curve, "lr")
    _line(size, curve, "image_px")
    _line(speed, curve, "images_per_sec")
    for axis, title in (
        (loss, "loss, nats"),
        (accuracy, "accuracy, %"),
        (lr, "learning rate"),
        (size, "training image edge, px"),
        (speed, "images/s, all ranks"),
    ):
        axis.set_title(title)
        axis.set_xlabel("batch")
        axis.grid(alpha=0.3)
        axis.set_ylim(bottom=0)
        if axis.get_legend_handles_labels()[1]:
            axis.legend()
    text.axis("off")
    text.text(0, 1, _summary(record), va="top", family="monospace", fontsize=9)
    figure.suptitle(record["config"]["run_name"])
    figure.savefig(path, dpi=90)
    plt.close(figure)
    return path


def _line(
    axis: Axes,
    rows: Sequence[dict[str, Any]],
    key: str,
    label: str = "",
    marker: str = "",
    to: Callable[[float], float] = lambda value: value,
) -> None:
    points = [(row["batch"], to(row[key])) for row in rows if row.get(key) is not None]
    if points:
        axis.plot(*zip(*points, strict=True), label=label or None, marker=marker)


def _summary(record: dict[str, Any]) -> str:
    data, hardware, speed = record["dataset"], record["hardware"], record["throughput"]
    config = record["config"]
    lines = [
        record["status"],
        f"{config['model']['name']}, {data['num_classes']} classes",
        f"{data['train_samples']:,} train, {data['val_samples']:,} val samples",
        f"global batch {config['global_batch_size']} = {hardware['world_size']} x {hardware['device']}",
    ]
    if record.get("top1") is not None:
        lines.append(f"top-1 {record['top1']:.2%}  top-5 {record['top5']:.2%}  n={record['samples_evaluated']:,}")
    if speed["images_per_sec"]:
        lines.append(f"{speed['images_per_sec']:,.0f} images/s, {speed['data_wait_fraction']:.0%} waiting for data")
    if "weights_sha256" in record:
        lines.append(f"weights {record['weights_sha256'][:16]}")
    return "\n".join(lines)
