"""Records of runs, found in their save folders, on a disk or in S3."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from imagestream.storage.errors import PlaceError
from imagestream.storage.places import open_place
from imagestream.storage.protocol import Place, read_if_there

RECORD_NAME, PAGE_NAME = "run.json", "report.html"
NEEDED: Mapping[str, Any] = {  # and of which kind
    "status": str,
    "config": dict,
    "dataset": dict,
    "batch": dict,
    "hardware": dict,
    "throughput": dict,
    "epochs": list,
    "evaluations": list,
    "curve": list,
    "ledger": dict,
    "versions": dict,
}
NEEDED_BELOW = {
    "config": ("run_name", "global_batch_size", "model"),
    "dataset": ("num_classes", "classes", "train_samples", "val_samples"),
    "batch": ("steps_per_epoch", "total_steps"),
    "hardware": ("world_size", "device"),
    "throughput": ("images_per_sec",),
    "ledger": ("final",),
}
IN_WORDS = {str: "text", dict: "a map", list: "a list"}


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
        data = read_if_there(place, f"{name}{RECORD_NAME}")
        if data is not None:
            found.append(stored_run(where, data))
        elif any(below.endswith(".pt") for below in place.names(name.rstrip("/"))):
            found.append(RunError(f"{where} has checkpoints and no {RECORD_NAME}: its run has not ended an epoch"))
    return found


def stored_run(folder: str, data: bytes) -> StoredRun | RunError:
    """Return the run whose record has these bytes, or what is wrong with them."""
    try:
        record = json.loads(data)
    except ValueError as error:
        return RunError(f"{folder}/{RECORD_NAME} is not JSON: {error}")
    if fault := _fault_of(record):
        return RunError(f"{folder}/{RECORD_NAME} is not a run's record: {fault}")
    return StoredRun(folder, record)


def _fault_of(record: Any) -> str:
    """Return what a record lacks of that which is shown of it; '' where nothing."""
    if not isinstance(record, dict):
        return f"it is no map but {type(record).__name__}"
    for key, kind in NEEDED.items():
        if not isinstance(record.get(key), kind):
            return f"{key} must be {IN_WORDS[kind]}"
        if missing := [below for below in NEEDED_BELOW.get(key, ()) if below not in record[key]]:
            return f"{key}.{missing[0]} is missing"
    for key in ("epochs", "evaluations", "curve"):
        if not all(isinstance(row, dict) and isinstance(row.get("batch"), int) for row in record[key]):
            return f"each entry of {key} must be a map with a batch"
    for key in ("steps_per_epoch", "total_steps"):
        if not isinstance(record["batch"][key], int) or record["batch"][key] < 1:
            return f"batch.{key} must be a whole number from 1"
    return ""
