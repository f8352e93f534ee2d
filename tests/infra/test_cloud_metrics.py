"""A run's metrics for CloudWatch: right figures, and nothing that fails touches the run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import boto3
import pytest

from infra.launch import cloud_metrics
from infra.launch.cloud_metrics import CloudMetrics, put_to, read_dcgm

DCGMI = """#!/bin/sh
[ "$*" = "dmon -e 1002,1004,155 -c 1" ] || exit 1
echo '#Entity   SMACT        TENSO        POWER'
echo 'ID                                  W'
echo 'GPU 0     0.900        0.300        400.5'
echo 'GPU 1     0.700        N/A          300.5'
"""


def sent_by(beats: Sequence[Mapping[str, float] | None], times: Sequence[float]) -> list[dict[str, float]]:
    """What is sent at each look, by name and run."""
    sent: list[dict[str, float]] = []
    left = iter(beats)

    def put(rows: Sequence[Mapping[str, Any]]) -> None:
        sent.append({row["MetricName"] + (":run" if "Dimensions" in row else ""): row["Value"] for row in rows})

    metrics = CloudMetrics(put, "full", lambda: next(left), print)
    for now in times:
        metrics.send(now)
    return sent


def test_batch_rate_and_silence_are_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cloud_metrics, "read_dcgm", dict)
    first = {"batch": 10, "sample": 20480, "unix_time_s": 100.0}
    second = {"batch": 40, "sample": 81920, "unix_time_s": 160.0}
    sent = sent_by([first, second, second], [101.0, 161.5, 1100.0])
    assert sent[0] == {"SecondsSinceBatch": 1.0, "SecondsSinceBatch:run": 1.0, "Batch:run": 10.0}
    assert sent[1]["ImagesPerSecond:run"] == 61440 / 60
    assert sent[2]["SecondsSinceBatch"] == 940.0 and "ImagesPerSecond:run" not in sent[2]


def test_silence_before_the_first_batch_counts_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cloud_metrics, "read_dcgm", dict)
    monkeypatch.setattr("time.time", lambda: 1000.0)
    assert sent_by([None], [1300.0]) == [{"SecondsSinceBatch": 300.0, "SecondsSinceBatch:run": 300.0}]


def test_dcgm_is_asked_where_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert read_dcgm() == {}
    (tmp_path / "dcgmi").write_text(DCGMI)
    (tmp_path / "dcgmi").chmod(0o755)
    assert read_dcgm() == pytest.approx({"GPUActivePercent": 80.0, "TensorActivePercent": 30.0, "GPUPowerW": 350.5})
    (tmp_path / "dcgmi").write_text("#!/bin/sh\necho 'Error: unable to connect to host engine'; exit 255\n")
    assert read_dcgm() == {}


def test_a_failure_is_said_once_and_the_next_minute_is_tried_again() -> None:
    said: list[str] = []
    calls: list[int] = []

    def put(rows: Sequence[Mapping[str, Any]]) -> None:
        calls.append(len(rows))
        raise OSError("no route to host")

    metrics = CloudMetrics(put, "full", lambda: None, said.append)
    for now in (1.0, 2.0, 3.0):
        metrics.send(now)
    assert len(calls) == 3
    assert said == ["no metrics reach CloudWatch: no route to host; the run continues"]


@pytest.mark.usefixtures("aws")
def test_cloudwatch_takes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cloud_metrics, "read_dcgm", lambda: {"GPUPowerW": 300.0})
    beat = {"batch": 10, "sample": 20480, "unix_time_s": 100.0}
    CloudMetrics(put_to("resnet"), "full", lambda: beat, pytest.fail).send(101.0)
    listed = boto3.client("cloudwatch").list_metrics(Namespace="resnet")["Metrics"]
    assert {metric["MetricName"] for metric in listed} == {"SecondsSinceBatch", "Batch", "GPUPowerW"}
