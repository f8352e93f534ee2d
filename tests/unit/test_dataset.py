"""Where a sample is, and the threads that see to it that its shard is here."""

import functools
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from filelock import FileLock
from streaming import MDSWriter, StreamingDataset
from streaming.base.dataset import _Iterator, _ShardState
from streaming.base.format import reader_from_json
from streaming.base.spanner import Spanner

from imagestream.data.dataset import LOCK_POLL_S, ShardOfSample, SharedFailure, StreamingImages
from imagestream.mds.records import Records

COUNTS = [4, 4, 4]
IDS = np.array([4, 5, 0, 6, 1, 8, 9, 10])  # of shards 1, 1, 0, 1, 0, 2, 2, 2


def test_samples_are_where_streaming_has_them() -> None:
    counts = [3, 1, 700, 2, 2, 250]
    theirs, ours = Spanner(np.array(counts)), ShardOfSample(counts)
    everything: Any = np.arange(sum(counts))  # Streaming asks with numpy's integers
    assert [ours[at] for at in everything] == [theirs[int(at)] for at in everything]
    assert ours.shards_of(everything).tolist() == [ours[at][0] for at in everything]
    for outside in (-1, sum(counts)):
        with pytest.raises(IndexError, match=f"position {outside} of 958"):
            ours[outside]


def test_planning_an_epoch_is_no_wait_for_a_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with MDSWriter(out=str(tmp_path), columns={"x": "bytes", "y": "int"}) as writer:
        writer.write({"x": b"x", "y": 1})
    upstream, planned_at = StreamingDataset._get_work, []

    def slow_get_work(*args: Any) -> Any:
        time.sleep(0.05)
        work = upstream(*args)
        planned_at.append(time.perf_counter())
        return work

    monkeypatch.setattr(StreamingDataset, "_get_work", slow_get_work)
    dataset = StreamingImages(global_batch_size=1, local=str(tmp_path), batch_size=1, shuffle=False)
    (sample,) = dataset
    assert 0.0 < sample.wait_s < time.perf_counter() - planned_at[0]


@pytest.mark.parametrize(
    ("columns", "name"),
    [
        ({"i": "int", "x": "bytes", "y": "int"}, "sample 45 (record {record} of {path})"),
        ({"x": "bytes", "y": "int"}, "the sample at position 5 (record {record} of {path})"),
    ],
)
def test_a_sample_is_named_by_its_id_and_its_record_not_by_its_position(
    tmp_path: Path, columns: dict[str, str], name: str
) -> None:
    with MDSWriter(out=str(tmp_path), columns=columns, size_limit=200) as writer:
        for number in range(10):
            row = {"i": 50 - number, "x": b"x" * 40, "y": number % 3}
            writer.write({column: row[column] for column in columns})
    index = json.loads((tmp_path / "index.json").read_text())
    dataset = StreamingImages.__new__(StreamingImages)
    dataset.shards = [reader_from_json(str(tmp_path), None, shard) for shard in index["shards"]]
    dataset.records = Records(dataset.shards)
    dataset.spanner, dataset.cache_limit = ShardOfSample([shard.samples for shard in dataset.shards]), None
    shard_id, record = dataset.spanner[5]
    assert shard_id > 0
    path = tmp_path / dataset.shards[shard_id].raw_data.basename
    assert dataset.name_of(5) == name.format(record=record, path=path)
    assert dataset.sample_ids([3, 0, 9]) == ([47, 50, 41] if "i" in columns else None)


def test_the_locks_that_begin_an_epoch_are_looked_at_each_millisecond(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """All workers of a node want them at once; upstream looks every 50 ms."""
    dataset = StreamingImages.__new__(StreamingImages)
    dataset._failure = SharedFailure()
    dataset._shared_barrier = SimpleNamespace(filelock_path=str(tmp_path / "barrier"))
    dataset._cache_filelock_path = str(tmp_path / "cache")
    monkeypatch.setattr(StreamingDataset, "__iter__", lambda self: iter(()))
    assert list(iter(dataset)) == []
    assert FileLock(tmp_path / "upstreams").poll_interval == 0.05
    for lock, name in ((dataset._shared_barrier.lock, "barrier"), (dataset._cache_filelock, "cache")):
        assert Path(lock.lock_file) == tmp_path / name and lock.poll_interval == LOCK_POLL_S


def test_downloads_at_the_same_time_do_not_leave_the_cache_above_its_limit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Upstream makes room for one shard and then downloads it, while others do the same."""
    dataset, deleted = StreamingImages.__new__(StreamingImages), []
    dataset._found, dataset.cache_limit = np.zeros(1, dtype=bool), 100
    dataset._cache_filelock = FileLock(tmp_path / "lock")
    usage = SimpleNamespace(bytes=70)
    dataset._cache_usage = SimpleNamespace(get=lambda: usage.bytes, set=lambda to: setattr(usage, "bytes", to))

    def others_too(self: object, shard_id: int, blocking: bool) -> None:
        usage.bytes += 30 + 60

    def evict(self: object) -> None:
        assert dataset._cache_filelock.is_locked
        deleted.append(usage.bytes)
        usage.bytes -= 30

    monkeypatch.setattr(StreamingDataset, "prepare_shard", others_too)
    monkeypatch.setattr(StreamingDataset, "_evict_coldest_shard", evict)
    dataset.prepare_shard(0)
    assert deleted == [160, 130] and usage.bytes == 100


class SharedStates:
    """As Streaming's SharedArray: read by the element, or as a whole."""

    def __init__(self, states: npt.NDArray[np.int64]) -> None:
        self._states = states

    def __getitem__(self, shard: Any) -> Any:
        return self._states[shard]

    def numpy(self) -> npt.NDArray[np.int64]:
        return self._states


class Thread:
    """One of a dataset's threads at work on IDS, once or more; shards are here as soon as they are asked for."""

    def __init__(self, name: str, predownload: int | None, times: int = 1) -> None:
        self.asked: list[int] = []
        self.states = np.full(len(COUNTS), _ShardState.REMOTE)
        self.it = _Iterator(np.tile(IDS, times))
        self.dataset: Any = SimpleNamespace(
            spanner=ShardOfSample(COUNTS), predownload=predownload, _event=threading.Event(), prepare_shard=self.fetch
        )
        self.dataset._found = np.zeros(len(COUNTS), dtype=bool)
        self.dataset._shard_states = SharedStates(self.states)
        run_ahead: Callable[..., None] = StreamingImages._run_ahead
        self.dataset._run_ahead = functools.partial(run_ahead, self.dataset)
        self.thread = threading.Thread(target=getattr(StreamingImages, name), args=(self.dataset, self.it), daemon=True)

    def fetch(self, shard: int, blocking: bool) -> None:
        assert not blocking
        self.asked.append(shard)
        self.states[shard], self.dataset._found[shard] = _ShardState.LOCAL, True

    def moves(self, index: str, to: int) -> bool:
        """Whether an index comes to stand at `to`."""
        if not self.thread.is_alive():
            self.thread.start()
        deadline = time.monotonic() + 10
        while getattr(self.it, index) != to and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.03)  # a few looks more, so that one step too many would be seen
        return bool(getattr(self.it, index) == to)

    def ends(self) -> bool:
        self.thread.join(timeout=10)
        return not self.thread.is_alive()


@pytest.fixture
def threads() -> Iterator[list[Thread]]:
    started: list[Thread] = []
    yield started
    for each in started:
        each.dataset._event.set()
        assert each.ends()


@pytest.mark.parametrize("state", [_ShardState.REMOTE, _ShardState.LOCAL])
def test_each_shard_is_asked_for_once_in_the_order_of_need(threads: list[Thread], state: int) -> None:
    """Of one that is said to be here, its first asking looks whether that is so."""
    threads.append(prepare := Thread("_prepare_thread", predownload=None))
    prepare.states[:] = state
    assert prepare.moves("prepare_index", len(IDS)) and prepare.ends()
    assert prepare.asked == [1, 0, 2]


def test_shards_are_asked_for_no_further_ahead_than_predownload(threads: list[Thread]) -> None:
    threads.append(prepare := Thread("_prepare_thread", predownload=1))
    assert prepare.moves("prepare_index", 2) and prepare.asked == [1]
    prepare.it.yield_index = 1
    assert prepare.moves("prepare_index", 3) and prepare.asked == [1, 0]
    prepare.it.yield_index = 7
    assert prepare.moves("prepare_index", len(IDS)) and prepare.ends()


def test_the_threads_look_at_a_quarter_of_predownload_at_once(threads: list[Thread]) -> None:
    """Or they would wake up in earnest for each sample."""
    threads.append(ready := Thread("_ready_thread", predownload=8, times=3))
    ready.states[:] = _ShardState.LOCAL
    assert ready.moves("ready_index", 9)
    ready.it.yield_index = 1
    assert ready.moves("ready_index", 9)
    ready.it.yield_index = 2
    assert ready.moves("ready_index", 11)
    ready.it.yield_index = 3 * len(IDS) - 10  # one less than two are left beyond the reach
    assert ready.moves("ready_index", 3 * len(IDS) - 1)
    ready.it.yield_index += 1
    assert ready.moves("ready_index", 3 * len(IDS)) and ready.ends()


def test_samples_are_ready_only_when_their_shard_is_here(threads: list[Thread]) -> None:
    threads.append(ready := Thread("_ready_thread", predownload=None))
    ready.states[:] = [_ShardState.PREPARING, _ShardState.LOCAL, _ShardState.PREPARING]
    assert ready.moves("ready_index", 2)
    ready.states[0] = _ShardState.LOCAL
    assert ready.moves("ready_index", 5) and ready.asked == []
    ready.states[2] = _ShardState.REMOTE  # deleted to make room: it is asked for again
    assert ready.moves("ready_index", len(IDS)) and ready.ends()
    assert ready.asked == [2]


def test_the_threads_end_when_another_process_has_failed(threads: list[Thread]) -> None:
    threads.append(ready := Thread("_ready_thread", predownload=None))
    ready.states[:] = _ShardState.PREPARING
    assert ready.moves("ready_index", 0)
    ready.dataset._event.set()
    assert ready.ends() and ready.it.ready_index == 0
