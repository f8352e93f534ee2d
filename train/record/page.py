"""report.html: a run as one page, in one file that needs nothing from elsewhere."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from train.record.curves import charts, marks, overlaid, scales
from train.record.reading import StoredRun
from train.record.settings import own_and_base
from train.record.summary import duration, headline, moment
from train.record.table import COLUMNS, HEADINGS, OF_TEXT, figures_of, in_words

TEMPLATES = Path(__file__).resolve().parent / "templates"
MOST_CLASSES = 1_000  # in the table
SERIES_COLOURS = 8  # of page.css; then they begin anew
NAMED_CLASSES = 30  # of the matrix's; more names would be too small to read
SMALLEST_SHARE = 0.004  # of a row of the matrix; a lighter cell could not be told from an empty one


def run_page(record: Mapping[str, Any], pictures: Mapping[str, Any]) -> str:
    """Return the page of a run.

    Args:
        record: as in run.json.
        pictures: `crops` (batch, image_px, pictures) and `evaluated` (see `Evaluated.gather`), as RunRecord has them.
    """
    evaluated = pictures.get("evaluated", {})
    names = class_names(record)
    own, same = own_and_base(record["config"])
    return _template("report.html.j2").render(
        record=record,
        figures=headline(record),
        chart_data={"charts": charts(record), "marks": marks(record), **scales(record)},
        crops=pictures.get("crops", {}),
        evaluated=evaluated,
        names=names,
        classes=class_rows(evaluated, names),
        matrix=matrix_cells(evaluated, names),
        own_settings=own,
        same_settings=same,
    )


def runs_page(runs: Sequence[StoredRun], differences: Mapping[str, Sequence[str]]) -> str:
    """Return a page of several runs: their figures, their curves over each other, and the settings that differ."""
    rows: list[dict[str, Any]] = [
        {"figures": in_words(run), "raw": _sortable(run), "folder": run.folder, "colour": place % SERIES_COLOURS}
        for place, run in enumerate(runs)
    ]
    names = [row["figures"][0] for row in rows]
    return _template("runs.html.j2").render(
        runs=rows,
        heads=[HEADINGS.get(column.key, column.key) for column in COLUMNS],
        texts=[at for at, column in enumerate(COLUMNS) if column.key in OF_TEXT],
        chart_data={"charts": overlaid([run.record for run in runs], names), "marks": []},
        differences=differences,
    )


def _sortable(run: StoredRun) -> list[Any]:
    """Return a run's figures as a script can compare them; what is not known is below all that is."""
    figures = figures_of(run)
    return [-1 if figures[column.key] is None else figures[column.key] for column in COLUMNS]


def class_names(record: Mapping[str, Any]) -> list[str]:
    """Return the model's classes, those without a name by their number."""
    known = list(record["dataset"]["classes"] or [])
    return known + [str(number) for number in range(len(known), record["dataset"]["num_classes"])]


def class_rows(evaluated: Mapping[str, Any], names: Sequence[str]) -> list[dict[str, Any]]:
    """Return a row for each class with samples, the least accurate first."""
    rows = [
        {"number": number, "name": names[number], "samples": samples, "top1": top1 / samples, "top5": top5 / samples}
        for number, (samples, top1, top5) in enumerate(evaluated.get("classes", []))
        if samples
    ]
    return sorted(rows, key=lambda row: (row["top1"], row["number"]))


def matrix_cells(evaluated: Mapping[str, Any], names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the cells of the matrix of labels and predictions that have samples; `share` is of the label's."""
    of_label = [row[0] for row in evaluated.get("classes", [])]
    cells = [
        {"label": label, "predicted": predicted, "samples": count, "of": of_label[label]}
        for label, predicted, count in evaluated.get("matrix", [])
    ]
    return [cell | {"share": max(SMALLEST_SHARE, cell["samples"] / cell["of"])} for cell in cells]


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,  # names of classes and runs are anybody's
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"duration": duration, "moment": moment}
    environment.globals["inlined"] = _inlined
    environment.globals |= {"most_classes": MOST_CLASSES, "named_classes": NAMED_CLASSES}
    return environment


def _template(name: str) -> jinja2.Template:
    return _environment().get_template(name)


def _inlined(name: str) -> Markup:
    """Return a file of the project's own as it is: a script or a style sheet."""
    return Markup((TEMPLATES / name).read_text(encoding="utf-8"))
