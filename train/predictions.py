"""What a model says of each sample; as a Parquet file, the figures can be worked out from it again."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

from imagestream.data.dataset import IGNORED_LABEL, StreamingImages
from imagestream.storage.places import folder_and_name, open_place
from train.model import best_classes, sample_losses

Columns = dict[str, npt.NDArray[Any]]


class Predictions(Callback):
    """Collects a row for each sample of an evaluation; `gather` puts those of all ranks together.

    Columns: `sample_id` int64, what the shards' column `i` says (left out where they have no such column); `position`
    int64, of the sample in the split's shards, one after the other, from 0; `label` int32; `classes`, a list of the 5
    likeliest classes (int32, all of them where there are fewer), and `probabilities`, theirs (float32, softmax); `loss`
    float64, cross-entropy in nats. top-1 is the share of rows where classes[0] is the label, top-5 where it is any of
    them, and the loss is the plain mean of `loss`: to the last digit what the evaluation prints.

    """

    def __init__(self) -> None:
        self._batches: list[Columns] = []
        self._seen = 0

    def eval_start(self, state: State, logger: Logger) -> None:
        self._batches, self._seen = [], 0

    def eval_batch_end(self, state: State, logger: Logger) -> None:
        logits, labels = state.outputs.float(), state.batch[1]
        classes = best_classes(logits)
        probabilities = logits.softmax(dim=1).gather(1, classes)
        # StreamingEvalImages gives rank r of W the samples r, r + W, r + 2W, ...
        places = torch.arange(self._seen, self._seen + len(labels)) * dist.get_world_size() + dist.get_global_rank()
        self._seen += len(labels)
        columns = {
            "position": places,
            "label": labels.int(),
            "classes": classes.int(),
            "probabilities": probabilities,
            "loss": sample_losses(logits, labels),
        }
        real = (labels != IGNORED_LABEL).cpu()
        self._batches.append({name: values.cpu()[real].numpy() for name, values in columns.items()})

    def gather(self, dataset: StreamingImages, *, count: int) -> Columns:
        """Return the columns of all samples, on rank 0 by sample id where there are ids; collective over all ranks.

        Args:
            dataset: what was evaluated.
            count: rows that there must be.
        """
        mine = {name: np.concatenate([batch[name] for batch in self._batches]) for name in self._batches[0]}
        gathered: list[Columns] = dist.all_gather_object(mine)
        columns = {name: np.concatenate([part[name] for part in gathered]) for name in mine}
        columns = _sorted_by("position", columns)
        if not np.array_equal(columns["position"], np.arange(count)):
            rows = len(columns["position"])
            raise RuntimeError(f"predictions of {rows} samples do not cover positions 0 to {count - 1} once each")
        if dist.get_global_rank() == 0:
            ids = dataset.sample_ids(range(count))
            if ids is not None:
                columns = _sorted_by("sample_id", {"sample_id": np.array(ids, np.int64)} | columns)
        return columns


class ResultFile:
    """A file of an evaluation's results, of which it is known beforehand that it can be written.

    Args:
        location: local or s3://.

    Raises:
        PlaceError: the file's folder cannot be written; before anything is evaluated.
    """

    def __init__(self, location: str) -> None:
        where, self.name = folder_and_name(location)
        self.folder = open_place(where)
        self.folder.check_writable()

    def write(self, data: bytes) -> None:
        """Write the file, whole or not at all."""
        self.folder.write(self.name, data)


def as_parquet(columns: Columns, names: Sequence[str], paths: Sequence[str | None] | None) -> bytes:
    """Return the columns as a Parquet file, with the names of the classes beside their numbers.

    Args:
        names: of the classes, by number.
        paths: of the files that the samples were made of, where they are known.
    """
    known = pa.array(names, pa.string())
    table = {name: _column(values) for name, values in columns.items()}
    table["label_name"] = pa.DictionaryArray.from_arrays(pa.array(columns["label"], pa.int32()), known)
    flat = pa.DictionaryArray.from_arrays(pa.array(columns["classes"].reshape(-1), pa.int32()), known)
    table["class_names"] = pa.FixedSizeListArray.from_arrays(flat, columns["classes"].shape[1])
    if paths is not None:
        table["path"] = pa.array(paths, pa.string())
    sink = io.BytesIO()
    pq.write_table(pa.table(table), sink)
    return sink.getvalue()


def _sorted_by(key: str, columns: Columns) -> Columns:
    order = np.argsort(columns[key], kind="stable")
    return {name: values[order] for name, values in columns.items()}


def _column(values: npt.NDArray[Any]) -> pa.Array:
    if values.ndim == 1:
        return pa.array(values)
    flat = pa.array(values.reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
