"""The plan of a conversion by many machines follows from the measured figures and the machines' shapes."""

import re

import pytest

from infra.plan import conversion
from infra.plan.conversion import Task, converter, core_seconds, main, predict
from tests.conftest import REPOSITORY

IMAGENET_21K = Task(14_200_000, 92e3, 92e3, is_resized=False, files_bytes_per_sec=None)
C6I = converter("c6i.8xlarge")
PAGES = {name: (REPOSITORY / f"docs/{name}.md").read_text() for name in ("data", "performance")}


def test_the_documented_plan_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    (command,) = re.findall(r"^python infra/plan/conversion\.py (.*)$", PAGES["data"], re.MULTILINE)
    assert main(command.split()) == 0
    printed = capsys.readouterr().out
    plan = predict(IMAGENET_21K, C6I, 16)
    assert plan.binding == "listing" and "binding: listing" in printed
    rows = [
        f"| {count} | {other.hours:.1f} | {conversion.usd(other, C6I.usd_per_hour):,.0f} | {other.binding} |"
        for count in (1, 2, 4, 16)
        for other in [predict(IMAGENET_21K, C6I, count)]
    ]
    assert "\n".join(rows) in PAGES["data"]
    phases = [f"| {name} | {seconds / 60:.0f} |" for name, seconds in plan.seconds.items()]
    assert [row for row in phases if row not in PAGES["data"]] == []


def test_the_figures_of_one_core_are_the_documented_ones() -> None:
    page = PAGES["performance"]
    for row, figure in {
        "ours: checks and copies, 1 worker": conversion.CHECKED_PER_SEC,
        "ours: checks and resizes to `max=400`, 1 worker": conversion.RESIZED_PER_SEC,
        "read an image of 113 KB from tars in S3": conversion.S3_READS_PER_SEC,
        "upload shards, MB/s": conversion.UPLOADED_BYTES_PER_SEC / 1e6,
        "list class folders on a disk": conversion.LISTED_FILES_PER_SEC,
        "list tars in S3, MB/s": conversion.LISTED_TAR_BYTES_PER_SEC / 1e6,
        "plan": conversion.PLANNED_PER_SEC,
        "complete": conversion.COMPLETED_PER_SEC,
    }.items():
        assert f"| {row} | {figure:,.0f} (" in page, row


def test_more_machines_make_shards_faster_and_nothing_else() -> None:
    one, four = predict(IMAGENET_21K, C6I, 1), predict(IMAGENET_21K, C6I, 4)
    assert one.seconds.pop("shards") == pytest.approx(4 * four.seconds.pop("shards"))
    assert one.seconds == four.seconds


def test_what_binds_is_the_longest_phase_or_what_the_shards_wait_for() -> None:
    files = {"is_resized": False, "files_per_sec": 1e6}
    assert predict(IMAGENET_21K, C6I, 16).binding == "listing"
    resized = Task(1_000_000, 113.1e3, 33e3, is_resized=True, files_bytes_per_sec=1e12, files_per_sec=1e6)
    assert predict(resized, C6I, 1).binding == "processors"
    slow = Task(1_000_000, 113.1e3, 113.1e3, files_bytes_per_sec=1e8, **files)  # type: ignore[arg-type]
    assert predict(slow, C6I, 4).binding == "storage"
    assert predict(slow, C6I, 4).images_per_sec == pytest.approx(1e8 / 113.1e3)
    large = Task(1_000_000, 5e6, 5e6, files_bytes_per_sec=1e12, **files)  # type: ignore[arg-type]
    assert predict(large, converter("c6i.4xlarge"), 1).shards_wait_for == "network"


def test_an_image_costs_what_one_worker_needed_and_reading_from_s3_comes_on_top() -> None:
    here = Task(1, 113.1e3, 113.1e3, is_resized=False, files_bytes_per_sec=1e9)
    there = Task(1, 113.1e3, 113.1e3, is_resized=False, files_bytes_per_sec=None)
    assert core_seconds(here) == pytest.approx(1 / 1022 + 113.1e3 / 351e6)
    assert core_seconds(there) - core_seconds(here) == pytest.approx(1 / 258)


def test_a_machine_with_too_little_memory_and_one_that_nobody_knows_are_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--images", "100e6", "--instance", "c6i.4xlarge"]) == 0
    assert "TOO LITTLE" in capsys.readouterr().out
    assert main(["--instance", "c1.medium"]) == 2
    assert "c1.medium: not in infra/plan/converters.yaml, which has c6i.4xlarge, " in capsys.readouterr().err
