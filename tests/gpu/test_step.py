"""What only a GPU can show of a training step: that the host waits for nothing in it, and that the bits are Composer's.

`make test-gpu` runs it.
"""

import json
import subprocess
import sys
from typing import Any

import pytest
import torch
from composer.core import Callback, DataSpec, State
from composer.loggers import Logger

from benchmarks.step_trainers import Batches, one_batch, trainer_of
from tests.conftest import REPOSITORY
from tests.integration.test_step import RECIPES
from train.config.run_config import load_config
from train.process import start_process, torch_device

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

SECONDS, STEPS, FIRST_STEPS = 300, 12, 4  # the first ones choose kernels, and record graphs


@pytest.fixture(autouse=True)
def gpu() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    return torch.device("cuda", 0)


class NoWaits(Callback):
    """Has torch raise where the host waits for the GPU between a batch's arrival and the optimizer's step."""

    def __init__(self) -> None:
        self.watched = 0

    def fit_start(self, state: State, logger: Logger) -> None:
        for optimizer in state.optimizers:
            optimizer.register_step_post_hook(self._stop)

    def _stop(self, *_: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")

    def batch_start(self, state: State, logger: Logger) -> None:
        if int(state.timestamp.batch) >= FIRST_STEPS:
            torch.cuda.set_sync_debug_mode("error")
            self.watched += 1

    def close(self, state: State, logger: Logger) -> None:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("precision", ["amp_bf16", "amp_fp16", "fp32"])
@pytest.mark.parametrize("training_step", ["eager", "cuda_graphs"])
def test_the_host_waits_for_nothing_before_the_step(gpu: torch.device, training_step: str, precision: str) -> None:
    watch_for_waits(f"training_step={training_step}", f"precision={precision}")


@pytest.mark.parametrize("precision", ["amp_bf16", "amp_fp16"])
@pytest.mark.parametrize("optimizer", ["adamw", "lamb"])
def test_nor_does_it_with_other_optimizers(gpu: torch.device, optimizer: str, precision: str) -> None:
    watch_for_waits(f"optimizer.name={optimizer}", "optimizer.lr=1e-3", f"precision={precision}")


def watch_for_waits(*overrides: str) -> None:
    device = start_process(60.0)
    cfg = load_config(
        REPOSITORY / "yamls/full.yaml",
        [
            "data.remote=null",
            f"data.local={REPOSITORY}",
            "checkpoint.save_folder=unused",
            f"max_duration={STEPS}ba",
            "scheduler.t_warmup=2ba",
            "global_batch_size=64",
            "device_train_microbatch_size=64",
            *overrides,
        ],
    )
    watched = NoWaits()
    batches = Batches(one_batch(64, 96, torch_device(device)), STEPS)
    spec = DataSpec(batches, get_num_samples_in_batch=lambda batch: len(batch[1]))
    trainer = trainer_of("ours", cfg, spec, device, callbacks=[watched])
    trainer.fit()
    trainer.close()
    assert watched.watched == STEPS - FIRST_STEPS


@pytest.mark.parametrize("recipe", ["full", "sgd", "mixup"])
def test_a_step_has_composers_bits_on_a_gpu_where_kernels_are_deterministic(gpu: torch.device, recipe: str) -> None:
    settings = ["deterministic=true", "precision=amp_bf16", "device_train_microbatch_size=8", "optimizer.lr=0.01"]
    found = [trained(kind, [*RECIPES[recipe], *settings]) for kind in ("composer", "ours")]
    assert len({*found[0]["losses"]}) > 10
    assert found[0] == found[1]


def trained(kind: str, overrides: list[str]) -> dict[str, Any]:
    """Train 20 steps in a process of its own, since a forked one could not begin with CUDA."""
    argv = [kind, "20", *overrides]
    program = "; ".join(
        [
            "import sys",
            "from tests import small_network, step_program",
            "small_network.install()",
            "step_program.main(sys.argv[1:])",
        ]
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *argv], cwd=REPOSITORY, capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout.partition("found ")[2].splitlines()[0])
    return found
