"""A run record's curves, as a chart takes them: x in batches, and which series belong together."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

SPEED_INTERVALS = 120  # more would be noise
WORTH_A_LOG = 20.0  # the largest value over the median: on a linear scale the rest would lie on the axis

Row = dict[str, Any]
Record = Mapping[str, Any]


def points(rows: Sequence[Row], key: str, factor: float = 1.0) -> dict[str, list[Any]]:
    """Return x, in batches, and y of the rows that have a finite value; both are empty where none has."""
    found = [(row["batch"], row[key] * factor) for row in rows if _is_number(row.get(key))]
    return {"x": [batch for batch, _ in found], "y": [value for _, value in found]}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def intervals(curve: Sequence[Row], most: int = SPEED_INTERVALS) -> list[Row]:
    """Return the speed of at most `most` intervals, each its images over its seconds: not a mean of speeds.

    Returns:
        rows with `batch`, an interval's last one, `images_per_sec` and `data_wait_fraction` (None where not known).
    """
    timed = [row for row in curve if row.get("images_per_sec")]
    if not timed:
        return []
    size = -(-len(timed) // most)
    return [_together(timed[at : at + size]) for at in range(0, len(timed), size)]


def _together(rows: Sequence[Row]) -> Row:
    """Return one interval for several of as many images each."""
    seconds = [1 / row["images_per_sec"] for row in rows]  # for each image
    waits = [row.get("data_wait_fraction") for row in rows]
    waited = None
    if all(_is_number(wait) for wait in waits):
        waited = sum(wait * part for wait, part in zip(waits, seconds, strict=True)) / sum(seconds)
    return {"batch": rows[-1]["batch"], "images_per_sec": len(rows) / sum(seconds), "data_wait_fraction": waited}


def needs_log(values: Sequence[float]) -> bool:
    """Return whether one value dwarfs the rest, so that a logarithmic axis is needed to see them."""
    if not values or min(values) <= 0:
        return False
    return max(values) > WORTH_A_LOG * sorted(values)[len(values) // 2]


def charts(record: Record) -> list[dict[str, Any]]:
    """Return the charts of one run, without those that would be empty.

    Each has `title`, `unit`, `log` and `series`; a series has `label`, `kind` (line, step or dots), `x` and `y`.
    """
    curve, evaluated, speed = record["curve"], record["evaluations"], intervals(record["curve"])
    wanted = [
        ("Loss", "nats", [("train", "line", points(curve, "loss")), ("val", "dots", points(evaluated, "loss"))]),
        (
            "Accuracy",
            "%",
            [
                ("top-1", "dots", points(evaluated, "top1", 100.0)),
                ("top-5", "dots", points(evaluated, "top5", 100.0)),
            ],
        ),
        ("Learning rate", "", [("learning rate", "line", points(curve, "lr"))]),
        ("Speed", "images/s", [("images/s", "step", points(speed, "images_per_sec"))]),
        ("Waiting for data", "% of step time", [("waiting", "step", points(speed, "data_wait_fraction", 100.0))]),
        ("Image size", "px", [("edge", "step", points(curve, "image_px"))]),
        (
            "Memory of the first rank's machine",
            "GB",
            [
                ("GPU, reserved", "line", points(curve, "device_memory_bytes", 1e-9)),
                ("host, in use", "line", points(curve, "host_memory_bytes", 1e-9)),
            ],
        ),
    ]
    return [chart for title, unit, series in wanted if (chart := _chart(title, unit, series))["series"]]


def _chart(title: str, unit: str, series: Sequence[tuple[str, str, dict[str, list[Any]]]]) -> dict[str, Any]:
    drawn = [
        {"label": label, "kind": kind, **(_from_the_start(xy) if kind == "step" else xy)}
        for label, kind, xy in series
        if xy["x"]
    ]
    values = [value for one in drawn for value in one["y"]]
    return {"title": title, "unit": unit, "log": title.endswith("oss") and needs_log(values), "series": drawn}


def _from_the_start(xy: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Have the first interval begin at batch 0: a step is drawn from the point before it."""
    return {"x": [0, *xy["x"]], "y": [xy["y"][0], *xy["y"]]}


def scales(record: Record) -> dict[str, float]:
    """Return what a batch is of an epoch, and how many images it has, for the other two axes."""
    return {
        "steps_per_epoch": float(record["batch"]["steps_per_epoch"]),
        "global_batch_size": float(record["config"]["global_batch_size"]),
    }


def overlaid(records: Sequence[Record], names: Sequence[str]) -> list[dict[str, Any]]:
    """Return charts of several runs, each with a series of each run that has one.

    A series has its run's place as `colour`, and its own scales, for runs may have other batches.
    """
    found: dict[str, dict[str, Any]] = {}
    for place, (record, name) in enumerate(zip(records, names, strict=True)):
        for chart in charts(record):
            several = len(chart["series"]) > 1 or chart["title"] in ("Loss", "Accuracy")
            for series in chart["series"]:
                title = f"{chart['title']}, {series['label']}" if several else chart["title"]
                together = found.setdefault(title, {**chart, "title": title, "log": False, "series": []})
                together["series"].append({**series, "label": name, "colour": place, **scales(record)})
                together["log"] = together["log"] or chart["log"]
    return list(found.values())


def marks(record: Record) -> list[Row]:
    """Return where the run was taken up again, as `batch` and `label`."""
    return [
        {"batch": start["batch"], "label": f"resumed on {start['world_size']} rank(s)"}
        for place, start in enumerate(record.get("starts", []))
        if place or start["batch"]  # of a run that an older version began, the first start is not known
    ]
