"""The scaling from 1 to 64 nodes, as a picture."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def draw(report: dict[str, Any], path: Path) -> None:
    """Write a PNG: images/s and hours by the number of nodes, for one batch and for a batch that grows with them."""
    figure, (speed, hours) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    batch = report["global_batch_size"]
    labels = {"strong": f"batch {batch:,}", "weak": f"batch {batch:,} a node"}
    rows = report["scaling"]
    for way, label in labels.items():
        there = [(row["nodes"], row[way]) for row in rows if way in row]
        nodes = [number for number, _ in there]
        speed.plot(nodes, [row["images_per_sec"] for _, row in there], marker="o", label=label)
        hours.plot(nodes, [row["hours"] for _, row in there], marker="o", label=label)
    one = rows[0]["strong"]["images_per_sec"] if "strong" in rows[0] else None
    if one:
        ideal = [one * row["nodes"] for row in rows]
        speed.plot([row["nodes"] for row in rows], ideal, linestyle=":", color="grey", label="linear")
    for axes, what in ((speed, "images/s"), (hours, "hours for the run")):
        axes.set(xscale="log", yscale="log", xlabel=f"nodes ({report['instance']})", ylabel=what)
        axes.set_xticks([row["nodes"] for row in rows], [str(row["nodes"]) for row in rows])
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(f"{report['config']}, predicted")
    figure.savefig(path, dpi=120)
    plt.close(figure)
