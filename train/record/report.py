"""report.png: a run at a glance."""

import io
from collections.abc import Mapping
from functools import partial
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # the backend is chosen first: there may be no screen
from matplotlib.axes import Axes

from train.record.curves import charts
from train.record.summary import headline

COLUMNS = 4
WIDTH, HEIGHT = 3.9, 3.1  # inches of a chart


def draw(record: Mapping[str, Any]) -> bytes:
    """Return the charts of a run record over its batches and epochs, and its figures beside them, as a PNG."""
    found = charts(record)
    columns = min(COLUMNS, len(found) + 1)
    rows = -(-(len(found) + 1) // columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(WIDTH * columns, HEIGHT * rows), squeeze=False, layout="constrained"
    )
    axes = list(grid.flat)
    for axis, chart in zip(axes, found, strict=False):
        _draw_chart(axis, chart, record["batch"]["steps_per_epoch"])
    for axis in axes[len(found) :]:
        axis.axis("off")
    axes[len(found)].text(0, 1, _summary(record), va="top", family="monospace", fontsize=9)
    figure.suptitle(record["config"]["run_name"])
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=90)
    plt.close(figure)
    return png.getvalue()


def _draw_chart(axis: Axes, chart: Mapping[str, Any], steps_per_epoch: int) -> None:
    for series in chart["series"]:
        drawstyle = "steps-pre" if series["kind"] == "step" else "default"
        marker = "o" if series["kind"] == "dots" else ""
        axis.plot(series["x"], series["y"], label=series["label"], marker=marker, markersize=3, drawstyle=drawstyle)
    axis.set_title(", ".join(part for part in (chart["title"], chart["unit"]) if part), fontsize=10)
    axis.set_xlabel("batch", fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3)
    axis.set_xlim(left=0)
    if chart["log"]:
        axis.set_yscale("log")
    else:
        axis.set_ylim(bottom=0)
    to_epochs, to_batches = partial(np.multiply, 1 / steps_per_epoch), partial(np.multiply, steps_per_epoch)
    above = axis.secondary_xaxis("top", functions=(to_epochs, to_batches))
    above.tick_params(labelsize=8)
    above.set_xlabel("epoch", fontsize=9)
    if len(chart["series"]) > 1:
        axis.legend(fontsize=8)


def _summary(record: Mapping[str, Any]) -> str:
    data, hardware, config = record["dataset"], record["hardware"], record["config"]
    lines = [
        record["status"],
        f"{config['model']['name']}, {data['num_classes']} classes",
        f"{data['train_samples']:,} train, {data['val_samples']:,} val samples",
        f"global batch {config['global_batch_size']} = {hardware['world_size']} x {hardware['device']}",
        *(f"{label} {value}" + (f" ({note})" if note else "") for label, value, note in headline(record)),
    ]
    if "weights_sha256" in record:
        lines.append(f"weights {record['weights_sha256'][:16]}")
    return "\n".join(lines)
