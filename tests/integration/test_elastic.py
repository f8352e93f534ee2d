"""A run resumes with other numbers of ranks and machines: every later global batch has the same samples and crops."""

import shutil
from pathlib import Path

import pytest

from imagestream.storage.local import LocalPlace
from tests.integration.problem import command, record_of
from tests.processes import run, start
from train.resume.checkpoint_file import load
from train.resume.checkpoints import list_checkpoints

pytestmark = pytest.mark.slow
EXHAUSTIVE = [pytest.param(nodes, 4, marks=pytest.mark.exhaustive) for nodes in (1, 4)]
MORE = ("algorithms=[]", "eval_interval=2ep", "checkpoint.save_interval=4ba")


@pytest.fixture(scope="module")
def killed_on_two_ranks(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A save folder with a checkpoint in the middle of the first epoch."""
    folder = tmp_path_factory.mktemp("two")
    started = start(command(shards, folder, *MORE), folder / "log", ranks=2)
    started.kill_when((folder / "ep0-ba4.pt").exists)
    assert list_checkpoints(LocalPlace(folder)) == ["ep0-ba4.pt"]
    return folder


@pytest.mark.parametrize(("nodes", "ranks"), [(1, 1), (2, 2), *EXHAUSTIVE])
def test_a_run_of_two_ranks_goes_on_with_the_same_global_batches(
    shards: Path, undisturbed_folder: Path, killed_on_two_ranks: Path, tmp_path: Path, nodes: int, ranks: int
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(killed_on_two_ranks, folder)
    code, output = run(command(shards, folder, *MORE), tmp_path / "log", ranks=ranks, nodes=nodes)
    assert code == 0, output
    assert f"resume: from {folder}/ep0-ba4.pt" in output
    assert f"global batch 16 = {ranks} ranks x {16 // ranks}" in output
    expected = samples_of(undisturbed_folder)
    assert [
        batch for batch, pair in enumerate(zip(samples_of(folder), expected, strict=True)) if len(set(pair)) > 1
    ] == []
    assert len(expected) == len(set(expected)) == 12
    assert record_of(folder)["ledger"] == record_of(undisturbed_folder)["ledger"]
    assert record_of(folder)["samples_evaluated"] == 23


def test_a_number_of_ranks_over_which_the_batch_does_not_divide_is_refused_with_those_that_do(
    shards: Path, killed_on_two_ranks: Path, tmp_path: Path
) -> None:
    code, output = run(command(shards, killed_on_two_ranks, *MORE), tmp_path / "log", ranks=3)
    assert code == 2
    assert (
        "global_batch_size: 16 must be a multiple of the 3 ranks; nearest: 15 and 18, as in global_batch_size=18; or "
        "keep it and run 2 or 4 ranks\n" in output
    )


def samples_of(folder: Path) -> list[int]:
    """What a run has noted of each of its batches: a hash of samples and crops."""
    newest = list_checkpoints(LocalPlace(folder))[-1]
    samples: list[int] = load(folder / newest)["state"]["callbacks"]["ResumeGuard"]["trail"]["samples"].tolist()
    return samples
