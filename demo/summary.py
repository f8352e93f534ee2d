"""What the demo has shown, on one screen."""

from typing import Any, NamedTuple

COMPARED = ("weights_sha256", "ledger", "batches", "top1", "top5", "loss", "samples_evaluated")


class Killed(NamedTuple):
    """Where a run was killed.

    Attributes:
        batch: the last one that was done.
        total: batches of the whole run.
        checkpoint: name of the newest one, from which the run has to continue.
        processes: how many were killed.
    """

    batch: int
    total: int
    checkpoint: str
    processes: int


class Outcome(NamedTuple):
    """All that the summary speaks of: both records, evaluate.py's figures, the kills, the folder and the time."""

    undisturbed: dict[str, Any]
    interrupted: dict[str, Any]
    evaluated: dict[str, Any]
    killed: list[Killed]
    runs: str
    seconds: float


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Return a line for each result in which two runs differ; none when they ended the same."""
    return [f"  {key}: {one[key]} undisturbed, {other[key]} interrupted" for key in COMPARED if one[key] != other[key]]


def full_summary(outcome: Outcome) -> str:
    """Return the text that closes the demo."""
    undisturbed, interrupted = outcome.undisturbed, outcome.interrupted
    lines = ["", _rule("the same to the last bit"), *_what(undisturbed), ""]
    for killed in outcome.killed:
        lost = killed.batch - int(killed.checkpoint.partition("-ba")[2].removesuffix(".pt"))
        lines.append(
            f"  killed       after batch {killed.batch} of {killed.total} ({killed.processes} processes, SIGKILL), "
            f"resumed from {killed.checkpoint}: {lost} batches done again"
        )
    lines += [
        f"  undisturbed  weights {undisturbed['weights_sha256']}",
        f"  interrupted  weights {interrupted['weights_sha256']}",
        f"  ledger       {interrupted['ledger']['final']} in both: the same samples and crops, in order",
        "",
        *_figures(undisturbed, outcome.evaluated),
        "",
        f"  records      {outcome.runs}/undisturbed/run.json and {outcome.runs}/interrupted/run.json",
        f"  pictures     {outcome.runs}/two-runs.png, and report.html beside each run.json",
        f"  logs         {outcome.runs}/*.log",
        *_next(outcome.seconds),
    ]
    return "\n".join(lines)


def quick_summary(record: dict[str, Any], evaluated: dict[str, Any], runs: str, seconds: float) -> str:
    """Return the text that closes the short version."""
    return "\n".join(
        [
            "",
            _rule("it works here"),
            *_what(record),
            *_figures(record, evaluated),
            "               one epoch shows that everything runs; it is too short to learn much",
            f"  record       {runs}/quick/run.json and {runs}/quick/report.html, logs in {runs}/*.log",
            *_next(seconds, "  the rest     make demo: a longer training, killed in the middle, that ends the same"),
        ]
    )


def _rule(title: str) -> str:
    return f"==== {title} " + "=" * (90 - len(title))


def _what(record: dict[str, Any]) -> list[str]:
    data, batch, hardware = record["dataset"], record["batch"], record["hardware"]
    return [
        f"  data         {data['train_samples']:,} train and {data['val_samples']:,} val JPEGs of "
        f"{data['num_classes']} classes, as MDS shards",
        f"  training     {record['config']['model']['name']}, {batch['total_steps']} steps of "
        f"{record['config']['global_batch_size']} images on {batch['world_size']} x {hardware['device']}",
    ]


def _figures(record: dict[str, Any], evaluated: dict[str, Any]) -> list[str]:
    speed = record["throughput"]
    return [
        f"  accuracy     top-1 {evaluated['top1']:.2%}, top-5 {evaluated['top5']:.2%} on all "
        f"{evaluated['samples_evaluated']} val samples (chance: {1 / record['dataset']['num_classes']:.0%})",
        f"  speed        {speed['images_per_sec']:,.0f} images/s in training, over all processes together, "
        f"{speed['data_wait_fraction']:.1%} of the time waiting for data",
    ]


def _next(seconds: float, *more: str) -> list[str]:
    return [
        f"  took         {seconds:.0f} s in all",
        "",
        *more,
        "  your photos  sorted into a folder for each class: make train-local DATA=PHOTOS",
    ]
