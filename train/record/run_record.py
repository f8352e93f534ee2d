"""The run's record: `run.json`, `report.html` and `report.png` in the save folder, kept up to date during the run."""

import json
import logging
import platform
import socket
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
from composer.core import Callback, State, TimeUnit
from composer.loggers import Logger
from composer.utils import dist

from imagestream.mds.names import utf8
from imagestream.storage.protocol import Place
from train.capacity import node_count
from train.model import weights_sha256
from train.ranks import on_first_rank
from train.record.evaluated import Evaluated
from train.record.memory import device_memory_bytes, host_memory_bytes
from train.record.pictures import TrainingCrops
from train.record.price import price_of_an_hour
from train.record.reading import PAGE_NAME, RECORD_NAME
from train.record.run_clock import RunClock
from train.record.stages import Speed
from train.resume.guard import ResumeGuard
from train.step.statistics import Step, StepStatistics

log = logging.getLogger(__name__)

REPORT_NAME = "report.png"
CURVE_POINTS = 500  # of loss, learning rate and image size over the whole run
SECONDS_BETWEEN_REPORTS = 60
Draw = Callable[[dict[str, Any], dict[str, Any]], bytes]
"""Returns the file that shows a record and its pictures. It is made in memory, for /tmp may be full."""
PACKAGES = ("torch", "torchvision", "mosaicml", "mosaicml-streaming", "numpy", "pillow")


class RunRecord(Callback):
    """Collects what a run is and does; rank 0 writes it at each epoch's and evaluation's end.

    The epochs and curves travel in the checkpoint, so a resumed run's record is that of the whole run. Speeds are
    measured from asking for a batch to the end of its step: without evaluation and checkpoints, and by rank 0.

    Args:
        facts: what is known before the first step: config, dataset, batch arithmetic.
        folder: where `run.json`, `report.html` and `report.png` go.
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
        self._lr: float | None = None  # of the last step whose loss has come
        self._reported_at = time.monotonic()
        self._open_points: dict[int, dict[str, Any]] = {}  # of the curve, by batch: their losses are still to come
        self._losses_to = 0  # batches whose losses have come
        self.starts: list[dict[str, Any]] = []  # of each process that has trained
        self._status = "running"
        self._clock = RunClock()
        self._mean, self._std = (facts["config"]["data"][name] for name in ("mean", "std"))
        self._crops, self._evaluated = TrainingCrops(), Evaluated(self._mean, self._std)
        self._details: dict[str, Any] = {}  # of the last evaluation
        statistics.tell(self._take_loss)

    # What Composer calls, in the order of a step -----------------------------------------------------------------

    def fit_start(self, state: State, logger: Logger) -> None:
        self._clock.begin(state)
        self.starts.append(
            {
                "batch": int(state.timestamp.batch),
                "unix_time_s": round(time.time(), 1),
                "world_size": dist.get_world_size(),
                "hosts": node_count(),
                "first_host": socket.gethostname(),
            }
        )

    def before_dataloader(self, state: State, logger: Logger) -> None:
        self._asked_at = time.perf_counter()

    def after_dataloader(self, state: State, logger: Logger) -> None:
        self._image_px = int(state.batch[0].shape[-1])

    def before_forward(self, state: State, logger: Logger) -> None:
        """The first event at which all algorithms have changed the batch."""
        if dist.get_global_rank() == 0:
            now = state.timestamp
            is_first = int(now.batch_in_epoch) == 0
            self._crops.take(state.batch[0], self._mean, self._std, batch=int(now.batch), is_first=is_first)

    def batch_end(self, state: State, logger: Logger) -> None:
        samples = int(state.timestamp.sample - (state.previous_timestamp or state.timestamp).sample)
        self._speed.add(samples, time.perf_counter() - self._asked_at, state.dataloader)
        self._clock.note(state)
        batch = int(state.timestamp.batch)
        if batch % self._batches_per_point(state) == 0:
            point = {
                "batch": batch,
                "loss": None,
                "lr": None,
                "image_px": self._image_px,
                **self._speed.take_point(),
                "host_memory_bytes": host_memory_bytes(),
                "device_memory_bytes": device_memory_bytes(),
            }
            if batch == self._losses_to:
                self._close(point)
            else:
                self._open_points[batch] = point

    def _close(self, point: dict[str, Any]) -> None:
        self.curve.append(point | {"loss": self._point_losses.take(), "lr": self._lr})

    def _take_loss(self, step: Step) -> None:
        self._lr = step.learning_rate  # the scheduler has by now that of the next step
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
            "lr": self._lr,
            "image_px": self._image_px,
            "images_per_sec": self._speed.images_per_sec,
            "data_wait_fraction": self._speed.stages.fractions()["data_wait"],
            "stages": self._speed.stages.fractions(),
            "bottleneck": self._speed.stages.bottleneck(),
        }
        log.info(
            "epoch %d: %s images/s on %d rank(s) together, %s on each; %s",
            *(row["epoch"], f"{row['images_per_sec'] or 0:,.0f}", dist.get_world_size()),
            *(f"{(row['images_per_sec'] or 0) / dist.get_world_size():,.0f}", self._speed.stages),
        )
        self.epochs.append(row)
        self._speed.start_epoch()
        self.write()

    def eval_start(self, state: State, logger: Logger) -> None:
        self._evaluated.start()

    def eval_batch_end(self, state: State, logger: Logger) -> None:
        self._evaluated.add(state.batch[0], state.outputs, state.batch[1])

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
        self._details = {"batch": evaluation["batch"], **self._evaluated.gather()}
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
            "exif": self.facts["dataset"]["exif"],
            "epochs": [dict(row) for row in self.epochs],
            "curve": [dict(point) for point in self.curve],
            "evaluations": [dict(evaluation) for evaluation in self.evaluations],
            "epoch_losses": self._epoch_losses.state(),
            "point_losses": self._point_losses.state(),
            "image_px": self._image_px,
            "lr": self._lr,
            "page": self._pictures() | {"starts": [dict(start) for start in self.starts]},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epochs, self.curve, self.evaluations = state["epochs"], state["curve"], state["evaluations"]
        self._epoch_losses, self._point_losses = _Mean(*state["epoch_losses"]), _Mean(*state["point_losses"])
        self._image_px, self._lr = state["image_px"], state.get("lr")
        page = state.get("page", {})  # checkpoints of before it have none
        self.starts, self._details = list(page.get("starts", [])), page.get("evaluated", {})
        if crops := page.get("crops"):
            self._crops.load(crops["batch"], crops["image_px"], crops["pictures"])

    # What a person reads -----------------------------------------------------------------------------------------

    def note_weights(self, state: State) -> None:
        """Take the final weights' hash. With EMA the model holds the averaged ones from the last checkpoint on."""
        self._clock.note(state)
        self._weights = {"batches": int(state.timestamp.batch), "weights_sha256": weights_sha256(state.model)}

    def finish(self) -> dict[str, Any]:
        """Add the final figures, write everything, and return the record."""
        figures = {key: self.evaluations[-1][key] for key in ("top1", "top5", "loss", "samples_evaluated")}
        self.final = figures | self._weights
        self._status = "finished"
        self.write(page=True, picture=True)
        return self.as_dict()

    def note_stop(self) -> None:
        """Say in the record that a signal has stopped the run, which can continue. Collective."""
        self._status = "stopped"
        self.write(page=True)  # without the picture, which takes seconds: somebody waits for the run's end

    def as_dict(self) -> dict[str, Any]:
        """Return the record as plain JSON."""
        return {
            "status": self._status,
            **self.final,
            "progress": self._clock.as_dict(),
            "time": self._clock.times(self.facts["batch"]["total_steps"]) | price_of_an_hour(),
            "starts": self.starts,
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

    def write(self, *, page: bool = False, picture: bool = False) -> None:
        """Store `run.json`, and the page and the picture when asked to or when the last ones are a minute old.

        Collective.

        Raises:
            PlaceError: on all ranks alike.
        """
        on_first_rank(lambda: self._write(page=page, picture=picture))

    def _write(self, *, page: bool, picture: bool) -> None:
        record = self.as_dict()
        is_due = time.monotonic() - self._reported_at > SECONDS_BETWEEN_REPORTS
        self.folder.write(RECORD_NAME, (json.dumps(record, indent=2) + "\n").encode())
        if page or is_due:
            self._write_if_drawn(_page, record, PAGE_NAME)
        if picture or is_due:
            self._write_if_drawn(_picture, record, REPORT_NAME)
        if is_due:
            self._reported_at = time.monotonic()

    def _write_if_drawn(self, draw: Draw, record: dict[str, Any], name: str) -> None:
        """Store what shows the record; where it cannot be drawn, the run continues without it."""
        try:
            data = draw(record, self._pictures())
        except Exception:
            log.warning("%s cannot be drawn; the run continues without it", name, exc_info=True)
            return
        self.folder.write(name, data)

    def _pictures(self) -> dict[str, Any]:
        """Return what the page has and `run.json` has not."""
        return {"crops": self._crops.state(), "evaluated": self._details}

    def _batches_per_point(self, state: State) -> int:
        assert state.max_duration is not None and state.dataloader_len is not None
        total = state.max_duration.value
        if state.max_duration.unit == TimeUnit.EPOCH:
            total *= int(state.dataloader_len)
        return max(1, total // CURVE_POINTS)


def _page(record: dict[str, Any], pictures: dict[str, Any]) -> bytes:
    from train.record.page import run_page  # here: a run that is refused needs no templates

    return utf8(run_page(record, pictures))


def _picture(record: dict[str, Any], pictures: dict[str, Any]) -> bytes:
    from train.record.report import draw  # matplotlib takes a second to import

    return draw(record)


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
