"""Records of runs, found in their save folders, on a disk or in S3."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
)

from imagestream.storage.errors import PlaceError
from imagestream.storage.places import open_place
from imagestream.storage.protocol import Place, read_if_there

RECORD_NAME, PAGE_NAME = "run.json", "report.html"
LAST_MOMENT_S = 4e9  # in the year 2096; what is beyond is no time of a run

Share = Annotated[float, Field(ge=0, le=1)]
Figure = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Part(BaseModel):
    """What is shown of a part of a record; what else is in it does not matter."""

    model_config = ConfigDict(extra="ignore", strict=True)


class _Row(_Part):
    batch: NonNegativeInt
    images_per_sec: Figure | None = None
    data_wait_fraction: Figure | None = None


class _Point(_Row):
    loss: float | None = None
    lr: float | None = None
    image_px: float | None = None
    host_memory_bytes: int | None = None
    device_memory_bytes: int | None = None


class _Evaluation(_Row):
    top1: Share
    top5: Share
    loss: float
    samples_evaluated: NonNegativeInt


class _Model(_Part):
    name: str


class _Config(_Part):
    run_name: str
    global_batch_size: PositiveInt
    model: _Model


class _Dataset(_Part):
    num_classes: NonNegativeInt
    classes: list[str] | None
    train_samples: NonNegativeInt
    val_samples: NonNegativeInt
    fingerprint: str
    decoder: str


class _Batch(_Part):
    steps_per_epoch: PositiveInt
    total_steps: PositiveInt


class _Hardware(_Part):
    world_size: PositiveInt
    device: str


class _Throughput(_Part):
    images_per_sec: Figure | None
    data_wait_fraction: Figure | None = None


class _Ledger(_Part):
    final: str


class _Change(_Part):
    batch: int
    key: str
    before: Any
    after: Any


class _Progress(_Part):
    batch: NonNegativeInt


class _Time(_Part):
    written_unix_s: float = Field(ge=0, le=LAST_MOMENT_S)
    train_s: Figure
    left_s: Figure | None
    usd_per_hour: Figure | None = None


class _Start(_Part):
    batch: NonNegativeInt
    unix_time_s: float = Field(ge=0, le=LAST_MOMENT_S)
    world_size: PositiveInt
    hosts: PositiveInt
    first_host: str


class _Record(_Part):
    status: str
    config: _Config
    dataset: _Dataset
    batch: _Batch
    hardware: _Hardware
    throughput: _Throughput
    ledger: _Ledger
    versions: dict[str, str]
    changes: list[_Change]
    epochs: list[_Row]
    evaluations: list[_Evaluation]
    curve: list[_Point]
    progress: _Progress = _Progress(batch=0)  # of the later ones, records of before them have none
    time: _Time = _Time(written_unix_s=0, train_s=0, left_s=None)
    starts: list[_Start] = []


class RunError(ValueError):
    """A folder's run cannot be read; the message names the folder and what was seen."""


@dataclass(frozen=True)
class StoredRun:
    """A run's record and where it is."""

    folder: str
    record: Mapping[str, Any]
    label: str = ""  # where several runs have one name

    @property
    def name(self) -> str:
        """What the run is called beside others."""
        return self.label or str(self.record["config"]["run_name"])


def find_runs(folder: str) -> list[StoredRun | RunError]:
    """Return the run of a save folder; or those of the folders in it, where it has no run itself."""
    try:
        place = open_place(folder)
        data = read_if_there(place, RECORD_NAME)
        if data is not None:
            return [stored_run(folder, data)]
        below = _runs_below(folder, place)
    except (PlaceError, OSError) as error:
        return [RunError(f"{folder}: {error}")]
    if below:
        return below
    return [
        RunError(f"{folder} has no {RECORD_NAME}, and no folder in it has one; give a run's checkpoint.save_folder")
    ]


def read_run(folder: str) -> StoredRun:
    """Return the run of a save folder.

    Raises:
        RunError: there is none, or it cannot be read.
        PlaceError: the place cannot be read.
    """
    data = read_if_there(open_place(folder), RECORD_NAME)
    if data is None:
        raise RunError(f"{folder} has no {RECORD_NAME} yet; a run writes it after its first epoch or evaluation")
    found = stored_run(folder, data)
    if isinstance(found, RunError):
        raise found
    return found


def _runs_below(folder: str, place: Place) -> list[StoredRun | RunError]:
    found: list[StoredRun | RunError] = []
    for name in (name for name in place.names() if name.endswith("/")):
        where = f"{folder.rstrip('/')}/{name.rstrip('/')}"
        try:
            data = read_if_there(place, f"{name}{RECORD_NAME}")
            has_checkpoints = data is None and any(below.endswith(".pt") for below in place.names(name.rstrip("/")))
        except (PlaceError, OSError) as error:  # as another user's folder; those beside it are shown
            found.append(RunError(f"{where}: {error}"))
            continue
        if data is not None:
            found.append(stored_run(where, data))
        elif has_checkpoints:
            found.append(RunError(f"{where} has checkpoints and no {RECORD_NAME}: its run has not ended an epoch"))
    return found


def stored_run(folder: str, data: bytes) -> StoredRun | RunError:
    """Return the run whose record has these bytes, or what is wrong with them."""
    try:
        record = json.loads(data)
    except ValueError as error:
        return RunError(f"{folder}/{RECORD_NAME} is not JSON: {error}")
    try:
        _Record.model_validate(record)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        return RunError(f"{folder}/{RECORD_NAME} is not a run's record: {where}: {first['msg']}")
    return StoredRun(folder, record)
