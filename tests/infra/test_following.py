"""`status --follow`: what each job of the cluster is at."""

import json
from pathlib import Path

import pytest

from infra.aws import following

pytestmark = pytest.mark.usefixtures("aws")
NOW = 1767225600  # 2026-01-01 00:00:00 UTC
WAITING = "8|full|p4d-spot|PENDING|2|N/A|(Resources)\n"


def running(batch: int | None, at: float) -> str:
    line = "7|full|p4d-spot|RUNNING|2|2025-12-31T23:00:00|n[1-2]\n"
    if batch is None:
        return line
    return line + json.dumps({"batch": batch, "epoch": 0, "sample": batch * 2048, "unix_time_s": at}) + "   \n"


def test_a_job_is_shown_with_batch_rate_time_left_and_cost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(following, "_total_batches", lambda folder: 22500 if folder == f"{tmp_path}/full" else None)
    looks = iter(
        [
            running(None, 0) + WAITING,
            running(1000, NOW) + WAITING,
            running(1100, NOW + 20.0) + WAITING,
            running(1100, NOW + 20.0),
            "",
        ]
    )
    following.show_jobs(lambda _: next(looks) + f"now={NOW}\n", str(tmp_path), follow=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "job 7  full  2 x p4d-spot  running  for 1 h, before its first batch",
        "job 8  full  2 x p4d-spot  pending  (Resources)",
        "job 7  full  2 x p4d-spot  running  batch 1,000 of 22,500  $24.00 since this start",
        "job 8  full  2 x p4d-spot  pending  (Resources)",
        "job 7  full  2 x p4d-spot  running  batch 1,100 of 22,500  10,240 images/s  1 h 11 min left  "
        "$24.00 since this start",
        "job 8  full  2 x p4d-spot  pending  (Resources)",
        "job 7  full  2 x p4d-spot  running  batch 1,100 of 22,500  $24.00 since this start",
        "no jobs",
    ]


def test_without_follow_it_looks_once(capsys: pytest.CaptureFixture[str]) -> None:
    following.show_jobs(lambda _: f"{WAITING}12_3|convert|g5|RUNNING|1|Unknown|n1\nnow={NOW}\n", "/x", follow=False)
    assert "job 12_3  convert  1 x g5  running" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", "garbage", "{", "7|full|p4d-spot|RUNNING\n", '{"batch": 1}\n'])
def test_what_the_head_node_says_wrong_is_no_job(text: str) -> None:
    assert following.read_jobs(text) == []
