"""What only a GPU can show of a training step: that the host waits for nothing in it, and that the bits are Composer's.

`make test-gpu` runs it.
"""

import json
import os
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
from tests.s3_server import free_port
from train.config.run_config import load_config
from train.process import start_process, torch_device

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

SECONDS, STEPS, FIRST_STEPS = 300, 12, 4  # the first ones choose kernels, and record graphs


@pytest.fixture(autouse=True)
def gpu() -> torch.device:
    if not torch.cuda.is_available():
        pytest.fail("needs a GPU that torch can use")  # skipped, `make test-gpu` would pass with nothing run
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


@pytest.mark.parametrize(("recipe", "ranks"), [("full", 1), ("sgd", 1), ("mixup", 1), ("full", 2)])
def test_a_step_has_composers_bits_on_a_gpu_where_kernels_are_deterministic(
    gpu: torch.device, recipe: str, ranks: int
) -> None:
    settings = ["deterministic=true", "precision=amp_bf16", "device_train_microbatch_size=8", "optimizer.lr=0.01"]
    found = [trained(kind, [*RECIPES[recipe], *settings], ranks) for kind in ("composer", "ours")]
    assert len({*found[0]["losses"]}) > 10
    assert found[0] == found[1]


PROGRAM = """
import sys
from composer.devices import DeviceGPU
from tests import small_network, step_program
if int(sys.argv[1]) > 1:
    DeviceGPU.dist_backend = "gloo"  # NCCL gives a GPU to one rank alone
small_network.install()
step_program.main(sys.argv[2:])
"""


def trained(kind: str, overrides: list[str], ranks: int) -> dict[str, Any]:
    """Train 20 steps in processes of their own, since forked ones could not begin with CUDA; all on the first GPU."""
    world = {"WORLD_SIZE": ranks, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1"}
    world["MASTER_PORT"] = free_port()
    argv = [sys.executable, "-c", PROGRAM, str(ranks), kind, "20", *overrides]
    started = []
    for rank in range(ranks):  # each on a machine of its own, as far as they know, so that each takes the first GPU
        mine = {name: str(value) for name, value in {**world, "RANK": rank, "NODE_RANK": rank}.items()}
        process = subprocess.Popen(
            argv,
            cwd=REPOSITORY,
            env=os.environ | mine,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
    try:
        outputs = [process.communicate(timeout=SECONDS)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * ranks, "\n".join(outputs)[-4000:]
    found: dict[str, Any] = json.loads(outputs[0].partition("found ")[2].splitlines()[0])
    return found
