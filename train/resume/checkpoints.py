"""Checkpoints that are whole, verified and safe to load, on a disk or in S3.

Composer writes a checkpoint in place, finds the newest through a symbolic link, and unpickles whatever it finds. Here a
checkpoint gets its name only once it is complete, the newest whole one is found by listing, and only plain data and
tensors are ever loaded.
"""

import contextlib
import logging
import re
import socket
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from composer.algorithms import EMA
from composer.callbacks import CheckpointSaver
from composer.core import State
from composer.loggers import Logger
from composer.utils import dist, reproducibility

from imagestream.data.job_dir import scratch_folder
from imagestream.storage.errors import PlaceError, cannot_be_written
from imagestream.storage.local import PART
from imagestream.storage.protocol import Place
from train.ranks import on_first_rank, raise_first_of_any_rank
from train.resume.checkpoint_file import CheckpointError, hash_of, load_with_hash, write
from train.step.statistics import StepStatistics

log = logging.getLogger(__name__)

DAMAGED = ".damaged"
PIECE_BYTES = 16 * 2**20  # of a checkpoint on its way to another node; each rank holds one at a time
NAME = re.compile(r"ep(\d+)-ba(\d+)\.pt")
ELSEWHERE = ".on-"  # and a host: an empty file in the save folder of a node that does not share rank 0's


class DurableCheckpointSaver(CheckpointSaver):
    """Composer's saver, writing through a temporary name and keeping the newest few.

    Args:
        folder: where checkpoints go, as `ep<epochs>-ba<batches>.pt`.
        statistics: of the steps, which are all in a checkpoint.
        save_interval: Composer time string; there is always one at the end.
        keep: how many to keep; older ones are deleted after a newer one is safe.
        scores: how good the run was after which batch, by which the best checkpoint is kept as well; None: it is not.
        before_each: is called on rank 0 with the batch, before a checkpoint is stored.
    """

    def __init__(
        self,
        folder: Place,
        statistics: StepStatistics,
        *,
        save_interval: str,
        keep: int,
        scores: Callable[[], Mapping[int, float]] | None = None,
        before_each: Callable[[int], None] = lambda batch: None,
    ) -> None:
        self.store, self.keep, self._scores, self._before_each = folder, keep, scores, before_each
        self._statistics = statistics
        self._first_host = _host_of_first_rank()
        # A rename is atomic within a file system only, so what is meant for a disk is written there.
        self._scratch = folder.path or scratch_folder()
        on_first_rank(self._delete_leftovers)
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
        """Save, or fail on all ranks alike.

        Composer 0.32.1's own (`composer.utils.checkpoint._save_checkpoint`) makes the same content, but writes it on
        rank 0 alone while the others wait in a barrier: they would never hear that it failed.
        """
        self._statistics.settle()  # nothing is saved after a batch whose gradients were not finite
        self.last_checkpoint_batch = state.timestamp.batch
        name = f"ep{int(state.timestamp.epoch)}-ba{int(state.timestamp.batch)}.pt"
        content = {"state": state.state_dict(), "rng": reproducibility.get_rng_state()}  # collective, both
        batch = int(state.timestamp.batch)
        on_first_rank(lambda: self._store(name, content, batch))
        problem = None
        if dist.get_local_rank() == 0 and self.store.path is not None:
            try:
                note_where(self.store.path, name, self._first_host)
            except PlaceError as error:
                problem = error
        raise_first_of_any_rank(problem)

    def _store(self, name: str, content: dict[str, Any], batch: int) -> None:
        self._before_each(batch)
        part = self._scratch / f"{PART}{uuid.uuid4().hex[:8]}-{name}"
        try:
            write(content, part, final=f"{self.store}/{name}")
            self.store.put(name, part)
        finally:
            part.unlink(missing_ok=True)
        self._delete_older()

    def _delete_leftovers(self) -> None:
        """Delete what a run has left that was killed while it wrote, or before it had deleted an older checkpoint."""
        for part in self.store.path.glob(f"{PART}*") if self.store.path else ():
            part.unlink(missing_ok=True)
        if self._scores is None:  # else they are in the checkpoint, which is still to be read
            self._delete_older()

    def _delete_older(self) -> None:
        names = list_checkpoints(self.store)
        best = best_checkpoint(names, self._scores()) if self._scores else None
        for old in names[: -self.keep]:
            if old != best:
                self.store.delete([old])


def use_averaged_weights(state: State) -> None:
    """Have the model hold EMA's weights where there are any: those that are evaluated, and that checkpoints hold.

    Composer 0.32.1 leaves one or the other in the model, by whether the last event was an evaluation or a checkpoint.
    """
    for algorithm in state.algorithms:
        if isinstance(algorithm, EMA) and algorithm.ema_started:
            algorithm._ensure_ema_weights_active(state)


def best_checkpoint(names: Sequence[str], scores: Mapping[int, float]) -> str | None:
    """Return the checkpoint with the highest score of its batch, of equal ones the first; None where none has one."""
    scored = [name for name in names if _progress(name)[0] in scores]
    return max(scored, key=lambda name: scores[_progress(name)[0]], default=None)


def list_checkpoints(folder: Place) -> list[str]:
    """Return the names of a folder's checkpoints, oldest first."""
    return sorted((name for name in folder.sizes() if NAME.fullmatch(name)), key=_progress)


def _progress(name: str) -> tuple[int, int]:
    match = NAME.match(name)
    assert match
    return int(match[2]), int(match[1])


def _host_of_first_rank() -> str:
    host = [socket.gethostname()]
    dist.broadcast_object_list(host)
    return host[0]


def note_where(folder: Path, name: str, host: str) -> None:
    """In the save folder of a node that does not share rank 0's, note the newest checkpoint and the host that has it.

    Raises:
        PlaceError: it cannot be written.
    """
    if (folder / name).exists():
        return
    mark = f"{name}{ELSEWHERE}{host}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / mark).touch()
        for other in folder.iterdir():
            if other.name != mark and NAME.match(other.name) and ELSEWHERE in other.name:
                other.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_be_written(folder / mark, error, needed_bytes=0) from error


def refuse_to_fall_behind(folder: Place) -> None:
    """Refuse to begin where some node knows of a newer checkpoint than rank 0's folder has. Collective.

    Nodes that share no folder leave the checkpoints with the node of rank 0; when another takes its place, its folder
    is empty, and a run would begin anew without a word. A damaged checkpoint counts as there.

    Raises:
        CheckpointError: on all ranks.
    """
    host, names = socket.gethostname(), list[str]()
    if folder.path is not None and dist.get_local_rank() == 0:
        names = [name for name in folder.sizes() if NAME.match(name)]
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
        "to the first node's folder. With s3:// or a shared folder any node can be the first. To continue without it, "
        f"delete {newest} on {witness}"
    )


@dataclass(frozen=True)
class Found:
    """A checkpoint in a folder: the same on all ranks, but for rank 0's own copy."""

    name: str
    sha256: str | None = None  # that it must have; None: whatever rank 0's file carries
    damaged: tuple[str, ...] = ()  # newer ones that cannot be used
    copy: Path | None = None  # what rank 0 has downloaded and checked
    scratch: tempfile.TemporaryDirectory[str] | None = None  # deletes the copy when nobody holds this any more

    def for_others(self) -> "Found":
        """Return what the other ranks are told."""
        return replace(self, copy=None, scratch=None)


def newest_whole(folder: Place) -> tuple[Found, dict[str, Any]] | None:
    """Return the newest checkpoint that is whole, with its content; None when there is none at all.

    Nothing in the folder is changed: see `set_damaged_aside`.

    Raises:
        CheckpointError: there are checkpoints, but not one is usable.
    """
    names = list_checkpoints(folder)
    faults: list[str] = []
    for place, name in enumerate(reversed(names)):
        scratch = tempfile.TemporaryDirectory(prefix="checkpoint-", dir=scratch_folder())
        try:
            path = folder.get(name, Path(scratch.name))
            content, sha256 = load_with_hash(path)
        except CheckpointError as error:
            log.warning("%s; the checkpoint before it is tried", error)
            faults.append(str(error))
            scratch.cleanup()
            continue
        return Found(name, sha256, tuple(names[len(names) - place :]), path, scratch), content
    if names:
        raise CheckpointError(
            f"none of the {len(names)} checkpoints can be used; the newest is {names[-1]}: {faults[0]}"
        )
    return None


def set_damaged_aside(folder: Place, found: Found) -> None:
    """Give the damaged ones that are newer the ending `.damaged`, so that nobody takes them for the newest again.

    It is never done to all that there are, or the next run would start from the beginning.
    """
    for name in found.damaged:
        folder.rename(name, name + DAMAGED)


@contextlib.contextmanager
def on_every_node(folder: Place, found: Found | None) -> Iterator[str | None]:
    """Give each rank a local path of the checkpoint that rank 0 found; copies are removed at the end.

    A node that does not share rank 0's local folder gets the file from rank 0. On every node it has been compared with
    the hash of the one that rank 0 found, and Composer has each rank check it once more (`only_load_safely`).
    Collective. `found` is the same on all ranks.

    Raises:
        CheckpointError: on all ranks: the folder cannot be read on some node, or the file is not that one there.
    """
    if found is None:
        yield None
        return
    with (
        found.scratch or contextlib.nullcontext(),
        tempfile.TemporaryDirectory(prefix="checkpoint-", dir=scratch_folder()) as scratch,
    ):
        error: Exception | None = None
        path, lacks = None, False
        if dist.get_local_rank() == 0:
            try:
                path = found.copy or folder.get(found.name, Path(scratch))
                lacks = not path.exists()
                if lacks and dist.get_global_rank() == 0:
                    error = CheckpointError(f"{path} does not exist")
                elif lacks:
                    path = Path(scratch) / found.name
            except PlaceError as caught:
                error = CheckpointError(str(caught))
        raise_first_of_any_rank(error)
        if any(dist.all_gather_object(lacks)):
            _send_from_first_rank(path, receives=lacks)
        yield str(_check_on_each_node(path, found.sha256)[dist.get_node_rank()])
        dist.barrier()


def _check_on_each_node(path: Path | None, expected: str | None) -> dict[int, Path]:
    """Return the path of the checkpoint on each node, after each one's first rank has checked its file. Collective.

    Raises:
        CheckpointError: some node's file is damaged, or not rank 0's.
    """
    host, error, sha256 = socket.gethostname(), None, ""
    if path is not None:
        try:
            sha256 = hash_of(path)
        except CheckpointError as caught:
            error = CheckpointError(f"on {host}, {caught}")
    raise_first_of_any_rank(error)
    everywhere = dist.all_gather_object((dist.get_node_rank(), host, path, sha256))
    files = [found for found in everywhere if found[2] is not None]
    wanted = expected or files[0][3]
    for _, host, path, sha256 in files:
        if sha256 != wanted:
            raise CheckpointError(
                f"on {host}, {path} is not the checkpoint that was found: its SHA-256 is {sha256}, not "
                f"{wanted}; is another run saving to that folder?"
            )
    return {node: path for node, _, path, _ in files}


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
