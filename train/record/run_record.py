"""The run's record: `run.json` and `report.png` in the save folder, kept while the run goes on."""

import json
import logging
import platform
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from composer.core import Callback, State, TimeUnit
from composer.loggers import Logger
from composer.utils import dist

from imagestream.storage.protocol import Place
from train.model import weights_sha256
from train.ranks import on_first_rank
from train.record.stages import Speed
from train.resume.guard import ResumeGuard
from train.step.statistics import Step, StepStatistics

log = logging.getLogger(__name__)

RECORD_NAME, REPORT_NAME = "run.json", "report.png"
CURVE_POINTS = 500  # of loss, learning rate and image size over the whole run
SECONDS_BETWEEN_REPORTS = 60
PACKAGES = ("torch", "torchvision", "mosaicml", "mosaicml-streaming", "numpy", "pillow")


class RunRecord(Callback):
    """Collects what a run is and does; rank 0 writes it at each epoch's and evaluation's end.

    The epochs and curves travel in the checkpoint, so a resumed run's record is that of the whole run. Speeds are
    measured from asking for a batch to the end of its step: without evaluation and checkpoints, and by rank 0.

    Args:
        facts: what is known before the first step: config, dataset, batch arithmetic.
        folder: where `run.json` and `report.png` go.
    """

    def __init__(self, facts: dict[str, Any], folder: Place, guard: ResumeGuard, statistics: StepStatistics) -> None:
        self.facts, self.folder, self.guard = facts, folder, guard
        self.epochs: list[dict[str, Any]] = []
        self.curve: list[dict[str, Any]] = []
        self.evaluations: list[dict[str, Any]] = []
        self.final: dict[str, Any] = {}
        self._weights: dict[str, Any] = {}
        self._epoch_losses, self._point_losses = _Mean(), _Mean()
        self._speed = Speed()
        self._asked_at = 0.0
        self._image_px = 0
        self._reported_at = time.monotonic()
        self._open_points: dict[int, dict[str, Any]] = {}  # of the curve, by batch: their losses are still to come
        self._losses_to = 0  # batches whose losses have come
        statistics.tell(self._take_loss)

    # What Composer calls, in the order of a step -----------------------------------------------------------------

    def before_dataloader(self, state: State, logger: Logger) -> None:
        self._asked_at = time.perf_counter()

    def after_dataloader(self, state: State, logger: Logger) -> None:
        self._image_px = int(state.batch[0].shape[-1])

    def batch_end(self, state: State, logger: Logger) -> None:
        samples = int(state.timestamp.sample - (state.previous_timestamp or state.timestamp).sample)
        self._speed.add(samples, time.perf_counter() - self._asked_at, state.dataloader)
        batch = int(state.timestamp.batch)
        if batch % self._batches_per_point(state) == 0:
            point = {
                "batch": batch,
                "loss": None,
                "lr": state.schedulers[0].get_last_lr()[0],
                "image_px": self._image_px,
                "images_per_sec": self._speed.take_point(),
            }
            if batch == self._losses_to:
                self._close(point)
            else:
                self._open_points[batch] = point

    def _close(self, point: dict[str, Any]) -> None:
        self.curve.append(point | {"loss": self._point_losses.take()})

    def _take_loss(self, step: Step) -> None:
        self._epoch_losses.add(step.loss)
        self._point_losses.add(step.loss)
        self._losses_to = step.batch + 1
        if point := self._open_points.pop(self._losses_to, None):
            self._close(point)

    def epoch_end(self, state: State, logger: Logger) -> None:
        row = {
            "epoch": int(state.timestamp.epoch),
            "batch": int(state.timestamp.batch),
            "train_loss": self._epoch_losses.take(),
            "lr": state.schedulers[0].get_last_lr()[0],
            "image_px": self._image_px,
            "images_per_sec": self._speed.images_per_sec,
            "data_wait_fraction": self._speed.stages.fractions()["data_wait"],
            "stages": self._speed.stages.fractions(),
            "bottleneck": self._speed.stages.bottleneck(),
        }
        log.info(
            "epoch %d: %s images/s on %d rank(s) together; %s",
            *(row["epoch"], f"{row['images_per_sec'] or 0:,.0f}", dist.get_world_size(), self._speed.stages),
        )
        logger.log_metrics(
            {
                "throughput/images_per_sec": row["images_per_sec"] or 0.0,
                "throughput/data_wait_fraction": row["data_wait_fraction"] or 0.0,
            }
        )
        self.epochs.append(row)
        self._speed.start_epoch()
        self.write()

    def eval_end(self, state: State, logger: Logger) -> None:
        values = {name: metric.compute().item() for name, metric in state.eval_metrics["eval"].items()}
        evaluation = {
            "batch": int(state.timestamp.batch),
            "top1": values["top1"],
            "top5": values["top5"],
            "loss": values["loss"],
            "samples_evaluated": int(values["samples"]),
        }
        if self.is_evaluated(evaluation["batch"]):
            self.evaluations.pop()
        self.evaluations.append(evaluation)
        self.write()

    def scores(self) -> dict[int, float]:
        """Return the top-1 of each evaluation, 0 to 1, by the batch after which it was."""
        return {evaluation["batch"]: evaluation["top1"] for evaluation in self.evaluations}

    def is_evaluated(self, batch: int) -> bool:
        """Return whether the last evaluation was after this batch."""
        return bool(self.evaluations) and self.evaluations[-1]["batch"] == batch

    def state_dict(self) -> dict[str, Any]:
        return {
            "config": self.facts["config"],
            "num_classes": self.facts["dataset"]["num_classes"],
            "classes": self.facts["dataset"]["classes"],
            "epochs": [dict(row) for row in self.epochs],
            "curve": [dict(point) for point in self.curve],
            "evaluations": [dict(evaluation) for evaluation in self.evaluations],
            "epoch_losses": self._epoch_losses.state(),
            "point_losses": self._point_losses.state(),
            "image_px": self._image_px,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epochs, self.curve, self.evaluations = state["epochs"], state["curve"], state["evaluations"]
        self._epoch_losses, self._point_losses = _Mean(*state["epoch_losses"]), _Mean(*state["point_losses"])
        self._image_px = state["image_px"]

    # What a person reads -----------------------------------------------------------------------------------------

    def note_weights(self, state: State) -> None:
        """Take the final weights' hash. With EMA the model holds the averaged ones from the last checkpoint on."""
        self._weights = {"batches": int(state.timestamp.batch), "weights_sha256": weights_sha256(state.model)}

    def finish(self) -> dict[str, Any]:
        """Add the final figures, write everything, and return the record."""
        figures = {key: self.evaluations[-1][key] for key in ("top1", "top5", "loss", "samples_evaluated")}
        self.final = figures | self._weights
        self.write(report=True)
        return self.as_dict()

    def as_dict(self) -> dict[str, Any]:
        """Return the record as plain JSON."""
        return {
            "status": "finished" if self.final else "running",
            **self.final,
            "throughput": {
                "images_per_sec": self._speed.total_images_per_sec,
                "data_wait_fraction": self._speed.total_stages.fractions()["data_wait"],
                "bottleneck": self._speed.total_stages.bottleneck(),
            },
            "ledger": {"final": self.guard.ledger, "epochs": self.guard.epoch_ledgers},
            "changes": self.guard.changes,
            **self.facts,
            "versions": {name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
            "hardware": _hardware(),
            "epochs": [row | self._evaluated_at(row["batch"]) for row in self.epochs],
            "evaluations": self.evaluations,
            "curve": self.curve,
        }

    def _evaluated_at(self, batch: int) -> dict[str, Any]:
        """Return the figures of the evaluation after a batch, whether it came before the epoch's end or after it."""
        return next((found for found in self.evaluations if found["batch"] == batch), {})

    def write(self, *, report: bool = False) -> None:
        """Store `run.json`, and `report.png` when asked to or when the last one is a minute old. Collective.

        Raises:
            PlaceError: on all ranks alike.
        """
        on_first_rank(lambda: self._write(report=report))

    def _write(self, *, report: bool) -> None:
        record = self.as_dict()
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / RECORD_NAME
            path.write_text(json.dumps(record, indent=2) + "\n")
            self.folder.put(RECORD_NAME, path)
            if report or time.monotonic() - self._reported_at > SECONDS_BETWEEN_REPORTS:
                from train.record.report import draw  # matplotlib takes a second to import

                self.folder.put(REPORT_NAME, draw(record, Path(scratch) / REPORT_NAME))
                self._reported_at = time.monotonic()

    def _batches_per_point(self, state: State) -> int:
        assert state.max_duration is not None and state.dataloader_len is not None
        total = state.max_duration.value
        if state.max_duration.unit == TimeUnit.EPOCH:
            total *= int(state.dataloader_len)
        return max(1, total // CURVE_POINTS)


class _Mean:
    """A mean that can be saved half-way."""

    def __init__(self, total: float = 0.0, count: int = 0) -> None:
        self._total, self._count = total, count

    def add(self, value: float) -> None:
        self._total += value
        self._count += 1

    def take(self) -> float | None:
        """Return the mean of what was added, and start anew."""
        mean = self._total / self._count if self._count else None
        self._total, self._count = 0.0, 0
        return mean

    def state(self) -> list[float]:
        return [self._total, self._count]


def _hardware() -> dict[str, Any]:
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return {
        "world_size": dist.get_world_size(),
        "device": torch.cuda.get_device_name() if gpus else "cpu",
        "cpu": platform.machine(),
        "threads_per_rank": torch.get_num_threads(),
    }
