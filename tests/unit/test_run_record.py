"""The curve has each batch's loss, whether it is known at the batch's end or a batch later."""

import tempfile
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from composer.core import Time

from imagestream.storage.local import LocalPlace
from tests.records import a_record
from train.record.price import PRICE_VARIABLE, price_of_an_hour
from train.record.run_record import CURVE_POINTS, RunRecord
from train.step.statistics import StepStatistics


@pytest.mark.parametrize("batches_per_point", [1, 3])
@pytest.mark.parametrize("lags", [[0] * 12, [1] * 12, [1, 1, 0, 1, 0, 0, 1, 1, 1, 0, 1, 1]], ids=["0", "1", "mixed"])
def test_a_point_has_the_mean_of_its_own_batches(lags: list[int], batches_per_point: int) -> None:
    statistics, none = StepStatistics(), SimpleNamespace()
    facts = {"config": {"data": {"mean": [0.0] * 3, "std": [1.0] * 3}}}
    record = RunRecord(facts, none, none, statistics)  # type: ignore[arg-type]  # nothing is written
    for batch, lag in enumerate(lags):
        state: Any = SimpleNamespace(
            timestamp=SimpleNamespace(batch=batch, batch_in_epoch=batch, epoch=0, sample=8 * batch),
            previous_timestamp=None,
            schedulers=[SimpleNamespace(get_last_lr=lambda batch=batch: [0.1 * batch])],
            max_duration=Time(CURVE_POINTS * batches_per_point, "ba"),
            dataloader_len=100,
            dataloader=None,
        )
        statistics.lag_steps = lag
        statistics.send(state, torch.tensor(float(batch)), torch.tensor(0.0), is_stop_asked=False)
        state.schedulers = [SimpleNamespace(get_last_lr=lambda batch=batch: [0.1 * (batch + 1)])]  # of the next step
        state.timestamp = SimpleNamespace(batch=batch + 1, epoch=0, sample=8 * batch + 8, total_wct=timedelta(0))
        record.batch_end(state, None)
    statistics.settle()
    size = batches_per_point
    assert [(point["batch"], point["loss"]) for point in record.curve] == [
        (end, sum(range(end - size, end)) / size) for end in range(size, 13, size)
    ]
    assert [point["lr"] for point in record.curve] == pytest.approx([0.1 * (end - 1) for end in range(size, 13, size)])


def test_what_the_page_has_goes_on_from_a_checkpoint_and_a_checkpoint_of_before_it_is_loaded_too() -> None:
    statistics, none = StepStatistics(), SimpleNamespace()
    facts = {
        "config": {"data": {"mean": [0.0] * 3, "std": [1.0] * 3}},
        "dataset": {"num_classes": 2, "classes": None, "exif": None},
    }
    record = RunRecord(facts, none, none, statistics)  # type: ignore[arg-type]  # nothing is written
    record.starts = [{"batch": 0, "unix_time_s": 1.0, "world_size": 2, "hosts": 1, "first_host": "node1"}]
    state: Any = SimpleNamespace(
        batch=(torch.zeros(4, 3, 32, 32),), timestamp=SimpleNamespace(batch=5, batch_in_epoch=0)
    )
    record.before_forward(state, None)
    saved = record.state_dict()
    assert saved["page"]["crops"]["batch"] == 5 and len(saved["page"]["crops"]["pictures"]) == 4
    resumed, older = (
        RunRecord(facts, none, none, statistics)  # type: ignore[arg-type]
        for _ in range(2)
    )
    resumed.load_state_dict(saved)
    assert resumed.state_dict() == saved
    older.load_state_dict({key: value for key, value in saved.items() if key != "page"})
    assert older.starts == [] and older.state_dict()["curve"] == saved["curve"]


def test_a_page_that_cannot_be_drawn_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other ranks would wait for the first one, or end with it."""
    facts = a_record()
    guard: Any = SimpleNamespace(ledger="ab", epoch_ledgers=[], changes=[])
    record = RunRecord(facts, LocalPlace(tmp_path), guard, StepStatistics())
    for drawing in ("train.record.page.run_page", "train.record.report.draw"):
        monkeypatch.setattr(drawing, broken)
    record.write(page=True, picture=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.json"]
    monkeypatch.undo()
    record.write(page=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "run.json"]


def test_a_full_tmp_ends_no_run_and_a_killed_one_leaves_nothing_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    guard: Any = SimpleNamespace(ledger="ab", epoch_ledgers=[], changes=[])
    (tmp_path / "save").mkdir()
    RunRecord(a_record(), LocalPlace(tmp_path / "save"), guard, StepStatistics()).write(page=True, picture=True)
    assert sorted(path.name for path in (tmp_path / "save").iterdir()) == ["report.html", "report.png", "run.json"]


def broken(*_: Any) -> None:
    raise KeyError("something that nobody has thought of")


@pytest.mark.parametrize(
    ("price", "said"), [("12.5", {"usd_per_hour": 12.5}), ("", {}), ("free", {}), ("-1", {}), ("nan", {}), ("inf", {})]
)
def test_a_price_is_what_somebody_has_said(monkeypatch: pytest.MonkeyPatch, price: str, said: dict[str, float]) -> None:
    monkeypatch.setenv(PRICE_VARIABLE, price)
    assert price_of_an_hour() == said
