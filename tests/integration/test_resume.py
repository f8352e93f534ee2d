"""The promise: a run that was killed ends as if it had never stopped."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.processes import run, start

ALGORITHMS = (
    "[{name: blurpool}, {name: label_smoothing}, {name: mixup}, "
    "{name: progressive_resizing, initial_scale: 0.5, delay_fraction: 0.2, finetune_fraction: 0.2, size_increment: 8}, "
    "{name: ema, half_life: 4ba, update_interval: 2ba}]"
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


def what_must_match(record: dict[str, Any]) -> dict[str, Any]:
    """Everything of a record that is not about time."""
    epochs = [
        {k: v for k, v in row.items() if k not in ("images_per_sec", "data_wait_fraction")} for row in record["epochs"]
    ]
    curve = [{k: v for k, v in point.items() if k != "images_per_sec"} for point in record["curve"]]
    finals = {k: record[k] for k in ("top1", "top5", "loss", "samples_evaluated", "weights_sha256", "batches")}
    return {"ledger": record["ledger"], "epochs": epochs, "curve": curve, **finals}


@pytest.fixture(scope="module")
def undisturbed(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("undisturbed")
    code, output = run(command(shards, folder), folder / "log")
    assert code == 0, output
    return record_of(folder)


@pytest.mark.parametrize("checkpoint", ["ep0-ba2.pt", "ep0-ba6.pt", "ep1-ba10.pt"], ids=["mid", "end", "second"])
def test_resume_after_kill_9_ends_with_identical_weights(
    shards: Path, undisturbed: dict[str, Any], tmp_path: Path, checkpoint: str
) -> None:
    started = start(command(shards, tmp_path), tmp_path / "log")
    started.kill_when((tmp_path / checkpoint).exists)
    assert "weights_sha256" not in ((tmp_path / "run.json").read_text() if (tmp_path / "run.json").exists() else "")
    code, output = run(command(shards, tmp_path), tmp_path / "again")
    assert code == 0, output
    assert f"resume: from {tmp_path}/ep" in output
    assert what_must_match(record_of(tmp_path)) == what_must_match(undisturbed)
