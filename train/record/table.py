"""Several runs as a table of text."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from train.record.reading import StoredRun
from train.record.summary import duration, epochs_done, images_per_sec, last_evaluation, train_seconds

GAP = "  "
SHORTEST, READABLE = 8, 14  # characters of a column that has to be cut, and of one that should not be cut further


class Column(NamedTuple):
    """One figure of a run.

    Attributes:
        key: its name, for --sort and the CSV.
        of: the figure, None where it is not known.
        words: of a figure that is known.
    """

    key: str
    of: Callable[[Mapping[str, Any]], Any]
    words: Callable[[Any], str] = str


def _percent(value: float) -> str:
    return f"{value:.2%}"


COLUMNS = (
    Column("name", lambda record: record["config"]["run_name"]),
    Column("status", lambda record: record["status"]),
    Column("epochs", epochs_done, lambda value: f"{value:.4g}"),
    Column("top1", lambda record: last_evaluation(record).get("top1"), _percent),
    Column("top5", lambda record: last_evaluation(record).get("top5"), _percent),
    Column("images_per_sec", images_per_sec, lambda value: f"{value:,.0f}"),
    Column("train_s", train_seconds, duration),
    Column("world_size", lambda record: record["hardware"]["world_size"]),
)
HEADINGS = {"images_per_sec": "images/s", "train_s": "trained", "world_size": "ranks", "top1": "top-1", "top5": "top-5"}
OF_TEXT = ("name", "status")


def figures_of(run: StoredRun) -> dict[str, Any]:
    """Return a run's figures by the columns' keys, None where one is not known."""
    return {column.key: column.of(run.record) for column in COLUMNS} | {"name": run.name}


def in_words(run: StoredRun) -> list[str]:
    """Return a run's figures as a person reads them, '-' where one is not known."""
    figures = figures_of(run)
    return ["-" if figures[column.key] is None else column.words(figures[column.key]) for column in COLUMNS]


def named_apart(runs: Sequence[StoredRun]) -> list[StoredRun]:
    """Return the runs, those of the same name told apart by their folders."""
    count = Counter(run.name for run in runs)
    return [
        replace(run, label=f"{run.name} ({run.folder.rstrip('/').rpartition('/')[2]})") if count[run.name] > 1 else run
        for run in runs
    ]


def sorted_runs(runs: Sequence[StoredRun], key: str | None) -> list[StoredRun]:
    """Return runs by a column: text from a to z, figures the largest first, what is not known last."""
    if key is None:
        return list(runs)
    known = [run for run in runs if figures_of(run)[key] is not None]
    unknown = [run for run in runs if figures_of(run)[key] is None]
    return sorted(known, key=lambda run: figures_of(run)[key], reverse=key not in OF_TEXT) + unknown


def as_text(runs: Sequence[StoredRun], differences: Mapping[str, Sequence[str]], *, width: int) -> str:
    """Return a table of the runs' figures, and below it of the settings in which they differ, some runs at a time.

    Args:
        differences: by setting, the value in each run.
        width: characters of a line; names and values that are too long for it are cut.
    """
    heads = [HEADINGS.get(column.key, column.key) for column in COLUMNS]
    rows = [in_words(run) for run in runs]
    right = {at for at, column in enumerate(COLUMNS) if column.key not in OF_TEXT}
    lines = _aligned([heads, *rows], right=right, width=width)
    names, key_width = [row[0] for row in rows], max(map(len, differences), default=0)
    at_once = max(1, (width - min(key_width, width // 2)) // (READABLE + len(GAP)))
    for at in range(0, len(runs) if differences else 0, at_once):
        table = [[key, *values[at : at + at_once]] for key, values in differences.items()]
        lines += ["", *_aligned([["differs in", *names[at : at + at_once]], *table], right=set(), width=width)]
    return "\n".join(lines)


def _aligned(rows: Sequence[Sequence[str]], *, right: set[int], width: int) -> list[str]:
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    while sum(widths) + len(GAP) * (len(widths) - 1) > width and max(widths) > SHORTEST:
        widths[widths.index(max(widths))] -= 1
    lines = []
    for row in rows:
        cells = [_cut(cell, size) for cell, size in zip(row, widths, strict=True)]
        padded = [
            cell.rjust(size) if at in right else cell.ljust(size)
            for at, (cell, size) in enumerate(zip(cells, widths, strict=True))
        ]
        lines.append(GAP.join(padded).rstrip())
    return lines


def _cut(text: str, size: int) -> str:
    return text if len(text) <= size else text[: size - 1] + "…"
