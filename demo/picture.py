"""two-runs.png: the loss of a run that nothing disturbed, and of one that was killed and resumed."""

import re
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # the backend is chosen first: there may be no screen

from demo.summary import Killed

STEP = re.compile(r", step ([\d,]+)/[\d,]+, loss ([\d.]+)")


def losses_of(log: Path) -> list[tuple[int, float]]:
    """Return (batch from 1, loss) of each batch that a run's console has shown."""
    return [(int(step.replace(",", "")), float(loss)) for step, loss in STEP.findall(log.read_text())]


def draw(
    undisturbed: dict[str, Any], interrupted: dict[str, Any], killed: list[Killed], logs: list[Path], path: Path
) -> Path:
    """Draw the runs' loss over their batches.

    Args:
        killed: where the second run was killed.
        logs: what it had shown until then, one for each.
    """
    figure, axis = plt.subplots(figsize=(8, 3.2), layout="constrained")
    curve = [(row["batch"], row["loss"]) for row in undisturbed["curve"]]
    axis.plot(*zip(*curve, strict=True), color="#c7cdd4", linewidth=7, label="never interrupted")
    begin = 1
    for kill, log in zip(killed, logs, strict=True):
        before = [point for point in losses_of(log) if begin <= point[0] <= kill.batch]
        if not before:  # killed before its console had shown a batch
            continue
        axis.plot(*zip(*before, strict=True), color="#d1495b", linewidth=1.6, label="_")
        axis.plot(*before[-1], "x", color="#d1495b", markersize=11, markeredgewidth=3, label="_")
        axis.annotate(
            f"kill -9 after batch {kill.batch}",
            before[-1],
            (-8, -24),
            textcoords="offset points",
            ha="right",
            color="#d1495b",
        )
        begin = _resumed_at(kill) + 1
    rest = [(row["batch"], row["loss"]) for row in interrupted["curve"] if row["batch"] >= begin]
    axis.plot(*zip(*rest, strict=True), color="#1f6f8b", linewidth=1.6, label=f"resumed from batch {begin - 1}")
    axis.plot([], [], color="#d1495b", linewidth=1.6, label="until it was killed")
    same = undisturbed["weights_sha256"] == interrupted["weights_sha256"]
    axis.set_title(
        f"Two runs: final weights {undisturbed['weights_sha256'][:12]} and {interrupted['weights_sha256'][:12]}, "
        + ("the same to the last bit" if same else "not the same"),
        fontsize=10,
    )
    axis.set_xlabel("batch")
    axis.set_ylabel("training loss")
    axis.grid(alpha=0.25)
    axis.legend(frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _resumed_at(kill: Killed) -> int:
    return int(kill.checkpoint.partition("-ba")[2].removesuffix(".pt"))
