"""Workers do what their tasks say, and end when they are told to."""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest
from PIL import Image

from convert.plan import ShardTask
from convert.sources import Sample
from convert.workers import Job, OnBad, WorkerError, build_shard, build_shards
from imagestream.decode.limits import MAX_FILE_BYTES
from imagestream.mds.shards import ShardFormat
from imagestream.storage.local import LocalPlace
from imagestream.storage.protocol import Stat
from tests.conftest import REPOSITORY


class SlowFiles(LocalPlace):
    """Files on a disk that has stopped answering."""

    def read(
        self, name: str, offset_bytes: int = 0, size_bytes: int | None = None, *, seen: Stat | None = None
    ) -> bytes:
        time.sleep(60)
        raise AssertionError("not reached")


FORM = ShardFormat(1000)


@contextmanager
def ctrl_c_after(seconds: float) -> Iterator[None]:
    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def task(*names: str, size_bytes: int = 1) -> ShardTask:
    samples = tuple((n, Sample(name, 0, size_bytes, file=name)) for n, name in enumerate(names))
    return ShardTask("train", 0, samples)


@pytest.mark.slow
def test_ctrl_c_does_not_wait_for_the_shards_under_way(tmp_path: Path) -> None:
    job = Job(SlowFiles(tmp_path), LocalPlace(tmp_path), "fail", FORM)
    results = build_shards([task("train/a/1")], job, workers=1)
    started = time.monotonic()
    with ctrl_c_after(3), pytest.raises(KeyboardInterrupt):
        next(results)
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("on_bad", ["fail", "skip"])
def test_a_file_that_cannot_be_read_is_never_taken_for_a_bad_image(tmp_path: Path, on_bad: OnBad) -> None:
    job = Job(LocalPlace(tmp_path), LocalPlace(tmp_path), on_bad, FORM)
    with pytest.raises(WorkerError, match=r"cannot read train/a/gone\.JPEG: No such file"):
        build_shard(task("train/a/gone.JPEG"), job)


@pytest.mark.parametrize("on_bad", ["fail", "skip"])
def test_a_file_that_changes_under_way_is_never_taken_for_a_bad_image(tmp_path: Path, on_bad: OnBad) -> None:
    (tmp_path / "grown").write_bytes(bytes(5))
    job = Job(LocalPlace(tmp_path), LocalPlace(tmp_path), on_bad, FORM)
    with pytest.raises(WorkerError, match="had 1 bytes when the conversion began, now 5"):
        build_shard(task("grown"), job)


def test_an_enormous_file_is_refused_without_being_read(tmp_path: Path) -> None:
    job = Job(SlowFiles(tmp_path), LocalPlace(tmp_path), "skip", FORM)
    result = build_shard(task("huge", size_bytes=MAX_FILE_BYTES + 1), job)
    assert [file.reason for file in result.refused] == [
        "a file of 268,435,457 bytes is more than the 268,435,456 allowed"
    ]


def test_samples_keep_their_order_when_they_are_read_ahead(tmp_path: Path) -> None:
    class Jittery(LocalPlace):
        concurrency = 4

        def read(
            self, name: str, offset_bytes: int = 0, size_bytes: int | None = None, *, seen: Stat | None = None
        ) -> bytes:
            time.sleep(random.uniform(0, 0.01))
            return super().read(name, offset_bytes, size_bytes, seen=seen)

    names = [f"{n}.JPEG" for n in range(30)]
    for n, name in enumerate(names):
        Image.new("L", (8 + n, 8), n).save(tmp_path / name, "JPEG")
    samples = tuple((n, Sample(x, 0, (tmp_path / x).stat().st_size, file=x)) for n, x in enumerate(names))
    result = build_shard(ShardTask("train", 0, samples), Job(Jittery(tmp_path), LocalPlace(tmp_path), "fail", FORM))
    assert [image.width_px for image in result.kept] == [8 + n for n in range(30)]


def test_a_shard_is_made_once_and_again_only_if_its_file_is_not_whole(tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "a.JPEG", "JPEG")
    job = Job(LocalPlace(tmp_path), LocalPlace(tmp_path / "out"), "fail", FORM)
    work = task("a.JPEG", size_bytes=(tmp_path / "a.JPEG").stat().st_size)
    first, again = build_shard(work, job), build_shard(work, job)
    assert (first.reused, again.reused) == (False, True)
    assert replace(again, reused=False) == first
    shard = tmp_path / "out/train/shard.00000.mds"
    whole = shard.read_bytes()
    for damage in (whole[:-1], whole[:-1] + b"x"):
        shard.write_bytes(damage)
        assert build_shard(work, job) == first
        assert shard.read_bytes() == whole
    (tmp_path / "out/.convert/train/00000.json").write_text("{")
    assert build_shard(work, job) == first


INTERRUPTED = """
import os, signal, threading, time
from multiprocessing import resource_tracker, util
from convert.pool import in_order

resource_tracker.ensure_running()
threading.Thread(target=time.sleep, args=(60,), daemon=True).start()  # takes what the main thread has blocked
spawn = util.spawnv_passfds

def interrupted(*args):
    pid = spawn(*args)
    os.kill(os.getpid(), signal.{name})
    time.sleep(0.3)
    return pid

util.spawnv_passfds = interrupted
signal.signal(signal.SIGTERM, signal.default_int_handler)
try:
    list(in_order(abs, range(3), workers=1))
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_between_a_workers_birth_and_its_first_word_leaves_no_traceback(name: str) -> None:
    script = INTERRUPTED.format(name=name)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr, done.returncode) == ("interrupted\n", "", 0)
