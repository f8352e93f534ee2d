"""What Composer 0.32 and Streaming 0.13 do by themselves; where one of these fails, a guard of ours may go."""

import os
import re
from pathlib import Path

import pytest

from tests.processes import run

pytestmark = pytest.mark.slow
WHOLE = "weights ([0-9a-f]{64})"


def composer(tmp_path: Path, algorithm: str, folder: str, part: str) -> str:
    log = tmp_path / f"{algorithm}-{folder}-{part}.log"
    _, output = run([algorithm, str(tmp_path / folder), part], log, program="tests.upstream_resume")
    return output


@pytest.mark.parametrize(("algorithm", "same"), [("none", True), ("mixup", False), ("sam", False)])
def test_composer_resumes_in_the_middle_of_an_epoch(tmp_path: Path, algorithm: str, same: bool) -> None:
    """Guards: train.resume.guard.seed_batch for MixUp, train.resume.resumable.SAM."""
    whole = composer(tmp_path, algorithm, "whole", "undisturbed")
    composer(tmp_path, algorithm, "parts", "first")
    resumed = composer(tmp_path, algorithm, "parts", "resume")
    assert "begins at batch 0" in whole and "begins at batch 2" in resumed
    weights = [re.findall(WHOLE, output) for output in (whole, resumed)]
    assert len(weights[0]) == len(weights[1]) == 1
    begun = re.findall(WHOLE, composer(tmp_path, algorithm, "begun", "first"))
    assert begun != weights[0], "the weights do not change at all"
    assert (weights[0] == weights[1]) is same


def test_composer_does_not_look_behind_a_checkpoint_that_is_cut_short(tmp_path: Path) -> None:
    """Guard: train.resume.checkpoints.newest_whole."""
    composer(tmp_path, "none", "run", "undisturbed")
    newest = (tmp_path / "run/latest-rank0.pt").resolve()
    os.truncate(newest, newest.stat().st_size // 2)
    assert len(list((tmp_path / "run").glob("ep*.pt"))) > 1, "there is a whole one"
    output = composer(tmp_path, "none", "run", "resume")
    assert "Traceback" in output and not re.search(WHOLE, output)


def test_composer_begins_anew_without_its_link_to_the_newest_checkpoint(tmp_path: Path) -> None:
    """Guard: train.resume.checkpoints.newest_whole."""
    composer(tmp_path, "none", "run", "first")
    (tmp_path / "run/latest-rank0.pt").unlink()
    assert list((tmp_path / "run").glob("ep*.pt")), "there is one"
    assert "begins at batch 0" in composer(tmp_path, "none", "run", "resume")


def test_streaming_evaluates_samples_twice(shards: Path, tmp_path: Path) -> None:
    """Guard: imagestream.data.dataset.StreamingEvalImages."""
    argv = ["none", str(shards / "val"), "num_canonical_nodes=4"]
    _, output = run(argv, tmp_path / "log", program="tests.upstream_epoch")
    assert re.search(r"\b24 of \d+ samples, no exception", output), "the split has 23"


def test_streamings_state_does_not_say_of_what_it_is(shards: Path, tmp_path: Path) -> None:
    """Guard: train.resume.guard.contract_of."""
    argv = ["none", str(shards / "val"), "print_state=1"]
    _, output = run(argv, tmp_path / "log", program="tests.upstream_epoch")
    keys = set(re.findall(r"'(\w+)':", output))
    assert {"epoch", "sample_in_epoch", "shuffle_seed"} <= keys
    assert not keys & {"batch_size", "shuffle_algo", "shuffle_block_size", "local", "remote", "samples"}


def test_streamings_state_at_an_epochs_end_is_that_of_its_beginning(shards: Path, tmp_path: Path) -> None:
    """Guard: imagestream.data.dataset.StreamingImages.begin_at."""
    argv = ["none", str(shards / "val"), "print_state=1"]
    _, output = run(argv, tmp_path / "log", program="tests.upstream_epoch")
    assert re.search(r"at the epoch's end: \{'epoch': 0, 'sample_in_epoch': 0,", output), output
