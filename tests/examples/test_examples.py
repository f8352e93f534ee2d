"""Each example, as its user starts it, killed in mid-epoch: the same command resumes, to the same weights."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import REPOSITORY

LIBRARIES = REPOSITORY / "build/examples"  # Lightning and timm, by `make test-examples`
SECONDS, SAVE_EVERY = 300, 5  # no divisor of the run's 12 or 24 steps: the end needs a checkpoint of its own
EPOCHS = 2
SMALL = ["--model", "resnet18", "--classes", "4", "--size", "32", "--batch-size", "8", "--lr", "0.01"]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


def start(example: str, data: Path, folder: Path, launcher: Sequence[str]) -> "subprocess.Popen[bytes]":
    folder.mkdir(exist_ok=True)
    place = ["--folder", str(folder)] if "lightning" in example else ["--checkpoint", str(checkpoint(example, folder))]
    argv = [
        sys.executable,
        *launcher,
        f"examples/{example}.py",
        str(data),
        *SMALL,
        f"--epochs={EPOCHS}",
        f"--save-every={SAVE_EVERY}",
        *place,
    ]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(LIBRARIES)]), "OMP_NUM_THREADS": "1"}
    with open(folder / "log", "ab") as log:
        return subprocess.Popen(argv, cwd=REPOSITORY, env=env, stdout=log, stderr=log, start_new_session=True)


def checkpoint(example: str, folder: Path) -> Path:
    return folder / ("last.ckpt" if "lightning" in example else "checkpoint.pt")


def kill_in_mid_epoch(process: "subprocess.Popen[bytes]", example: str, folder: Path) -> dict[str, Any]:
    """SIGKILL everything once a checkpoint is there, and return the loader's state in it."""
    deadline = time.monotonic() + SECONDS
    while not checkpoint(example, folder).exists():
        assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(30)
    return loader_state(load(example, folder))


def load(example: str, folder: Path) -> dict[str, Any]:
    # Lightning stores classes of its own in a checkpoint; it has just been written by this test.
    content: dict[str, Any] = torch.load(checkpoint(example, folder), weights_only="lightning" not in example)
    return content


def loader_state(content: dict[str, Any]) -> dict[str, Any]:
    loops = content.get("loops")
    state: dict[str, Any] = loops["fit_loop"]["state_dict"]["combined_loader"][0] if loops else content["loader"]
    return state


def tensors_of(content: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of a checkpoint: weights, averages, momentum."""
    if isinstance(content, torch.Tensor):
        yield name, content
    parts = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, part in parts:
        yield from tensors_of(part, f"{name}.{key}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("example", "library", "launcher"),
    [("ddp", "torch", TORCHRUN), ("lightning_trainer", "lightning", ()), ("timm_loop", "timm", ())],
)
def test_an_example_that_is_killed_ends_with_the_same_weights(
    shards: Path, tmp_path: Path, example: str, library: str, launcher: Sequence[str]
) -> None:
    if library != "torch" and not (LIBRARIES / library).is_dir() and importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not there; `make test-examples` installs it")
    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    at = kill_in_mid_epoch(start(example, shards, killed, launcher), example, killed)
    batches = 100 // 8 // (2 if launcher else 1)
    assert (at["epoch"], at["batch"] % SAVE_EVERY) == (0, 0) and at["batch"] < batches
    for folder in (killed, undisturbed, undisturbed):  # a run that has ended may be started again
        assert start(example, shards, folder, launcher).wait(SECONDS) == 0, (folder / "log").read_text()
    ended, expected = (load(example, folder) for folder in (killed, undisturbed))
    mine, theirs = dict(tensors_of(ended)), dict(tensors_of(expected))
    assert mine.keys() == theirs.keys() and len(mine) > 150  # weights, BatchNorm's statistics and momentum
    assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []
    assert loader_state(ended) == loader_state(expected)
    end = loader_state(ended)
    assert end["epoch"] * batches + end["batch"] == EPOCHS * batches  # the trained network


@pytest.mark.parametrize("path", sorted((REPOSITORY / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_an_example_is_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 65
