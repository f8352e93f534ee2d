"""A run in a few figures, in words: for the page, the table of runs and the terminal."""

import datetime
from collections.abc import Mapping
from typing import Any, NamedTuple

Record = Mapping[str, Any]


class Figure(NamedTuple):
    """One figure of a headline, such as ("top-1", "76.13 %", "38,065 of 50,000")."""

    label: str
    value: str
    note: str = ""


def headline(record: Record) -> list[Figure]:
    """Return the figures that a person looks for first; what is not known is left out."""
    figures = [_accuracy(record, "top1", "top-1"), _accuracy(record, "top5", "top-5"), _done(record)]
    figures += [_speed(record), _trained(record), _left(record), _cost(record)]
    return [figure for figure in figures if figure is not None]


def last_evaluation(record: Record) -> Mapping[str, Any]:
    """Return the newest evaluation; empty before the first."""
    return record["evaluations"][-1] if record["evaluations"] else {}


def epochs_done(record: Record) -> float:
    """Return the epochs that are done, with the part of the present one."""
    return float(batches_done(record) / record["batch"]["steps_per_epoch"])


def batches_done(record: Record) -> int:
    """Return the batches that are done, in records without `progress` those of the last epoch's end or evaluation."""
    rows = [*record["epochs"], *record["evaluations"], *record["curve"]]
    return int(record.get("progress", {}).get("batch") or max((row["batch"] for row in rows), default=0))


def images_per_sec(record: Record) -> float | None:
    """Return the speed of the last epoch, or of the process where it has ended none."""
    speeds = [row.get("images_per_sec") for row in record["epochs"]] + [record["throughput"]["images_per_sec"]]
    return next((speed for speed in (*reversed(speeds[:-1]), speeds[-1]) if speed), None)


def train_seconds(record: Record) -> float | None:
    """Return how long the run has trained, over all its processes, without evaluations."""
    return record.get("time", {}).get("train_s") or None


def duration(seconds: float) -> str:
    """Return seconds in the two units that matter, such as "3 h 12 min"."""
    whole = round(seconds)
    for size, unit, small_size, small in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // small_size
            return f"{whole // size} {unit}" + (f" {rest} {small}" if rest else "")
    return f"{whole} s"


def moment(unix_time_s: float) -> str:
    """Return a time as "2025-03-01 12:00 UTC"."""
    return f"{datetime.datetime.fromtimestamp(unix_time_s, datetime.UTC):%Y-%m-%d %H:%M} UTC"


def _accuracy(record: Record, key: str, label: str) -> Figure | None:
    found = last_evaluation(record)
    if key not in found:
        return None
    count = found["samples_evaluated"]
    when = "" if found["batch"] == batches_done(record) else f", after batch {found['batch']:,}"
    return Figure(label, f"{found[key]:.2%}", f"{round(found[key] * count):,} of {count:,}{when}")


def _done(record: Record) -> Figure:
    total = record["batch"]["total_steps"]
    epochs, all_epochs = epochs_done(record), total / record["batch"]["steps_per_epoch"]
    return Figure("epochs", f"{epochs:.4g} of {all_epochs:.4g}", f"batch {batches_done(record):,} of {total:,}")


def _speed(record: Record) -> Figure | None:
    speed = images_per_sec(record)
    wait = record["throughput"].get("data_wait_fraction")
    if speed is None:
        return None
    return Figure("images/s", f"{speed:,.0f}", "" if wait is None else f"{wait:.0%} of the time waiting for data")


def _trained(record: Record) -> Figure | None:
    seconds = train_seconds(record)
    starts = len(record.get("starts", []))
    note = "" if starts < 2 else f"in {starts} starts"
    return None if seconds is None else Figure("trained", duration(seconds), note)


def _left(record: Record) -> Figure | None:
    left = record.get("time", {}).get("left_s")
    if record["status"] != "running" or not left:
        return None
    return Figure("left", duration(left), f"as of {moment(record['time']['written_unix_s'])}")


def _cost(record: Record) -> Figure | None:
    """The price is the present one, and of training alone: what a machine costs before and after is not known here."""
    price, seconds = record.get("time", {}).get("usd_per_hour"), train_seconds(record)
    if not price or not seconds:
        return None
    return Figure("training's cost", f"${price * seconds / 3600:,.2f}", f"at ${price:g} an hour")


def state_lines(record: Record) -> list[str]:
    """Return a run's state, a line for each thing: for a terminal that shows them again and again."""
    total = record["batch"]["total_steps"]
    all_epochs = total / record["batch"]["steps_per_epoch"]
    found, speed, left = last_evaluation(record), images_per_sec(record), record.get("time", {}).get("left_s")
    losses = [point["loss"] for point in record["curve"] if isinstance(point.get("loss"), (int, float))]
    written = record.get("time", {}).get("written_unix_s")
    lines = [
        ("run", f"{record['config']['run_name']}: {record['status']}" + (f" at {moment(written)}" if written else "")),
        ("epoch", f"{epochs_done(record):.4g} of {all_epochs:.4g}"),
        ("step", f"{batches_done(record):,} of {total:,}"),
        ("loss", f"{losses[-1]:.4g}" if losses else ""),
        ("top-1", f"{found['top1']:.2%}" if found else ""),
        ("images/s", f"{speed:,.0f}" if speed else ""),
        ("left", duration(left) if left and record["status"] == "running" else ""),
    ]
    return [f"{label} {value}" for label, value in lines if value]
