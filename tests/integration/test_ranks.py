"""Ranks and loader workers change how the work is done, not what comes out."""

import json
from pathlib import Path

import pytest
import torch

from tests.integration.problem import command, record_of
from tests.processes import run
from train.resume.checkpoint_file import load

FOUR_STEPS = ["max_duration=4ba", "checkpoint.save_interval=4ba", "eval_interval=4ba"]
ONE_PLAIN_STEP = ["max_duration=1ba", "algorithms=[]", "scheduler.t_warmup=0ba", "optimizer.lr=0.1"]


def test_gradients_are_averaged_over_ranks_and_microbatches(shards: Path, tmp_path: Path) -> None:
    """The first step's weights are those of one rank and one pass, to 1e-6."""
    weights = []
    for ranks, microbatch in ((1, "auto"), (2, "auto"), (1, "4"), (2, "4")):
        folder = tmp_path / f"{ranks}-{microbatch}"
        argv = command(shards, folder, *ONE_PLAIN_STEP, f"device_train_microbatch_size={microbatch}")
        code, output = run(argv, tmp_path / f"log{folder.name}", ranks=ranks, program="tests.one_step")
        assert code == 0, output
        assert f"{ranks} ranks hold the same weights" in output
        model = load(folder / "ep0-ba1.pt")["state"]["model"]
        weights.append({name.replace("module.", ""): tensor.double() for name, tensor in model.items()})
    for other in weights[1:]:
        assert list(other) == list(weights[0])
        assert [name for name in other if not torch.allclose(other[name], weights[0][name], rtol=0, atol=1e-6)] == []


@pytest.mark.slow
@pytest.mark.parametrize("bits", ["bf16", pytest.param("fp16", marks=pytest.mark.exhaustive)])
def test_gradients_that_are_exchanged_in_16_bits_are_rounded_and_the_same_on_all_ranks(
    shards: Path, tmp_path: Path, bits: str
) -> None:
    weights = []
    for compression in ("none", bits):
        folder = tmp_path / compression
        argv = command(shards, folder, *ONE_PLAIN_STEP, f"gradient_compression={compression}")
        code, output = run(argv, tmp_path / f"log{compression}", ranks=2, program="tests.one_step")
        assert code == 0 and "2 ranks hold the same weights" in output, output
        weights.append(load(folder / "ep0-ba1.pt")["state"]["model"]["module.fc.weight"])
    whole, rounded = weights
    assert not torch.equal(whole, rounded)
    assert torch.allclose(whole, rounded, rtol=0, atol=1e-3)


def test_the_number_of_loader_workers_does_not_change_a_bit(shards: Path, tmp_path: Path) -> None:
    hashes = []
    for workers in (0, 1, 3):
        folder = tmp_path / str(workers)
        code, output = run(
            command(shards, folder, f"data.num_workers={workers}", *FOUR_STEPS), tmp_path / f"log{workers}"
        )
        assert code == 0, output
        hashes.append(record_of(folder)["weights_sha256"])
    assert hashes == [hashes[0]] * 3


@pytest.fixture(scope="module")
def checkpoint(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    code, output = run(command(shards, folder, *FOUR_STEPS), folder / "log")
    assert code == 0, output
    return folder / "ep0-ba4.pt"


@pytest.mark.parametrize(("ranks", "workers", "batch"), [(1, 0, 23), (1, 3, 4), (2, 0, 8), (2, 2, 6), (3, 0, 6)])
def test_evaluation_counts_each_sample_once_and_gives_the_runs_figures(
    shards: Path, checkpoint: Path, tmp_path: Path, ranks: int, workers: int, batch: int
) -> None:
    out = tmp_path / "figures.json"
    argv = [str(checkpoint), "--data", str(shards), "--workers", str(workers), "--batch-size", str(batch)]
    code, output = run([*argv, "--json", str(out)], tmp_path / "log", ranks=ranks, program="train.evaluate")
    assert code == 0, output
    figures, record = json.loads(out.read_text()), record_of(checkpoint.parent)
    assert figures["samples_evaluated"] == 23
    assert (figures["top1"], figures["top5"]) == (record["top1"], record["top5"])
    assert figures["loss"] == pytest.approx(record["loss"], rel=1e-5)
    assert figures["weights_sha256"] == record["weights_sha256"]
