"""What only a GPU can show: that copies run beside training without a fault, and that resumption is exact there too.

`make test-gpu` runs it, on the first GPU of a machine that has one.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from composer.utils import dist, get_device

from imagestream.data.batches import RawBatch
from tests.conftest import REPOSITORY
from tests.integration.problem import command, record_of, what_must_match
from train.config.run_config import load_config
from train.data import dataset_files, train_loader
from train.resolution import Resolution

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

SECONDS = 300
EPOCHS = 4


@pytest.fixture(autouse=True)
def gpu() -> torch.device:
    if not torch.cuda.is_available():
        pytest.fail("needs a GPU that torch can use")  # skipped, `make test-gpu` would pass with nothing run
    return torch.device("cuda", 0)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("busy", ["gpu", "bus"])
def test_batches_reach_a_busy_gpu_as_the_cpu_sees_them(
    shards: Path, gpu: torch.device, busy: str, workers: int
) -> None:
    """The host runs far ahead of the GPU here, so memory that is used too early, or again too early, would show."""
    there = list(kept_after_work(batches(shards, gpu, workers), busy))
    torch.cuda.synchronize()
    here = [(batch.images.clone(), batch.labels) for batch in batches(shards, torch.device("cpu"), workers)]
    assert len(there) == len(here) == EPOCHS * 12
    assert len({images.shape for images, _ in here}) > 2  # so that blocks change their shape
    for (images, labels), (images_here, labels_here) in zip(there, here, strict=True):
        assert torch.equal(images.cpu(), images_here)
        assert torch.equal(labels.cpu(), labels_here)


def kept_after_work(found: Iterator[RawBatch], busy: str) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Look at each batch on the GPU, which has work to do before (gpu), or gets it late (bus); nothing here waits."""
    factor = torch.full((4096, 4096), 1e-4, device="cuda")
    there, here = torch.empty(2**27, dtype=torch.uint8, device="cuda"), torch.empty(2**27, dtype=torch.uint8)
    here, others = here.pin_memory(), [torch.cuda.Stream() for _ in range(4)]
    for batch in found:
        if busy == "gpu":
            for _ in range(4):
                factor = factor @ factor
        yield batch.images.clone(), batch.labels.clone()
        for stream in others if busy == "bus" else []:
            with torch.cuda.stream(stream):
                there.copy_(here, non_blocking=True)


def batches(shards: Path, device: torch.device, workers: int) -> Iterator[RawBatch]:
    """Batches of EPOCHS epochs, as training gets them, at sizes that change."""
    dist.initialize_dist(get_device(None), timeout=60)
    cfg = load_config(
        REPOSITORY / "yamls/tiny.yaml",
        [f"data.local={shards}", f"data.num_workers={workers}", "global_batch_size=8", "data.crop_size=160"],
    )
    files = dataset_files(cfg.data)
    resolution = Resolution(160, files.count("train") // 8, f"{EPOCHS}ep", Growing())
    loader = train_loader(cfg.data, files, seed=cfg.seed, batch_size=8, resolution=resolution, device=device)
    for _ in range(EPOCHS):
        yield from loader.raw_batches()


class Growing:
    """96, 128, 160, 160 px."""

    def image_px(self, crop_size: int, *, epoch: int, elapsed_fraction: float) -> int:
        return min(crop_size, 96 + 32 * epoch)


@pytest.mark.parametrize("step", ["precision=amp_bf16", "precision=amp_fp16", "training_step=cuda_graphs"])
def test_resume_after_kill_9_ends_with_identical_weights_on_a_gpu(shards: Path, tmp_path: Path, step: str) -> None:
    """With loader workers, as a production run; CUDA graphs in bfloat16."""
    assert train(shards, tmp_path / "undisturbed", step).wait(SECONDS) == 0, output(tmp_path / "undisturbed")
    killed = tmp_path / "killed"
    process = train(shards, killed, step)
    deadline = time.monotonic() + SECONDS
    while not (killed / "ep0-ba2.pt").exists():
        assert process.poll() is None and time.monotonic() < deadline, output(killed)
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(30)
    assert train(shards, killed, step).wait(SECONDS) == 0, output(killed)
    assert "resume: from" in output(killed)
    undisturbed = record_of(tmp_path / "undisturbed")
    assert undisturbed["hardware"]["device"] == torch.cuda.get_device_name()
    assert what_must_match(record_of(killed)) == what_must_match(undisturbed)


def train(shards: Path, folder: Path, step: str) -> "subprocess.Popen[bytes]":
    """Start a run as a user does: tests.processes forks its runs, and CUDA must not have begun before a fork."""
    settings = [
        *("model.name=resnet50", "deterministic=true", "device_train_microbatch_size=16", "data.num_workers=2"),
        "loggers.file=false",
        step,
    ]
    argv = [sys.executable, "train/main.py", *command(shards, folder, *settings)]
    with Path(f"{folder}.log").open("ab") as log:
        return subprocess.Popen(argv, cwd=REPOSITORY, stdout=log, stderr=log, start_new_session=True)


def output(folder: Path) -> Any:
    return Path(f"{folder}.log").read_text()[-4000:]
