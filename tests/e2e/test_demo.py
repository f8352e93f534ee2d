"""`make demo`, as a user runs it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SECONDS = 1800


def run_demo(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "demo/run.py", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=SECONDS)


@pytest.mark.slow
def test_the_demo_kills_a_run_twice_and_ends_with_identical_weights(tmp_path: Path) -> None:
    done = run_demo("--kills", "2", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr

    undisturbed, interrupted = (
        json.loads((tmp_path / "runs" / name / "run.json").read_text()) for name in ("undisturbed", "interrupted")
    )
    assert undisturbed["weights_sha256"] == interrupted["weights_sha256"]
    assert undisturbed["ledger"] == interrupted["ledger"]
    assert undisturbed["top1"] == interrupted["top1"] > 0.5
    assert interrupted["samples_evaluated"] == 251

    assert done.stdout.count(undisturbed["weights_sha256"]) == 2
    assert done.stdout.count("SIGKILL") == 2
    assert f"top-1 {interrupted['top1']:.2%}" in done.stdout
    for name in ("undisturbed", "interrupted"):
        assert (tmp_path / "runs" / name / "report.png").stat().st_size > 0
    for name in ("convert", "undisturbed", "interrupted-1-killed", "interrupted-3-to-the-end", "evaluate"):
        assert (tmp_path / "runs" / f"{name}.log").exists()


@pytest.mark.slow
def test_the_quick_demo_trains_and_evaluates(tmp_path: Path) -> None:
    done = run_demo("--quick", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "it works here" in done.stdout
    assert json.loads((tmp_path / "runs/quick/run.json").read_text())["samples_evaluated"] == 251
