"""The curve has each batch's loss, whether it is known at the batch's end or a batch later."""

from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from composer.core import Time

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
        state.timestamp = SimpleNamespace(batch=batch + 1, epoch=0, sample=8 * batch + 8, total_wct=timedelta(0))
        record.batch_end(state, None)
    statistics.settle()
    size = batches_per_point
    assert [(point["batch"], point["loss"]) for point in record.curve] == [
        (end, sum(range(end - size, end)) / size) for end in range(size, 13, size)
    ]
    assert [point["lr"] for point in record.curve] == pytest.approx([0.1 * (end - 1) for end in range(size, 13, size)])
