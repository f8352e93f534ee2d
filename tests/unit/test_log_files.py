"""A log file, a TensorBoard file or a heartbeat whose disk is full is missed, and is no reason to end."""

import io
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from composer.core import Time, Timestamp, TimeUnit

from tests.small_disk import SmallDisk, needs_small_disk, small_disk
from train.record.heartbeat import BEAT_BYTES, HEARTBEAT_VARIABLE, Heartbeat
from train.record.log_files import LogFile
from train.record.tensorboard_curve import TensorBoardCurve

pytestmark = needs_small_disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk", size_bytes=1 << 20) as disk:
        yield disk


@pytest.fixture
def state() -> Any:
    return SimpleNamespace(run_name="run", timestamp=Timestamp(batch=Time(5, TimeUnit.BATCH)))


@pytest.fixture
def logger() -> Any:
    return SimpleNamespace(upload_file=lambda *_, **__: None)


def test_a_full_log_disk_costs_lines_and_is_said_once(
    disk: SmallDisk, state: Any, logger: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    ours = LogFile(str(disk.path / "logs/rank0.txt"))
    ours.init(state, logger)
    print("before")
    ours.epoch_start(state, logger)
    disk.fill()
    for _ in range(3):
        print("x" * 20_000, file=sys.stderr)
        ours.log_metrics({"loss": 1.0}, step=5)
        ours.epoch_start(state, logger)
    disk.make_room()
    print("after")
    ours.close(state, logger)
    print("closed")
    text = (disk.path / "logs/rank0.txt").read_text()
    assert text.startswith("[stdout]: before\n") and "[stdout]: after\n" in text and "closed" not in text
    assert caplog.text.count("cannot be written: No space left on device; the run continues") == 1


def test_a_log_file_that_cannot_even_be_opened_is_done_without(
    disk: SmallDisk, state: Any, logger: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    (disk.path / "logs").write_text("not a folder")
    ours = LogFile(str(disk.path / "logs/rank0.txt"))
    ours.init(state, logger)
    print("said")
    ours.batch_end(state, logger)
    ours.close(state, logger)
    assert caplog.text.count("the run continues") == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # of tensorboard's own thread
@pytest.mark.slow
def test_a_full_tensorboard_disk_costs_points_and_is_said_once(
    disk: SmallDisk, caplog: pytest.LogCaptureFixture
) -> None:
    ours = TensorBoardCurve(disk.path / "run")
    ours.begin(0)
    ours.log(1, {"loss": 1.0})
    ours.flush()
    disk.fill()
    for step in range(2, 40):
        ours.log(step, {f"loss{'x' * 5000}": 1.0})
        ours.flush()
    disk.make_room()
    ours.log(40, {"after": 1.0})
    ours.close(is_finished=True)
    assert any(b"after" in path.read_bytes() for path in (disk.path / "run").iterdir())
    assert caplog.text.count("No space left on device; the run continues") == 1


def test_a_heartbeat_goes_on_over_the_last_one_when_its_disk_is_full(
    disk: SmallDisk, state: Any, logger: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = disk.path / "heartbeat.json"
    monkeypatch.setenv(HEARTBEAT_VARIABLE, str(path))
    beats = Heartbeat()
    state.timestamp = Timestamp(batch=Time(123000, TimeUnit.BATCH))
    beats.fit_start(state, logger)
    disk.fill()
    beats._beaten_at = 0.0
    state.timestamp = Timestamp(batch=Time(123456, TimeUnit.BATCH), sample=Time(252837888, TimeUnit.SAMPLE))
    beats.batch_end(state, logger)
    beat = json.loads(path.read_text())
    assert (beat["batch"], beat["sample"], beat["start_batch"]) == (123456, 252837888, 123000)
    assert path.stat().st_size == BEAT_BYTES
    assert sorted(file.name for file in disk.path.iterdir()) == ["filler", "heartbeat.json"]
    path.unlink()
    disk.fill()
    for _ in range(2):
        beats._beaten_at = 0.0
        with caplog.at_level(logging.WARNING):
            beats.batch_end(state, logger)
    assert caplog.text.count("heartbeat.json cannot be written: No space left on device; the run continues") == 1
    assert sorted(file.name for file in disk.path.iterdir()) == ["filler"]
