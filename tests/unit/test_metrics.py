"""Each step's figures are in metrics.csv once, whatever is killed, and go to each other place once."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from imagestream.storage.local import LocalPlace
from imagestream.storage.places import open_place
from tests.small_disk import needs_small_disk, small_disk
from train.record.metrics import Metrics
from train.record.metrics_csv import FIGURES, METRICS_NAME, MetricsFile
from train.record.tensorboard_curve import TensorBoardCurve, last_step
from train.step.statistics import StepStatistics

HEADER = ",".join(("step", *FIGURES)) + "\n"


def table(folder: Path, batch: int, *, has_evaluation: bool = True) -> MetricsFile:
    found = MetricsFile(LocalPlace(folder))
    found.begin(batch, has_evaluation=has_evaluation)
    return found


def filled(folder: Path, steps: int) -> str:
    """The file of so many steps, with an evaluation after each second one."""
    rows = table(folder, 0)
    for step in range(1, steps + 1):
        row = {"epoch": step / 2, "train/loss": 1 / step, "lr": 0.1, "image_px": 32}
        rows.put(step, row)
        if step % 2 == 0:
            rows.put(step, row | {"val/loss": 0.5, "val/top1": step / 10, "val/top5": 1.0})
    rows.close()
    return (folder / METRICS_NAME).read_text()


def test_a_row_is_there_at_once_and_an_evaluation_joins_it(tmp_path: Path) -> None:
    lines = filled(tmp_path, 3).splitlines()
    assert lines == [
        HEADER.strip(),
        "1,0.5,1.0,0.1,32,,,,,,",
        "2,1.0,0.5,0.1,32,,,,0.5,0.2,1.0",
        "3,1.5,0.3333333333333333,0.1,32,,,,,,",
    ]


@pytest.mark.parametrize("batch", range(6))
def test_a_run_that_goes_on_keeps_the_rows_up_to_its_checkpoint(tmp_path: Path, batch: int) -> None:
    whole = filled(tmp_path, 5)
    again = table(tmp_path, batch)
    assert (tmp_path / METRICS_NAME).read_text() == "".join(whole.splitlines(keepends=True)[: batch + 1])
    assert [step for step, _ in again.rows()] == list(range(1, batch + 1))


def test_an_evaluation_that_the_checkpoint_does_not_have_is_made_again(tmp_path: Path) -> None:
    filled(tmp_path, 5)
    again = table(tmp_path, 4, has_evaluation=False)
    assert [step for step, row in again.rows() if "val/top1" in row] == [2]
    again.put(4, dict(list(again.rows())[-1][1]) | {"val/top1": 0.4, "val/loss": 0.5, "val/top5": 1.0})
    assert (tmp_path / METRICS_NAME).read_text() == "".join(filled(tmp_path, 4))


@pytest.mark.parametrize("cut", range(1, 40))
def test_a_file_cut_short_anywhere_is_read_up_to_there(tmp_path: Path, cut: int) -> None:
    """The step itself is known by then: a checkpoint comes after its row."""
    whole = filled(tmp_path, 4)
    (tmp_path / METRICS_NAME).write_text(whole[:-cut])
    rows = list(table(tmp_path, 9).rows())
    assert [step for step, _ in rows][:3] == [1, 2, 3]
    expected = (4, {"epoch": 2.0, "train/loss": 0.25, "lr": 0.1, "image_px": 32, "val/loss": 0.5, "val/top1": 0.4})
    for name, value in rows[3][1].items() if len(rows) > 3 else ():
        assert expected[1].get(name, 1.0) == value  # a figure that is cut is left out


def test_what_another_process_still_writes_is_not_in_the_file(tmp_path: Path) -> None:
    """A run that has lost its save folder to another one continues to its next checkpoint."""
    orphan = table(tmp_path, 0)
    orphan.put(1, {"lr": 1.0})
    ours = table(tmp_path, 1)
    orphan.put(2, {"lr": 9.0})
    ours.put(2, {"lr": 2.0})
    assert [row["lr"] for _, row in ours.rows()] == [1.0, 2.0]


def test_numbers_that_are_none_are_kept_as_such(tmp_path: Path) -> None:
    rows = table(tmp_path, 0)
    rows.put(1, {"train/loss": math.nan, "lr": math.inf})
    ((_, row),) = table(tmp_path, 1).rows()
    assert math.isnan(row["train/loss"]) and row["lr"] == math.inf


@pytest.mark.parametrize("data", [b"", b"\xff\xfe\x00", b"a,b\n1,2\n", b"step\n1\n0\n1\n", HEADER.encode() * 2])
def test_another_file_of_that_name_is_no_reason_to_end(tmp_path: Path, data: bytes) -> None:
    (tmp_path / METRICS_NAME).write_bytes(data)
    table(tmp_path, 5).put(6, {"lr": 1.0})
    assert (tmp_path / METRICS_NAME).read_text().splitlines()[-1] == "6,,,1.0,,,,,,,"


@needs_small_disk
def test_a_full_disk_costs_rows_and_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with small_disk(tmp_path / "disk", size_bytes=1 << 20) as disk:
        rows = table(disk.path, 0)
        row = dict.fromkeys(FIGURES, 1.0)
        for step in range(1, 30):
            rows.put(step, row)
        disk.fill()
        for step in range(30, 300):
            rows.put(step, row)
        disk.make_room()
        rows.put(300, row)
        rows.close()
        found = (disk.path / METRICS_NAME).read_text().splitlines()
    assert {line.count(",") for line in found} == {len(FIGURES)}
    steps = [int(line.partition(",")[0]) for line in found[1:]]
    assert steps == sorted(set(steps)) and steps[:29] == list(range(1, 30)) and steps[-1] == 300 and len(steps) < 299
    assert caplog.text.count(f"{METRICS_NAME} cannot be written: No space left on device; the run continues") == 1


@pytest.mark.s3
def test_in_s3_the_rows_are_stored_before_each_checkpoint(s3_folder: str) -> None:
    place = open_place(s3_folder)
    first = MetricsFile(place)
    first.begin(0, has_evaluation=False)
    first.put(1, {"lr": 1.0})
    first.put(2, {"lr": 2.0})
    first.save()
    first.put(3, {"lr": 3.0})  # lost with the machine, and made again
    again = MetricsFile(place)
    again.begin(2, has_evaluation=False)
    assert [(step, row["lr"]) for step, row in again.rows()] == [(1, 1.0), (2, 2.0)]
    again.put(3, {"lr": 3.0})
    again.close()
    assert place.read(METRICS_NAME).decode().count("\n") == 4


# Metrics: from Composer's events to the places ---------------------------------------------------------------------


class Notes:
    """A place that keeps what it gets, of which it has some steps."""

    def __init__(self, there: int = 0) -> None:
        self.there, self.rows, self.saved = there, list[tuple[int, dict[str, float]]](), list[int]()
        self.closed: bool | None = None

    def begin(self, batch: int) -> int:
        return self.there

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.rows.append((step, dict(values)))

    def save(self, batch: int) -> None:
        self.saved.append(batch)

    def flush(self) -> None:
        pass

    def close(self, *, is_finished: bool) -> None:
        self.closed = is_finished


def record_of(*evaluated: int) -> Any:
    evaluations = [{"batch": batch, "loss": 0.5, "top1": 0.25, "top5": 1.0} for batch in evaluated]
    return SimpleNamespace(evaluations=evaluations, is_evaluated=lambda batch: batch in evaluated)


def take_steps(metrics: Metrics, statistics: StepStatistics, batches: range, *, lag: int) -> None:
    state: Any = SimpleNamespace(
        batch=[torch.zeros(2, 3, 32, 32)], dataloader=None, previous_timestamp=None,
        schedulers=[SimpleNamespace(get_last_lr=lambda: [0.5])],
    )  # fmt: skip
    statistics.lag_steps = lag
    for batch in batches:
        metrics.before_dataloader(state, None)
        metrics.after_dataloader(state, None)
        state.timestamp = SimpleNamespace(batch=batch, batch_in_epoch=batch, epoch=0, sample=8 * batch)
        statistics.send(state, torch.tensor(float(batch)), torch.tensor(0.0), is_stop_asked=False)
        state.previous_timestamp = state.timestamp
        state.timestamp = SimpleNamespace(batch=batch + 1, sample=8 * batch + 8)
        metrics.batch_end(state, None)
    statistics.settle()


@pytest.mark.parametrize("lag", [0, 1])
def test_each_step_has_its_own_figures_and_the_last_waits_for_its_evaluation(tmp_path: Path, lag: int) -> None:
    statistics, notes, record = StepStatistics(), Notes(), record_of()
    metrics = Metrics(record, statistics, steps_per_epoch=2, table=MetricsFile(LocalPlace(tmp_path)), curves=[notes])
    seen = list[tuple[int, float]]()
    metrics.tell(lambda step, figures: seen.append((step, figures["train/loss"])))
    with metrics.kept(0):
        take_steps(metrics, statistics, range(4), lag=lag)
        assert seen == [(1, 0.0), (2, 1.0), (3, 2.0), (4, 3.0)]
        assert [step for step, _ in notes.rows] == [1, 2, 3]
        metrics.save(4)
        record.evaluations.append({"batch": 4, "loss": 0.5, "top1": 0.25, "top5": 1.0})
        metrics.eval_end(None, None)
        metrics.finish()
    assert notes.saved == [4] and notes.closed is True
    assert notes.rows == list(table(tmp_path, 4).rows())
    last = dict(notes.rows[-1][1])
    assert list(last) == [name for name in FIGURES if name in last]  # in their order
    speeds = {name: last.pop(name) for name in ("images_per_sec", "data_wait_fraction")}
    assert speeds["images_per_sec"] > 0 and speeds["data_wait_fraction"] == 0
    assert last == {"epoch": 2.0, "train/loss": 3.0, "lr": 0.5, "image_px": 32, "val/loss": 0.5, "val/top1": 0.25,
                    "val/top5": 1.0}  # fmt: skip


@pytest.mark.parametrize("there", [0, 1, 3, 5])
def test_a_place_gets_what_it_lacks_from_the_table_and_nothing_twice(tmp_path: Path, there: int) -> None:
    filled(tmp_path, 5)
    statistics, notes = StepStatistics(), Notes(there)
    metrics = Metrics(
        record_of(2), statistics, steps_per_epoch=2, table=MetricsFile(LocalPlace(tmp_path)), curves=[notes]
    )
    with metrics.kept(3):
        take_steps(metrics, statistics, range(3, 7), lag=1)
        metrics.finish()
    assert [step for step, _ in notes.rows] == list(range(there + 1, 8))


def test_a_run_that_is_stopped_keeps_its_last_row_back_for_an_evaluation_to_come(tmp_path: Path) -> None:
    statistics, notes = StepStatistics(), Notes()
    metrics = Metrics(
        record_of(), statistics, steps_per_epoch=2, table=MetricsFile(LocalPlace(tmp_path)), curves=[notes]
    )
    with pytest.raises(KeyboardInterrupt), metrics.kept(0):
        take_steps(metrics, statistics, range(2), lag=1)
        raise KeyboardInterrupt
    assert [step for step, _ in notes.rows] == [1] and notes.closed is False
    assert [step for step, _ in table(tmp_path, 2).rows()] == [1, 2]


def test_an_evaluation_after_a_resume_joins_the_row_of_its_step(tmp_path: Path) -> None:
    """The checkpoint was saved before the evaluation, and no other place asks for the rows."""
    whole = filled(tmp_path, 4)
    metrics = Metrics(
        record_of(2), StepStatistics(), steps_per_epoch=2, table=MetricsFile(LocalPlace(tmp_path)), curves=[]
    )
    with metrics.kept(4):
        metrics._record.evaluations.append({"batch": 4, "loss": 0.5, "top1": 0.4, "top5": 1.0})
        metrics.eval_end(None, None)
    assert (tmp_path / METRICS_NAME).read_text() == whole


# TensorBoard -------------------------------------------------------------------------------------------------------


def log_steps(curve: TensorBoardCurve, steps: range) -> None:
    for step in steps:
        curve.log(step, {"train/loss": 1 / step, "lr": 0.1})
        if step % 2 == 0:
            curve.save(step)


@pytest.mark.parametrize(("batch", "there"), [(0, 0), (2, 2), (4, 4), (6, 5)])
def test_tensorboards_pieces_from_the_checkpoint_on_are_deleted(tmp_path: Path, batch: int, there: int) -> None:
    first = TensorBoardCurve(tmp_path)
    assert first.begin(0) == 0
    log_steps(first, range(1, 6))
    first.close(is_finished=False)
    (tmp_path / "events.out.tfevents.1.other").write_bytes(b"")
    again = TensorBoardCurve(tmp_path)
    assert again.begin(batch) == there
    log_steps(again, range(there + 1, 8))
    again.close(is_finished=True)
    pieces = sorted(tmp_path.glob("*.after-ba*"), key=lambda path: (int(path.name.partition("after-ba")[2]), path))
    lasts = [last_step(path) for path in pieces]
    assert lasts == sorted(set(lasts)) and lasts[-1] == 7
    assert (tmp_path / "events.out.tfevents.1.other").exists()


def test_a_piece_of_tensorboards_that_is_cut_short_is_completed(tmp_path: Path) -> None:
    first = TensorBoardCurve(tmp_path)
    first.begin(0)
    log_steps(first, range(1, 3))
    (path,) = tmp_path.iterdir()
    os.truncate(path, path.stat().st_size - 20)  # in the last step's last figure
    again = TensorBoardCurve(tmp_path)
    assert again.begin(2) == 1
    log_steps(again, range(2, 4))
    again.close(is_finished=True)
    points = [
        (value.tag, event.step)
        for piece in sorted(tmp_path.iterdir())
        for event in events_of(piece)
        for value in event.summary.value
    ]
    assert sorted(points) == sorted((name, step) for name in ("lr", "train/loss") for step in (1, 2, 3))


def events_of(path: Path) -> Any:
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    return LegacyEventFileLoader(str(path)).Load()
