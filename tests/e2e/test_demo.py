"""`make demo`, as a user runs it; `.ci/run` runs it whole."""

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


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the demo writes: the second one finds the images and shards of the first."""
    return tmp_path_factory.mktemp("demo")


@pytest.mark.slow
@pytest.mark.exhaustive
def test_the_demo_kills_a_run_and_ends_with_identical_weights(out: Path) -> None:
    done = run_demo("--epochs", "1", "--out", str(out))
    assert done.returncode == 0, done.stdout + done.stderr

    undisturbed, interrupted = (
        json.loads((out / "runs" / name / "run.json").read_text()) for name in ("undisturbed", "interrupted")
    )
    for key in ("weights_sha256", "ledger", "top1", "top5", "loss"):
        assert undisturbed[key] == interrupted[key], key
    assert interrupted["samples_evaluated"] == 251

    assert done.stdout.count(undisturbed["weights_sha256"]) == 2
    assert done.stdout.count("SIGKILL") == 1
    assert f"top-1 {interrupted['top1']:.2%}" in done.stdout
    for name in ("undisturbed", "interrupted"):
        assert (out / "runs" / name / "report.png").stat().st_size > 0
    for name in ("convert", "undisturbed", "interrupted-1-killed", "interrupted-2-to-the-end", "evaluate"):
        assert (out / "runs" / f"{name}.log").exists()


@pytest.mark.slow
@pytest.mark.exhaustive
def test_the_quick_demo_trains_and_evaluates(out: Path) -> None:
    done = run_demo("--quick", "--out", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "it works here" in done.stdout
    assert json.loads((out / "runs/quick/run.json").read_text())["samples_evaluated"] == 251
