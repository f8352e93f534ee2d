"""Checkpoints that are whole, verified and safe to load, on a disk or in S3.

Composer writes a checkpoint in place, finds the newest through a symbolic link, and unpickles whatever it finds. Here a
checkpoint gets its name only once it is complete, the newest whole one is found by listing, and only plain data and
tensors are ever loaded.
"""

import contextlib
import datetime
import logging
import os
import re
import socket
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from composer.algorithms import EMA
from composer.callbacks import CheckpointSaver
from composer.core import State
from composer.loggers import Logger
from composer.utils import checkpoint as composer_checkpoint
from composer.utils import dist

from train.folders import Folder, FolderError, LocalFolder
from train.job_dir import scratch_folder

log = logging.getLogger(__name__)

DAMAGED = ".damaged"
PART = ".part-"
PIECE_BYTES = 16 * 2**20  # of a checkpoint on its way to another node; each rank holds one at a time
NAME = re.compile(r"ep(\d+)-ba(\d+)\.pt")
ELSEWHERE = ".on-"  # and a host: an empty file in the save folder of a node that does not share rank 0's

SAFE_GLOBALS: list[Any] = [
    torch.torch_version.TorchVersion,  # the version that wrote it; a str
    datetime.timedelta,  # wall-clock times in Composer's timestamps
    np.ndarray,  # numpy's generator state
    np.dtype,
    np.dtypes.UInt32DType,
    np._core.multiarray._reconstruct,  # type: ignore[attr-defined]  # how numpy pickles an array
]


class CheckpointError(ValueError):
    """A checkpoint is damaged, unsafe or not one of ours; the message names it."""


class DurableCheckpointSaver(CheckpointSaver):
    """Composer's saver, writing through a temporary name and keeping the newest few.

    Args:
        folder: where checkpoints go, as `ep<epochs>-ba<batches>.pt`.
        save_interval: Composer time string; there is always one at the end.
        keep: how many to keep; older ones are deleted after a newer one is safe.
    """

    def __init__(self, folder: Folder, *, save_interval: str, keep: int) -> None:
        self.store, self.keep = folder, keep
        self._first_host = _host_of_first_rank()
        # A rename is atomic within a file system only, so what is meant for a disk is written there.
        self._scratch = folder.path if isinstance(folder, LocalFolder) else scratch_folder()
        if isinstance(folder, LocalFolder) and dist.get_global_rank() == 0:
            for part in folder.path.glob(f"{PART}*"):  # a run was killed while it wrote
                part.unlink(missing_ok=True)
        super().__init__(
            folder=str(self._scratch),
            remote_file_name=None,
            latest_filename=None,
            latest_remote_file_name=None,
            save_interval=save_interval,
            overwrite=True,
        )

    def save_now(self, state: State, logger: Logger) -> None:
        """Save a checkpoint whatever the interval; it is safe when this returns. Collective."""
        use_averaged_weights(state)
        self._save_checkpoint(state, logger)

    def _save_checkpoint(self, state: State, logger: Logger) -> None:
        self.last_checkpoint_batch = state.timestamp.batch
        name = f"ep{int(state.timestamp.epoch)}-ba{int(state.timestamp.batch)}.pt"
        part = self._scratch / f"{PART}{name}"
        composer_checkpoint.save_checkpoint(state=state, filename=str(part))
        if dist.get_global_rank() == 0:
            self.store.put(name, part)
            for old in list_checkpoints(self.store)[: -self.keep]:
                self.store.remove(old)
        dist.barrier()
        if dist.get_local_rank() == 0 and isinstance(self.store, LocalFolder):
            note_where(self.store, name, self._first_host)


def use_averaged_weights(state: State) -> None:
    """Have the model hold EMA's weights where there are any: those that are evaluated, and that checkpoints hold.

    Composer 0.32.1 leaves one or the other in the model, by whether the last event was an evaluation or a checkpoint.
    """
    for algorithm in state.algorithms:
        if isinstance(algorithm, EMA) and algorithm.ema_started:
            algorithm._ensure_ema_weights_active(state)


def list_checkpoints(folder: Folder) -> list[str]:
    """Return the names of a folder's checkpoints, oldest first."""
    return sorted((name for name in folder.names() if NAME.fullmatch(name)), key=_progress)


def _progress(name: str) -> tuple[int, int]:
    match = NAME.match(name)
    assert match
    return int(match[2]), int(match[1])


def _host_of_first_rank() -> str:
    host = [socket.gethostname()]
    dist.broadcast_object_list(host)
    return host[0]


def note_where(folder: LocalFolder, name: str, host: str) -> None:
    """In the save folder of a node that does not share rank 0's, note the newest checkpoint and the host that has it.

    Raises:
        FolderError: it cannot be written.
    """
    if (folder.path / name).exists():
        return
    mark = f"{name}{ELSEWHERE}{host}"
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        (folder.path / mark).touch()
    except OSError as error:
        raise FolderError(f"{folder.path / mark} cannot be written: {error.strerror}") from error
    for other in folder.names():
        if other != mark and NAME.match(other) and ELSEWHERE in other:
            folder.remove(other)


def refuse_to_fall_behind(folder: Folder) -> None:
    """Refuse to begin where some node knows of a newer checkpoint than rank 0's folder has. Collective.

    Nodes that share no folder leave the checkpoints with the node of rank 0; when another takes its place, its folder
    is empty, and a run would begin anew without a word. A damaged checkpoint counts as there.

    Raises:
        CheckpointError: on all ranks.
    """
    host, names = socket.gethostname(), list[str]()
    if isinstance(folder, LocalFolder) and dist.get_local_rank() == 0:
        names = [name for name in folder.names() if NAME.match(name)]
    everywhere: list[tuple[str, list[str]]] = dist.all_gather_object((host, names))
    first, here = everywhere[0][0], [name for name in everywhere[0][1] if ELSEWHERE not in name]
    known = [(_progress(name), name, host) for host, names in everywhere for name in names]
    if not known or (here and max(known)[0] <= max(map(_progress, here))):
        return
    _, newest, witness = max(known)
    name, _, owner = newest.partition(ELSEWHERE)
    raise CheckpointError(
        f"rank 0 is now on {first}, whose save folder has {max(here, key=_progress) if here else 'no checkpoint'}, and "
        f"{name} of this run is on {owner or witness}; start with that host as the first node, or copy the checkpoint "
        "to the first node's folder. With s3:// or a shared folder any node can be the first. To go on without it, "
        f"delete {newest} on {witness}"
    )


def load(path: Path) -> dict[str, Any]:
    """Return a checkpoint's content after checking that it is whole and holds plain data only.

    torch.save writes a zip file, whose directory comes last and whose entries carry a CRC-32: a truncated file has no
    directory, a flipped bit fails its CRC.

    Raises:
        CheckpointError: naming the damage, or the type that a checkpoint has no business to hold.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError) as error:
        raise CheckpointError(f"{path} is not a whole checkpoint: {error}") from error
    if damaged:
        raise CheckpointError(f"{path} is damaged: {damaged} fails its checksum")
    with torch.serialization.safe_globals(SAFE_GLOBALS):
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        if foreign:
            raise CheckpointError(
                f"{path} holds {', '.join(sorted(foreign))}; loading it could run code, so it is refused"
            )
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, dict) or "state" not in content:
        raise CheckpointError(f"{path} is not a Composer checkpoint: it has no 'state'")
    return content


def is_valid(path: str | Path, _specs: Any = None) -> bool:
    """Composer calls this before it loads a checkpoint; see `only_load_safely`. Raises where `load` does."""
    load(Path(path))
    return True


def only_load_safely() -> None:
    """Have Composer check each checkpoint by `is_valid`, through its own hook, before unpickling it."""
    os.environ["CHECKPOINT_VALIDATION_FUNCTION"] = f"{__name__}.is_valid"


def newest_whole(folder: Folder) -> tuple[str, dict[str, Any]] | None:
    """Return the name and content of the newest checkpoint that is whole, or None when there is none at all.

    Damaged ones that are newer get the ending `.damaged`, so that nobody takes them for the newest again; but never
    the last ones there are, or the next run would start from the beginning.

    Raises:
        CheckpointError: there are checkpoints, but not one is usable.
    """
    names = list_checkpoints(folder)
    damaged = []
    for name in reversed(names):
        with tempfile.TemporaryDirectory(prefix="checkpoint-", dir=scratch_folder()) as scratch:
            try:
                content = load(folder.get(name, Path(scratch)))
            except CheckpointError as error:
                log.warning("%s; the checkpoint before it is tried", error)
                damaged.append(name)
                continue
        for other in damaged:
            folder.rename(other, other + DAMAGED)
        return name, content
    if names:
        raise CheckpointError(f"none of the {len(names)} checkpoints can be used; the newest is {names[-1]}")
    return None


@contextlib.contextmanager
def on_every_node(folder: Folder, found: str | None) -> Iterator[str | None]:
    """Give each rank a local path of the checkpoint that rank 0 found; copies are removed at the end.

    A node that does not share rank 0's local folder gets the file from rank 0. Collective. `found` is a name in
    `folder`, the same on all ranks.

    Raises:
        CheckpointError: the folder cannot be read on some node.
    """
    if found is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="checkpoint-", dir=scratch_folder()) as scratch:
        problem, path, lacks = "", None, False
        if dist.get_local_rank() == 0:
            try:
                path = str(folder.get(found, Path(scratch)))
            except FolderError as error:
                problem = str(error)
            if path and not os.path.exists(path):
                if dist.get_global_rank() == 0:
                    problem = f"{path} does not exist"
                path, lacks = str(Path(scratch) / found), True
        seen = dist.all_gather_object((dist.get_node_rank(), path, problem, lacks))
        problems = [text for _, _, text, _ in seen if text]
        if problems:
            raise CheckpointError(problems[0])
        if any(lacking for *_, lacking in seen):
            _send_from_first_rank(Path(path) if path else None, receives=lacks)
        yield next(p for node, p, *_ in seen if node == dist.get_node_rank() and p)
        dist.barrier()


def _send_from_first_rank(path: Path | None, *, receives: bool) -> None:
    """Copy rank 0's file at `path` to `path` on each rank that receives. Collective."""
    source = open(path, "rb") if path and dist.get_global_rank() == 0 else None  # noqa: SIM115  # closed by the with below
    target = open(path, "wb") if path and receives else None  # noqa: SIM115  # this one too
    with source or contextlib.nullcontext(), target or contextlib.nullcontext():
        while True:
            piece = [source.read(PIECE_BYTES) if source else b""]
            dist.broadcast_object_list(piece)
            if not piece[0]:
                return
            if target:
                target.write(piece[0])
