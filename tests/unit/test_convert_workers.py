"""Workers do what their tasks say, and end when they are told to."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest

from convert.outputs import LocalOutput
from convert.sources import ImageFolder, Sample
from convert.workers import ShardTask, WorkerError, build_shard, build_shards


class SlowFolder(ImageFolder):
    """A source on a disk that has stopped answering."""

    def read(self, key: str) -> bytes:
        time.sleep(60)
        raise AssertionError("not reached")


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


def test_ctrl_c_does_not_wait_for_the_shards_under_way(tmp_path: Path) -> None:
    task = ShardTask("train", 0, ((0, Sample("train/a/1", 0, 1)),))
    results = build_shards(
        [task],
        source=SlowFolder(tmp_path),
        output=LocalOutput(tmp_path),
        on_bad="fail",
        size_limit_bytes=1000,
        workers=1,
    )
    started = time.monotonic()
    with ctrl_c_after(3), pytest.raises(KeyboardInterrupt):
        next(results)
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("on_bad", ["fail", "skip"])
def test_a_file_that_cannot_be_read_is_never_taken_for_a_bad_image(tmp_path: Path, on_bad: str) -> None:
    task = ShardTask("train", 0, ((0, Sample("train/a/gone.JPEG", 0, 1)),))
    with pytest.raises(WorkerError, match=r"cannot read train/a/gone\.JPEG: No such file"):
        build_shard(
            task,
            source=ImageFolder(tmp_path),
            output=LocalOutput(tmp_path),
            on_bad=on_bad,  # type: ignore[arg-type]
            size_limit_bytes=1000,
        )
