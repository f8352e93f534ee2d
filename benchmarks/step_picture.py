"""Draw what benchmarks/step.py has measured."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def draw(report: dict[str, Any], path: Path) -> None:
    """Write a PNG: images/s of each contestant, and beside it what the host does for a step, a row of panels a size."""
    sizes = sorted({row["px"] for row in report["rows"]})
    most = max(sum(row["px"] == px for row in report["rows"]) for px in sizes)
    shape = {"figsize": (12, 0.34 * most * len(sizes) + 1.6), "layout": "constrained", "squeeze": False}
    figure, panels = plt.subplots(len(sizes), 2, **shape)
    for (rates, host), px in zip(panels, sizes, strict=True):
        rows = [row for row in report["rows"] if row["px"] == px][::-1]
        colours = ["tab:blue" if row["contestant"].startswith("ours") else "lightgrey" for row in rows]
        bars(rates, rows, "images_per_sec", colours)
        rates.set(title=f"{px} px", xlabel="images/s")
        names = [f"{row['counts']['launches']:,.0f} launches, {row['counts']['waits']:.0f} waits" for row in rows]
        bars(host, rows, "host_ms", colours, names)
        host.set(title=f"{px} px", xlabel="ms of the host a step" + ("; black line: of the GPU" if gpu(rows) else ""))
        for at, row in enumerate(rows):
            if row["gpu_ms"]:
                host.plot([row["gpu_ms"]["median"]] * 2, [at - 0.4, at + 0.4], color="black", linewidth=2)
    figure.suptitle(
        f"{report['model']}, {report['precision']}, {report['batch']} images a step on {report['ranks']} rank(s); "
        f"{report['device']}; {report['rounds']} rounds, interleaved"
    )
    figure.savefig(path, dpi=120)
    plt.close(figure)


def bars(axes: Any, rows: list[dict[str, Any]], key: str, colours: list[str], names: list[str] | None = None) -> None:
    """Draw medians as bars, with minimum and maximum."""
    found = [row[key] for row in rows]
    medians = [spread["median"] for spread in found]
    errors = [[spread["median"] - spread["min"] for spread in found], [s["max"] - s["median"] for s in found]]
    axes.barh(range(len(rows)), medians, xerr=errors, color=colours, ecolor="black", capsize=2)
    axes.set_yticks(range(len(rows)), names or [row["contestant"] for row in rows])


def gpu(rows: list[dict[str, Any]]) -> bool:
    """Return whether a GPU's times are there."""
    return any(row["gpu_ms"] for row in rows)
