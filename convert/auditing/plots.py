"""The plots of an audit's report: samples per class, image sizes, and bytes per image; a panel for each split."""

from collections.abc import Callable, Sequence
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.figure import Figure  # without pyplot there is no screen to look for

from convert.auditing.shards import Rows
from convert.auditing.splits import SplitRows, class_counts, range_of
from imagestream.mds.manifest import Manifest

# Okabe and Ito's colours, which the colour-blind can tell apart (https://jfly.uni-koeln.de/color/).
BLUE, VERMILION, BLACK = "#0072B2", "#D55E00", "#000000"
PANEL_WIDTH_IN, PANEL_HEIGHT_IN, DPI = 5.6, 4.2, 110
MOST_BARS = 120  # beyond, bars are thinner than a pixel or two and run into each other
MOST_POINTS = 5000  # beyond, a scatter is a blot; counts in hexagons are not
BINS = 60
# Round numbers for a logarithmic axis.
_ROUND = [digit * 10**power for power in range(10) for digit in (1, 2, 5)]


def plot_class_counts(splits: Sequence[SplitRows], manifest: Manifest | None) -> bytes:
    """Samples of each class, and the manifest's count where that differs. A PNG."""
    num_classes = len(manifest.classes) if manifest else None

    def draw(axis: Any, split: SplitRows) -> None:
        counts = np.array(class_counts(split.rows, num_classes))
        labels = np.arange(len(counts))
        if len(counts) <= MOST_BARS:
            axis.bar(labels, counts, color=BLUE, width=0.8)
        else:
            axis.fill_between(labels, counts, step="mid", color=BLUE, linewidth=0)
        info = manifest.splits.get(split.split) if manifest else None
        if info:
            promised = np.array(info.histogram)
            wrong = np.flatnonzero(promised != counts)
            if len(wrong):
                axis.scatter(
                    wrong, promised[wrong], marker="x", color=VERMILION, label="manifest.json, where it differs"
                )
                axis.legend(loc="lower right")
        axis.set(xlabel="class index (label)", ylabel="samples", ylim=(0, 1.08 * max([1, *counts])))
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.yaxis.get_major_locator().set_params(integer=True)
        axis.yaxis.set_major_formatter("{x:,.0f}")
        axis.grid(axis="y", alpha=0.3)
        axis.set_axisbelow(True)
        spread = "none"
        if len(counts):
            spread = f"{range_of(counts)} each, mean {counts.mean():,.1f}"
        axis.set_title(f"{_name(split)}: {counts.sum():,} samples in {len(counts):,} classes\n{spread}", fontsize=10)

    return _figure(splits, draw)


def plot_sizes(splits: Sequence[SplitRows]) -> bytes:
    """Width against height of the decoded images. A PNG."""
    limits = _limits([_sizes(split.rows) for split in splits])

    def draw(axis: Any, split: SplitRows) -> None:
        sizes = _sizes(split.rows)
        axis.set(xscale="log", yscale="log", xlim=limits, ylim=limits, aspect="equal")
        if len(sizes) > MOST_POINTS:
            hexagons = axis.hexbin(
                sizes[:, 0], sizes[:, 1], gridsize=BINS, xscale="log", yscale="log", bins="log", mincnt=1,
                extent=(*np.log10(limits), *np.log10(limits)), cmap="cividis",
            )  # fmt: skip
            axis.figure.colorbar(hexagons, ax=axis, label="images in a hexagon", shrink=0.8)
        else:
            axis.scatter(sizes[:, 0], sizes[:, 1], s=12, alpha=0.5, color=BLUE, linewidths=0)
        axis.plot(limits, limits, color=BLACK, linewidth=0.8, linestyle=":")
        middle_of_axis = float(np.sqrt(limits[0] * limits[1]) / (limits[1] / limits[0]) ** 0.4)
        axis.text(middle_of_axis, middle_of_axis, "square", rotation=45, va="bottom", ha="center", fontsize=8)
        axis.set(xlabel="width, px", ylabel="height, px")
        _round_ticks(axis.xaxis, limits)
        _round_ticks(axis.yaxis, limits)
        axis.grid(alpha=0.3)
        middle = f"median {np.median(sizes[:, 0]):,.0f} x {np.median(sizes[:, 1]):,.0f} px" if len(sizes) else "none"
        axis.set_title(f"{_name(split)}: {len(sizes):,} of {len(split.rows):,} images decoded\n{middle}", fontsize=10)

    return _figure(splits, draw)


def plot_bytes(splits: Sequence[SplitRows]) -> bytes:
    """How many images have how many bytes. A PNG."""
    limits = _limits([split.rows["bytes"] / 1000 for split in splits])
    bins = np.geomspace(*limits, BINS + 1)

    def draw(axis: Any, split: SplitRows) -> None:
        kilobytes = split.rows["bytes"] / 1000
        axis.hist(kilobytes, bins=bins, color=BLUE)
        axis.set(xscale="log", xlim=limits, xlabel="bytes of an image, KB (1,000 bytes)", ylabel="images")
        axis.yaxis.get_major_locator().set_params(integer=True)
        axis.yaxis.set_major_formatter("{x:,.0f}")
        _round_ticks(axis.xaxis, limits)
        axis.grid(alpha=0.3)
        axis.set_axisbelow(True)
        spread = "none"
        if len(kilobytes):
            spread = f"{kilobytes.min():,.1f} to {kilobytes.max():,.1f} KB, mean {kilobytes.mean():,.1f} KB"
        axis.set_title(f"{_name(split)}: {len(kilobytes):,} images\n{spread}", fontsize=10)

    return _figure(splits, draw)


def _name(split: SplitRows) -> str:
    return split.split or "the dataset"


def _sizes(rows: Rows) -> Any:
    decoded = rows[rows["width_px"] > 0]
    return np.stack([decoded["width_px"], decoded["height_px"]], axis=1).astype(float)


def _limits(values: Sequence[Any]) -> tuple[float, float]:
    """Limits of a logarithmic axis that all splits share, so that they can be compared."""
    positive = np.concatenate([part.ravel()[part.ravel() > 0] for part in values]) if values else np.empty(0)
    if not len(positive):
        return 1.0, 10.0
    return float(positive.min()) / 1.1, float(positive.max()) * 1.1


def _round_ticks(axis: Any, limits: tuple[float, float]) -> None:
    ticks = [tick for tick in [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, *_ROUND] if limits[0] <= tick <= limits[1]]
    if len(ticks) < 2:  # all values are about the same
        ticks = [float(f"{edge:.3g}") for edge in np.geomspace(*limits, 4)]
    axis.set_ticks(ticks, [f"{tick:,g}" if tick < 1000 else f"{tick:,.0f}" for tick in ticks])
    axis.set_ticks([], minor=True)


def _figure(splits: Sequence[SplitRows], draw: Callable[[Any, SplitRows], None]) -> bytes:
    """A panel for each split, two in a row."""
    columns = min(2, max(1, len(splits)))
    rows = max(1, -(-len(splits) // columns))
    figure = Figure(figsize=(PANEL_WIDTH_IN * columns, PANEL_HEIGHT_IN * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis, split in zip(axes, splits, strict=False):
        draw(axis, split)
    for axis in axes[len(splits) :]:
        axis.axis("off")
    encoded = BytesIO()
    figure.savefig(encoded, format="png", dpi=DPI)
    return encoded.getvalue()
