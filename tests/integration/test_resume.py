"""The promise: a run that was killed ends as if it had never stopped."""

from pathlib import Path
from typing import Any

import pytest

from tests.integration.problem import command, record_of, what_must_match
from tests.processes import run, start


@pytest.mark.slow
@pytest.mark.parametrize(
    "checkpoint",
    [
        pytest.param("ep0-ba2.pt", id="mid"),
        pytest.param("ep0-ba6.pt", id="end", marks=pytest.mark.exhaustive),
        pytest.param("ep1-ba10.pt", id="second", marks=pytest.mark.exhaustive),
    ],
)
def test_resume_after_kill_9_ends_with_identical_weights(
    shards: Path, undisturbed: dict[str, Any], tmp_path: Path, checkpoint: str
) -> None:
    started = start(command(shards, tmp_path), tmp_path / "log")
    started.kill_when((tmp_path / checkpoint).exists)
    assert "weights_sha256" not in ((tmp_path / "run.json").read_text() if (tmp_path / "run.json").exists() else "")
    code, output = run(command(shards, tmp_path), tmp_path / "again")
    assert code == 0, output
    assert f"resume: from {tmp_path}/ep" in output
    assert what_must_match(record_of(tmp_path)) == what_must_match(undisturbed)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_resume_on_two_ranks_ends_with_identical_weights_and_figures(shards: Path, tmp_path: Path) -> None:
    """Two ranks have two sets of BatchNorm statistics, of which a checkpoint holds one."""
    log = tmp_path / "log"
    argv = {name: command(shards, tmp_path / name) for name in ("undisturbed", "interrupted")}
    code, output = run(argv["undisturbed"], log, ranks=2)
    assert code == 0, output
    started = start(argv["interrupted"], tmp_path / "killed", ranks=2)
    started.kill_when((tmp_path / "interrupted/ep0-ba2.pt").exists)
    code, output = run(argv["interrupted"], tmp_path / "again", ranks=2)
    assert code == 0, output
    assert "resume: from" in output
    one, other = (what_must_match(record_of(tmp_path / name)) for name in argv)
    assert one == other


def test_a_finished_run_is_not_trained_again(shards: Path, tmp_path: Path) -> None:
    argv = command(shards, tmp_path, "max_duration=2ba", "algorithms=[{name: ema, half_life: 1ba}]")
    first, output = run(argv, tmp_path / "log")
    assert first == 0, output
    before = record_of(tmp_path)
    (tmp_path / "run.json").unlink()  # as if it had been killed between the last checkpoint and the record
    again, output = run(argv, tmp_path / "again")
    assert again == 0, output
    assert what_must_match(record_of(tmp_path)) == what_must_match(before)


def test_a_run_with_other_settings_is_refused_unless_the_difference_is_allowed(shards: Path, tmp_path: Path) -> None:
    argv = command(shards, tmp_path, "max_duration=2ba", "algorithms=[]")
    code, output = run(argv, tmp_path / "log")
    assert code == 0, output
    code, output = run([*argv, "seed=5", "max_duration=3ba"], tmp_path / "refused")
    assert code == 2
    assert '  max_duration: "2ba" there, "3ba" here\n  seed: 17 there, 5 here\n' in output
    assert "--allow-changed max_duration --allow-changed seed" in output
    assert "Traceback" not in output
    code, output = run([*argv, "max_duration=3ba", "--allow-changed", "max_duration"], tmp_path / "allowed")
    assert code == 0, output
    assert record_of(tmp_path)["batches"] == 3
    code, output = run([*argv, "checkpoint.autoresume=false"], tmp_path / "no-autoresume")
    assert code == 2
    assert f"{tmp_path} holds checkpoints of an earlier run" in output
