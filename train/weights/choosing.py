"""Which checkpoint is meant by a run's folder."""

import json
from typing import Any, Literal

from imagestream.storage.places import folder_and_name, open_place
from imagestream.storage.protocol import Place, read_if_there
from train.record.reading import RECORD_NAME
from train.resume.checkpoint_file import CheckpointError
from train.resume.checkpoints import best_checkpoint, list_checkpoints

Which = Literal["best", "last"]


def choose_checkpoint(location: str, which: Which) -> tuple[Place, str]:
    """Return the folder and the name of a checkpoint.

    Args:
        location: a checkpoint, which is taken as it is, or a run's save folder; local or s3://.
        which: of a folder's checkpoints the one with the highest top-1, or the newest. Where no checkpoint that is left
            was evaluated, the best is the newest.

    Raises:
        CheckpointError: there is none.
        PlaceError: the place cannot be read.
    """
    if location.endswith(".pt"):
        folder, name = folder_and_name(location)
        place = open_place(folder)
        if place.stat(name) is None:
            raise CheckpointError(f"{location} does not exist")
        return place, name
    place = open_place(location)
    names = list_checkpoints(place)
    if not names:
        raise CheckpointError(
            f"{location} holds no checkpoint (ep...-ba....pt); give a run's save folder, or one of its checkpoints"
        )
    if which == "last":
        return place, names[-1]
    scores = {row["batch"]: row["top1"] for row in read_record(place).get("evaluations", [])}
    return place, best_checkpoint(names, scores) or names[-1]


def read_record(folder: Place) -> dict[str, Any]:
    """Return a run's run.json; {} where its folder has none.

    Raises:
        CheckpointError: it is damaged.
    """
    text = read_if_there(folder, RECORD_NAME)
    try:
        record = {} if text is None else json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"{folder}/{RECORD_NAME} is damaged: {error}") from error
    if not isinstance(record, dict):
        raise CheckpointError(f"{folder}/{RECORD_NAME} is damaged: it is not a map")
    return record
