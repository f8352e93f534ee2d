"""The streaming dataset: MDS shards in, undecoded (JPEG bytes, label, position, epoch) out.

Streaming does the sharding, shuffling, downloading and caching. What it leaves out is added here, each at the one
method where upstream offers the place: the epoch of a sample, an end of epoch that cannot be early, an evaluation that
visits each sample once, and failures that are raised rather than logged. What makes a shard trustworthy is in
`imagestream.data.downloads`.
"""

import bisect
import itertools
import math
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from filelock import FileLock
from streaming import StreamingDataset
from streaming.base.constant import TICK
from streaming.base.dataset import _ShardState
from streaming.base.world import World as StreamingWorld

from imagestream.data.downloads import StoppedError
from imagestream.mds.records import FILES_KEPT_OPEN, IMAGE_AND_LABEL, RecordError, Records
from imagestream.world import World

IGNORED_LABEL = -100
"""Marks a sample that only fills up a batch (torch's own `ignore_index`)."""

T = TypeVar("T")
LOCK_POLL_S = 0.001  # by default 0.05, and an epoch begins with a dozen locks that all workers of the node want at once
SAMPLES_AT_A_LOOK = 4096  # ahead of the reader, for shards that are missing


class ShortEpochError(RuntimeError):
    """An epoch ended before its last sample."""


COPY_BITS = 40  # a split has fewer samples than 2 to the power of that


class EncodedSample(NamedTuple):
    """One undecoded record.

    Attributes:
        image: the file's bytes, as stored in the shard.
        label: class index, or IGNORED_LABEL.
        position: in the split's shards, one after the other, 0 to samples - 1. (A sample's id is what their column `i`
            says, which the converter numbers in the order of the source; `StreamingImages.sample_ids` gives it.)
        epoch: from 0.
        step: the training batch that it is for, from 0 over the whole run; 0 at evaluation.
        read_s: seconds that it took to read it out of its shard.
        wait_s: seconds until its shard was there.
        copy: which of its appearances in the batch it is, from 0; see `RandomResizedCrop.repeats`.
        fault: why it could not be read, or ''; see `imagestream.data.batches.Tolerant`.
    """

    image: bytes
    label: int
    position: int
    epoch: int
    step: int = 0
    read_s: float = 0.0
    wait_s: float = 0.0
    copy: int = 0
    fault: str = ""

    @property
    def key(self) -> int:
        """What stands for it in draws and in the ledger: its position, and for each more of its copies 2**40 more."""
        return self.position + (self.copy << COPY_BITS)

    def copies(self, count: int) -> list["EncodedSample"]:
        """Return it so often; it was read once."""
        return [self, *(self._replace(copy=copy, read_s=0.0, wait_s=0.0) for copy in range(1, count))]


class SharedFailure:
    """The first failure in any loader process of a rank, in memory that they share.

    A worker may wait, without end, for a shard that another worker could not fetch.
    """

    def __init__(self) -> None:
        self._text = multiprocessing.Array("c", 4000, lock=False)  # zeros

    def note(self, error: BaseException) -> None:
        if not self:
            self._text.value = f"{type(error).__name__}: {error}".encode(errors="replace")[:3999]

    def __bool__(self) -> bool:
        return self._text[0] != b"\0"

    def __str__(self) -> str:
        return self._text.value.decode(errors="replace")


class _StopEvent(threading.Event):
    """Streaming's sign to its threads that one of them failed; set as well when another process's did."""

    def __init__(self, failure: SharedFailure) -> None:
        super().__init__()
        self._failure = failure

    def is_set(self) -> bool:
        return super().is_set() or bool(self._failure)


class ShardOfSample:
    """Where each sample is, as Streaming's `Spanner` has it, in a tenth of its time."""

    def __init__(self, counts: Sequence[int]) -> None:
        self._starts = [0, *itertools.accumulate(counts)]

    def shards_of(self, sample_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the shard of each."""
        return np.searchsorted(self._starts, sample_ids, side="right") - 1

    def __getitem__(self, position: int) -> tuple[int, int]:
        """Return the shard and the place in it, both from 0."""
        at = int(position)
        if not 0 <= at < self._starts[-1]:
            raise IndexError(f"position {at} of {self._starts[-1]:,}")
        shard = bisect.bisect_right(self._starts, at) - 1
        return shard, at - self._starts[shard]


class StreamingImages(StreamingDataset):
    """The training split: shuffled by (seed, epoch), cut into the same global batches on any number of ranks.

    Args:
        global_batch_size: samples of one optimizer step over all ranks; the epoch's last, incomplete one is left out.
        repeats: how often each of them is in the batch. An epoch has no more batches for it, and ends before its last
            samples.
        columns: the names of the shards' columns of images and of labels.
        place: which process of a job this is; None: as the launcher's variables say.
        kwargs: StreamingDataset's own; `batch_size` is per rank.

    Raises:
        RecordError: when the shards have no such columns of images and whole numbers.
    """

    def __init__(
        self,
        *,
        global_batch_size: int,
        repeats: int = 1,
        columns: tuple[str, str] = IMAGE_AND_LABEL,
        place: World | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if place is not None:  # Streaming's own name for who this is in the order, beside who shares its memory
            self._parallel_rank_world = StreamingWorld(place.nodes, place.local_size, 1, place.rank)
        # A file that is open takes up the disk's space even when Streaming has deleted it to make room.
        self.records = Records(self.shards, columns=columns, keep_open=0 if self.cache_limit else FILES_KEPT_OPEN)
        self.spanner = ShardOfSample([int(shard.samples) for shard in self.shards])
        self._found = np.zeros(len(self.shards), dtype=bool)
        self.steps_per_epoch = self.num_samples // (global_batch_size * repeats)
        self.global_batch_size = global_batch_size
        self._loaded: dict[str, Any] | None = None
        self._epoch = 0
        self._planned = 0
        self._seen = 0
        self._asked = 0.0
        self._steps = range(0)
        self._failure = SharedFailure()
        for stream in self.streams:
            stream.is_stopping = self._is_stopping

    def __len__(self) -> int:
        return self.steps_per_epoch * int(self.batch_size)

    def load_state_dict(self, obj: dict[str, Any]) -> None:
        super().load_state_dict(obj)
        self._loaded = obj

    def begin_at(self, epoch: int, batch_in_epoch: int, order: dict[str, Any] | None = None) -> None:
        """Have the next iteration begin at this batch, counted from 0, be it behind or ahead. Called by every rank.

        Args:
            order: of the samples, as `order` returned it; None: the present one.

        After `load_state_dict`, too: a state that Composer 0.32.1 saves at an epoch's end does not name this place by
        itself, as it asks for the state after 0 samples (`State._dataset_state_dict`), and Streaming 0.13.0 answers
        with the epoch that it began last (`StreamingDataset.state_dict`: next_epoch - 1), the one that has just ended.
        """
        place = {"epoch": epoch, "sample_in_epoch": batch_in_epoch * self.global_batch_size}
        # Written once and not read back first: the memory is the node's, and other ranks write or read it just now.
        self._loaded = order or self._loaded or self.order()
        super().load_state_dict(self._loaded | place)
        self.next_epoch = epoch  # Streaming passes over a state of an epoch before its next one

    def order(self) -> dict[str, Any]:
        """Return what fixes the order of the samples, as Streaming's own state names it."""
        nodes = (self._loaded or {}).get("initial_physical_nodes")
        return {
            "num_canonical_nodes": self.num_canonical_nodes,
            "shuffle_seed": self.shuffle_seed,
            "initial_physical_nodes": nodes or self._parallel_rank_world.num_nodes,
        }

    def __getitem__(self, at: int) -> EncodedSample:
        started = time.perf_counter()
        image, label = self.get_item(at)
        step = self._steps[self._seen // int(self.batch_size)] if self._steps else 0
        read_s, wait_s = time.perf_counter() - started, started - self._asked
        return EncodedSample(image, label, int(at), self._epoch, step, read_s, wait_s)

    def get_item(self, position: int, retry: int = 7) -> tuple[bytes, int]:
        """Return a sample's image and label; its shard is fetched where it is not here (any more)."""
        return self._read(position, self.records.read, retry)

    def sample_ids(self, positions: Sequence[int]) -> list[int] | None:
        """Return the ids of the samples at these positions; None where the shards have no column `i`."""
        ids = [self._read(position, self.records.sample_id) for position in positions]
        return None if None in ids else [int(sample_id) for sample_id in ids if sample_id is not None]

    def name_of(self, position: int) -> str:
        """Return a sample's id and where it is, for messages; called where it has just been read."""
        shard_id, index = self.spanner[position]
        where = f"record {index} of {self.records.name(shard_id)}"
        try:
            sample_id = self.records.sample_id(shard_id, index)
        except (OSError, RecordError):  # deleted to make room, just now
            sample_id = None
        return f"the sample at position {position} ({where})" if sample_id is None else f"sample {sample_id} ({where})"

    def _read(self, position: int, read: Callable[[int, int], T], retry: int = 7) -> T:
        shard_id, index = self.spanner[position]
        for _ in range(1 + retry):
            try:
                found = read(shard_id, index)
                if self.cache_limit:
                    self._shard_access_times[shard_id] = time.time_ns()  # by which Streaming chooses what to delete
                return found
            except FileNotFoundError:
                self.prepare_shard(shard_id)
        raise RecordError(
            f"{self.shards[shard_id].raw_data.basename} was deleted {1 + retry} times before record {index} could "
            "be read; raise cache_limit_gb"
        )

    def _get_work(self, epoch: int, sample_in_epoch: int) -> npt.NDArray[np.int64]:
        """Note the epoch, and drop what lies past the last whole global batch.

        Upstream pads the epoch until it divides over the ranks, so that some world sizes would take one step more
        than others. Called in each worker (or in the rank itself) whenever an epoch starts or is resumed.
        """
        work = super()._get_work(epoch, sample_in_epoch)
        world = self._parallel_worker_world
        steps_left = self.steps_per_epoch - sample_in_epoch // self.global_batch_size
        mine = max(0, math.ceil((steps_left - world.worker_of_rank) / world.workers_per_rank))
        work = work[: mine * int(self.batch_size)]
        if len(work) != mine * int(self.batch_size) or (work < 0).any():
            raise ShortEpochError(
                f"rank {world.rank}, worker {world.worker_of_rank}: Streaming planned {int((work >= 0).sum())} samples "
                f"from sample {sample_in_epoch} of epoch {epoch}; {mine * int(self.batch_size)} are needed"
            )
        self._epoch, self._planned, self._asked = epoch, len(work), time.perf_counter()
        # DataLoader asks its workers by turns, beginning with the first one wherever an epoch is resumed.
        first = epoch * self.steps_per_epoch + sample_in_epoch // self.global_batch_size + world.worker_of_rank
        self._steps = range(first, first + mine * world.workers_per_rank, world.workers_per_rank)
        return work

    def __iter__(self) -> Iterator[EncodedSample]:
        """Yield this worker's samples, and refuse to end without the last of them.

        Upstream logs an exception of its download thread and then ends the epoch as if all were well.
        """
        if not hasattr(self, "_event"):  # what belongs to the worker's process and cannot be sent to it
            self._event = _StopEvent(self._failure)
            self._shared_barrier.lock = FileLock(self._shared_barrier.filelock_path, poll_interval=LOCK_POLL_S)
            self._cache_filelock = FileLock(self._cache_filelock_path, poll_interval=LOCK_POLL_S)
        self._seen = self._planned = 0
        for sample in super().__iter__():
            self._seen += 1
            yield sample
            self._asked = time.perf_counter()
        if self._seen != self._planned:
            world = self._parallel_worker_world
            raise ShortEpochError(
                f"rank {world.rank}, worker {world.worker_of_rank}: epoch {self._epoch} ended after {self._seen} of "
                f"{self._planned} samples: {self._failure or 'no reason was given'}"
            )

    def on_exception(self, future: "Future[None]") -> None:
        """Take note when a download thread failed. Upstream waits for such a thread's end without end."""
        error = future.exception()
        if error is None:
            return
        self._iterator.on_exit()
        if not isinstance(error, StoppedError):
            self._failure.note(error)
            self._event.set()

    def prepare_shard(self, shard_id: int, blocking: bool = True) -> None:
        """Have a shard here and whole; on failure give its slot back, or others would wait for it without end.

        It takes a lock of the whole node and looks for the file. Upstream does so for every sample; here the threads
        below ask at a worker's first sample of a shard alone, until the shard is deleted.
        """
        try:
            super().prepare_shard(shard_id, blocking)
            self._found[shard_id] = True
            if self.cache_limit and self.cache_usage > self.cache_limit:
                with self._cache_filelock:  # upstream makes room before it downloads, and so do others at that moment
                    while self.cache_usage > self.cache_limit:
                        self._evict_coldest_shard()
        except BaseException as error:
            self._shard_states[shard_id] = _ShardState.REMOTE
            if self._cache_filelock.is_locked:
                self._cache_filelock.release()
            if not isinstance(error, StoppedError):
                self._failure.note(error)
            raise

    def _prepare_thread(self, it: Any) -> None:
        """Ask for the shards of the samples to come, ahead of `_ready_thread`."""

        def missing(shards: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
            return ~self._found[shards] | (self._shard_states.numpy()[shards] != _ShardState.LOCAL)

        def ask(shard: int) -> bool:
            self.prepare_shard(shard, False)
            return True

        self._run_ahead(it, "prepare_index", missing, ask)

    def _ready_thread(self, it: Any) -> None:
        """Wait for them, ahead of the samples' reader; ask again for one that was deleted to make room."""

        def missing(shards: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
            found: npt.NDArray[np.bool_] = self._shard_states.numpy()[shards] != _ShardState.LOCAL
            return found

        def wait_for(shard: int) -> bool:
            if self._shard_states[shard] == _ShardState.REMOTE:
                self.prepare_shard(shard, False)
            if self._shard_states[shard] == _ShardState.LOCAL:
                return True
            time.sleep(TICK)  # until the shard is there, or a failure ends the iterator
            return False

        self._run_ahead(it, "ready_index", missing, wait_for)

    def _run_ahead(
        self,
        it: Any,
        index: str,
        missing: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.bool_]],
        settle: Callable[[int], bool],
    ) -> None:
        """Move one of an iterator's indices over the samples, up to `predownload` ahead of the reader, a few at once.

        Upstream's two threads look at each sample by itself, which takes as long as reading all of them.

        Args:
            missing: which of these shards have to be settled first.
            settle: do so, and return whether the index can move on.
        """
        shards = self.spanner.shards_of(it.sample_ids)
        few = max(1, min(self.predownload or 0, SAMPLES_AT_A_LOOK) // 4)  # or it would look at each sample by itself
        while not it.should_exit() and not self._event.is_set():
            at = getattr(it, index)
            if it.total in (at, it.ready_index):
                break
            ahead = it.total if self.predownload is None else it.yield_index + self.predownload + 1
            end = min(it.total, ahead, at + SAMPLES_AT_A_LOOK)
            if end < min(it.total, at + few):
                time.sleep(TICK)  # until the reader has come nearer; `should_exit` ends it
                continue
            stops = np.flatnonzero(missing(shards[at:end]))
            at = at + int(stops[0]) if len(stops) else end
            setattr(it, index, at)
            if len(stops) and settle(int(shards[at])):
                setattr(it, index, at + 1)
        it.on_exit()

    def status(self) -> str:
        """Return which shards this node's workers are fetching or checking just now, in words."""
        states = self._shard_states.numpy()
        names = [self.shards[at].raw_data.basename for at in np.flatnonzero(states == _ShardState.PREPARING)]
        return f"its node is fetching {', '.join(names)}" if names else "no shard is being fetched"

    def _is_stopping(self) -> bool:
        started = hasattr(self, "_event") and hasattr(self, "_iterator")
        return started and (self._event.is_set() or self._iterator.should_exit())


class StreamingEvalImages(StreamingImages):
    """The evaluation split: in order, each sample once, the same number of batches on every rank.

    Rank r of W reads samples r, r + W, r + 2W, ...; where the count does not divide, the last sample of the ranks that
    run out is a repeat with IGNORED_LABEL, which loss and metrics leave out. (Upstream evaluates repeats: 50,016
    samples of ImageNet's 50,000 on 32 ranks.)
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._real = 0

    def __len__(self) -> int:
        return math.ceil(self.num_samples / self._parallel_rank_world.num_ranks)

    def _get_work(self, epoch: int, sample_in_epoch: int) -> npt.NDArray[np.int64]:
        world = self._parallel_worker_world
        places = np.arange(len(self)) * world.num_ranks + world.rank
        # Batch b of the rank comes from its worker b % workers: the order in which DataLoader asks them.
        worker_of_place = np.arange(len(self)) // int(self.batch_size) % world.workers_per_rank
        mine = places[worker_of_place == world.worker_of_rank]
        self._epoch, self._planned, self._asked = epoch, len(mine), time.perf_counter()
        self._real = int((mine < self.num_samples).sum())
        return np.minimum(mine, self.num_samples - 1)

    def __iter__(self) -> Iterator[EncodedSample]:
        for place, sample in enumerate(super().__iter__()):
            yield sample if place < self._real else sample._replace(label=IGNORED_LABEL)
