"""A run's record as RunRecord writes it, for tests of what shows records."""

from typing import Any

import yaml

from tests.conftest import REPOSITORY

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&"
PICTURE = "data:image/jpeg;base64,AAAA"


def a_record(
    *, batches: int = 40, evaluations: int = 2, classes: list[str] | None = None, **config: Any
) -> dict[str, Any]:
    """Return the record of a run of 20 steps an epoch, 8 images a step, with keys of its configuration replaced."""
    settings = yaml.safe_load((REPOSITORY / "yamls/base.yaml").read_text()) | {"global_batch_size": 8} | config
    names = ["cat", "dog", "owl"] if classes is None else classes
    evaluated = [
        {"batch": 20 * at, "top1": 0.25 * at, "top5": 0.5, "loss": 1.5 / at, "samples_evaluated": 100}
        for at in range(1, evaluations + 1)
    ]
    curve = [
        {"batch": batch, "loss": 3.0 / batch, "lr": 0.1, "image_px": 64, "images_per_sec": 100.0,
         "data_wait_fraction": 0.25, "host_memory_bytes": 2_000_000_000, "device_memory_bytes": None}
        for batch in range(1, batches + 1)
    ]  # fmt: skip
    epochs = [{"epoch": at, "batch": 20 * at, "images_per_sec": 100.0 * at} for at in range(1, batches // 20 + 1)]
    return {
        "status": "finished" if batches == 40 else "running",
        "progress": {"batch": batches, "epoch": batches // 20},
        "time": {"written_unix_s": 1_700_000_000.0, "train_s": 7_200.0, "left_s": 3_600.0},
        "starts": [_a_start(0), _a_start(15)],
        "throughput": {"images_per_sec": 90.0, "data_wait_fraction": 0.25, "bottleneck": "decode"},
        "ledger": {"final": "ab" * 32, "epochs": []},
        "changes": [],
        "config": settings,
        "dataset": {
            "num_classes": len(names), "classes": names, "train_samples": 160, "val_samples": 100,
            "fingerprint": "cd" * 32, "decoder": "native",
        },
        "batch": {"world_size": 2, "device_batch_size": 4, "steps_per_epoch": 20, "total_steps": 40},
        "versions": {"torch": "2.15.0"},
        "hardware": {"world_size": 2, "device": "cpu", "cpu": "x86_64", "threads_per_rank": 1},
        "epochs": epochs,
        "evaluations": evaluated,
        "curve": curve,
    }  # fmt: skip


def _a_start(batch: int) -> dict[str, Any]:
    return {"batch": batch, "unix_time_s": 1_699_990_000.0, "world_size": 2, "hosts": 1, "first_host": "node1"}


def the_pictures(classes: int = 3) -> dict[str, Any]:
    """Return what the page shows beside the record."""
    sample = {"position": 5, "label": 0, "predicted": 1, "picture": PICTURE}
    pairs = [[label, 0, 3] for label in range(classes)]
    return {
        "crops": {"batch": 20, "image_px": 64, "pictures": [PICTURE, PICTURE]},
        "evaluated": {
            "batch": 40, "classes": [[10, 4, 10]] * classes, "pairs": pairs[1:], "matrix": pairs,
            "mistakes": [sample | {"confidence": 0.875}], "first": [sample],
        },
    }  # fmt: skip
