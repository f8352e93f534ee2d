"""Write what benchmarks/accuracy.py has measured into the documents: docs/accuracy.md, README.md and the recipes.

    python benchmarks/accuracy_report.py [--check]

Everything comes out of benchmarks/results/imagenette.csv. --check writes nothing, and fails where a document says
something else; a test does that.
"""

import argparse
import csv
import re
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from train.config.run_config import load_config

RESULTS = ROOT / "benchmarks/results/imagenette.csv"
PAGE, README, RECIPES = ROOT / "docs/accuracy.md", ROOT / "README.md", ROOT / "yamls/recipes"
PICTURE = ROOT / "docs/accuracy.png"
NOT_YET = "#   measured   not available yet: we have not run this file"
REFERENCES = {"torchvision": "torchvision's reference loop", "timm": "timm's train script"}
OWN = "imagenette-"  # begins the name of a recipe that was tuned for these images; the others were not
SWITCHED = " + "  # in a name: a recipe, and the one thing that was added to it
_TABLE = re.compile(r"(<!-- results -->\n).*?(<!-- end of results -->\n)", re.DOTALL)
_README_ROW = re.compile(r"^\| accuracy \|.*\n", re.MULTILINE)
_MEASURED = re.compile(r"^#   measured   .*\n(#              .*\n)*", re.MULTILINE)

Row = dict[str, str]
Budget = tuple[str, int, int, int]
"""Network, epochs, px of the images, images of a batch."""


def main(argv: Sequence[str]) -> int:
    """Write the documents; with --check, say which ones are not as the figures want them."""
    parser = argparse.ArgumentParser(description="Write the measured accuracies into the documents.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where something would change")
    check: bool = parser.parse_args(argv).check
    rows = read(RESULTS)
    try:
        stale = [(path, text) for path, text in documents(rows) if path.read_text() != text]
    except ValueError as error:
        print(f"{RESULTS.relative_to(ROOT)}: {error}", file=sys.stderr)
        return 1
    if check:
        for path, _ in stale:
            print(f"{path.relative_to(ROOT)} is not as {RESULTS.relative_to(ROOT)} has it; run {sys.argv[0]}")
        return int(bool(stale))
    for path, text in stale:
        path.write_text(text)
    draw(rows, PICTURE)
    return 0


def read(path: Path) -> list[Row]:
    """Return the CSV's rows, the best of each budget first."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    return sorted(rows, key=lambda row: (budget_of(row), -float(row["top1_mean"])))


def documents(rows: Sequence[Row]) -> Iterator[tuple[Path, str]]:
    """Yield each document with the text that it should have."""
    yield PAGE, replaced(_TABLE, PAGE, lambda match: f"{match[1]}{tables(rows)}{match[2]}")
    yield README, replaced(_README_ROW, README, lambda match: readme_row(rows))
    for path in sorted(RECIPES.glob("*.yaml")):
        mine = [row for row in rows if row["name"] == path.stem]
        line = measured(mine, own_budget(path) if path.stem.startswith(OWN) else None)
        yield path, replaced(_MEASURED, path, lambda match, line=line: line)  # type: ignore[misc]  # of this turn


def replaced(pattern: re.Pattern[str], path: Path, text: Callable[[re.Match[str]], str]) -> str:
    """Return a document with one part written anew.

    Raises:
        ValueError: it has no such part.
    """
    found, count = pattern.subn(text, path.read_text(), count=1)
    if not count:
        raise ValueError(f"{path.relative_to(ROOT)} has no place for the figures: {pattern.pattern!r}")
    return found


def budget_of(row: Row) -> Budget:
    return row["model"], int(row["epochs"]), int(row["px"]), int(row["batch"])


def figure(row: Row) -> str:
    spread = f" +- {row['top1_sd']}" if row["top1_sd"] else ""
    return f"{row['top1_mean']}{spread} %"


def tables(rows: Sequence[Row]) -> str:
    """Return a table for each budget, and one of what was added to a recipe."""
    parts = []
    for budget in sorted({budget_of(row) for row in rows}):
        mine = [row for row in rows if budget_of(row) == budget]
        model, epochs, px, batch = budget
        parts.append(
            f"\n**{model}, {epochs} epochs, {px} px, batches of {batch}**, with {all_of(mine, 'versions')}, "
            f"at commit {all_of(mine, 'commit')}\n\n"
            "| trained | top-1, mean +- standard deviation | each seed | images/s | seconds | on |\n"
            "|---|---|---|---|---|---|\n"
        )
        parts += [
            f"| {shown_name(row)} | {figure(row)} (n = {row['seeds']}, {int(row['images']):,} images) "
            f"| {row['top1_each']} | {row['images_per_sec']} | {int(row['seconds']):,} | {row['hardware']} |\n"
            for row in mine
            if SWITCHED not in row["name"]
        ]
        for base in mine:
            switched = [row for row in mine if row["name"].startswith(base["name"] + SWITCHED)]
            if switched:
                parts += ["\n", *switches(base, switched)]
    return "".join(parts) + "\n"


def all_of(rows: Sequence[Row], column: str) -> str:
    """Return what the rows have in a column, each once."""
    return ", ".join(sorted({one for row in rows for one in row[column].split(", ")}))


def switches(base: Row, switched: Sequence[Row]) -> Iterator[str]:
    """Yield the lines of a table: what each addition to a recipe changed, seed by seed.

    Raises:
        ValueError: it is not known which of two rows' figures are of the same seed.
    """
    yield f"| added to `{base['name']}` | top-1 | points more than without, mean +- standard deviation | each seed |\n"
    yield "|---|---|---|---|\n"
    for row in switched:
        gained = [one - other for one, other in pairs(row, base)]
        spread = f" +- {statistics.stdev(gained):.2f}" if len(gained) > 1 else ""
        yield (
            f"| `{row['name'].partition(SWITCHED)[2]}` | {row['top1_mean']} % "
            f"| {statistics.mean(gained):+.2f}{spread} (n = {len(gained)}) "
            f"| {' '.join(f'{one:+.2f}' for one in gained)} |\n"
        )


def pairs(one: Row, other: Row) -> list[tuple[float, float]]:
    """Return two rows' top-1 of each seed that both have.

    Rows of before seed_numbers was a column have their seeds in the same order; they are paired if both have as many.

    Raises:
        ValueError: they have no seed in common, or one does not say its seeds and the other has more or fewer.
    """
    figures = [[float(figure) for figure in row["top1_each"].split()] for row in (one, other)]
    seeds = [(row.get("seed_numbers") or "").split() for row in (one, other)]
    if all(seeds):
        first, second = (dict(zip(*found, strict=True)) for found in zip(seeds, figures, strict=True))
        found = [(first[seed], second[seed]) for seed in first if seed in second]
    else:
        found = list(zip(*figures, strict=True)) if len(figures[0]) == len(figures[1]) else []
    if not found:
        told = " and ".join(
            f"'{row['name']}' has {len(figure)} ({'seeds ' + ' '.join(named) if named else 'which ones is not noted'})"
            for row, named, figure in zip((one, other), seeds, figures, strict=True)
        )
        raise ValueError(f"figures cannot be paired by seed: {told}; measure both again with the same --seeds")
    return found


def shown_name(row: Row) -> str:
    return REFERENCES.get(row["name"]) or f"`{row['name']}`"


def readme_row(rows: Sequence[Row]) -> str:
    """Return README's line: of the budget with most contestants, our best that was not tuned, and the references."""
    rows = [row for row in rows if SWITCHED not in row["name"] and not row["name"].startswith(OWN)]
    budgets = [budget_of(row) for row in rows]
    chosen = max(sorted(set(budgets)), key=budgets.count)
    mine = [row for row in rows if budget_of(row) == chosen]
    theirs = [row for row in mine if row["name"] in REFERENCES]
    best = next(row for row in mine if row not in theirs)
    beside = " and ".join(f"{figure(row)} by {REFERENCES[row['name']]}" for row in theirs)
    beside = f", beside {beside}, each with its script's defaults" if theirs else ""
    model, epochs, px, _ = chosen
    return (
        f"| accuracy | on Imagenette (10 classes, {int(best['images']):,} images to test on), {model} from scratch in "
        f"{epochs} epochs of {px} px: {figure(best)} by {shown_name(best)}{beside}, n = {best['seeds']} "
        f"([docs/accuracy.md](docs/accuracy.md)) |\n"
    )


def own_budget(path: Path) -> Budget:
    """Return what a recipe for these images trains by itself."""
    cfg = load_config(path, ["data.local=unused"], check_paths=False)
    return cfg.model.name, int(cfg.max_duration.removesuffix("ep")), cfg.data.crop_size, cfg.global_batch_size


def measured(rows: Sequence[Row], own: Budget | None) -> str:
    """Return a recipe's lines: whether it was run as it stands, and what else was measured of it.

    Args:
        own: what it trains by itself, if it is for these images; None: it is for ImageNet.
    """
    lines = [NOT_YET]
    for row in rows:
        words = f"{figure(row)} (n = {row['seeds']}; {row['model']}, {row['epochs']} epochs, {row['px']} px)"
        if budget_of(row) == own:
            lines[0] = f"#   measured   {words}"
        else:
            how = "shortened" if own is None else "with other settings"
            lines.append(f"#              {how}, on Imagenette: {words}")
    return "".join(f"{line}\n" for line in lines)


def draw(rows: Sequence[Row], path: Path) -> None:
    """Write a PNG: accuracy over the seconds of a run, with each seed, a panel for each budget and machine."""
    rows = [row for row in rows if SWITCHED not in row["name"]]
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    kinds = Counter((budget_of(row), row["hardware"]) for row in rows)
    shown = sorted(kind for kind, contestants in kinds.items() if contestants > 1) or sorted(kinds)
    figure, panels = plt.subplots(
        1, len(shown), figsize=(6.5 * len(shown), 4.5), squeeze=False, sharey=True, layout="constrained"
    )
    for axes, (budget, hardware) in zip(panels[0], shown, strict=True):
        for row in (row for row in rows if (budget_of(row), row["hardware"]) == (budget, hardware)):
            seconds, top1 = float(row["seconds"]), float(row["top1_mean"])
            colour = "grey" if row["name"] in REFERENCES else "tab:blue"
            each = [float(one) for one in row["top1_each"].split()]
            axes.plot([seconds] * len(each), each, ".", color=colour, alpha=0.5)
            axes.plot(seconds, top1, "o", color=colour)
            axes.annotate(row["name"], (seconds, top1), xytext=(6, 3), textcoords="offset points", fontsize=8)
        model, epochs, px = budget[:3]
        axes.set(
            title=f"{model}, {epochs} epochs, {px} px, on {hardware}", xlabel="seconds of a run", ylabel="top-1, %"
        )
        axes.margins(y=0.2)
        axes.set_xlim(0, 1.35 * axes.dataLim.x1)  # with room for the names
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
