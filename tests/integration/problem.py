"""The small training problem of the integration tests."""

import csv
import json
from pathlib import Path
from typing import Any

ALGORITHMS = (
    "[{name: blurpool}, {name: label_smoothing}, {name: mixup}, "
    "{name: progressive_resizing, initial_scale: 0.5, delay_fraction: 0.2, finetune_fraction: 0.2, size_increment: 8}, "
    "{name: ema, half_life: 2ba, update_interval: 2ba}]"
)


def command(shards: Path, save_folder: Path | str, *more: str) -> list[str]:
    """The production command on a small problem: 6 steps an epoch, 2 epochs, a checkpoint every 2 steps."""
    return [
        "yamls/tiny.yaml",
        f"data.local={shards}",
        f"checkpoint.save_folder={save_folder}",
        "checkpoint.save_interval=2ba",
        "max_duration=2ep",
        "global_batch_size=16",
        "optimizer.lr=0.01",
        "scheduler.t_warmup=0.5dur",
        "data.crop_size=32",
        "data.eval_crop_size=32",
        "data.eval_resize_size=36",
        "data.eval_batch_size=8",
        "data.num_workers=0",
        f"algorithms={ALGORITHMS}",
        "loggers.console_interval=null",
        "loggers.tensorboard=false",
        *more,
    ]


def record_of(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return record


Rows = dict[int, dict[str, float]]
SPEEDS = ("images_per_sec", "data_wait_fraction")


def metrics_of(folder: Path) -> Rows:
    """Of each row of metrics.csv what must match: all but how fast it was."""
    rows: Rows = {}
    with open(folder / "metrics.csv", newline="") as file:
        for row in csv.DictReader(file):
            step = int(row.pop("step"))
            assert step > max(rows, default=0), "steps rise"
            rows[step] = {name: float(value) for name, value in row.items() if value and name not in SPEEDS}
    return rows


TIMES = ("throughput", "images_per_sec", "data_wait_fraction", "stages", "bottleneck", "time")
MEMORY = ("host_memory_bytes", "device_memory_bytes")
STARTS = "starts"
"""How often a run was started, which tells a killed one from another."""
GIVEN = ("config", "local", "remote")
"""What the command says, which tests vary."""
NOT_OF_THE_RESULT = {*TIMES, *MEMORY, *GIVEN, STARTS}


def what_must_match(record: Any) -> Any:
    """Everything that a run finds out, of its record or of a part of that, but for times, memory and starts."""
    if isinstance(record, dict):
        return {key: what_must_match(value) for key, value in record.items() if key not in NOT_OF_THE_RESULT}
    return [what_must_match(value) for value in record] if isinstance(record, list) else record
