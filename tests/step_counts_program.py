"""Trains yamls/full.yaml's ResNet-50 in bfloat16 on tiny images, and prints what each step launches and waits for.

Arguments: ours or composer, and a number of steps; averages are updated every second one. `tests.processes` starts it
on each rank.
"""

import json
from collections.abc import Sequence

from composer.algorithms import EMA
from composer.core import Callback, DataSpec, State, Time
from composer.loggers import Logger
from composer.utils import dist

from benchmarks.step_counts import Counts, StepParts
from benchmarks.step_trainers import Batches, composers_own, one_batch, trainer_of
from train.config.run_config import load_config
from train.process import start_process, torch_device
from train.resume.gradient_buckets import fix_gradient_buckets

IMAGES, PX = 2, 32


class Buckets(Callback):
    """What `train.resume.guard.ResumeGuard` does at the start of a run on several ranks."""

    def fit_start(self, state: State, logger: Logger) -> None:
        fix_gradient_buckets(state.model)


def main(argv: Sequence[str]) -> int:
    kind, steps = argv[0], int(argv[1])
    device = start_process(60.0)
    cfg = load_config(
        "yamls/full.yaml",
        [
            *("data.local=tests", "data.remote=null", "checkpoint.save_folder=unused", f"max_duration={steps}ba"),
            *("precision=amp_bf16", "optimizer.lr=0.01", f"global_batch_size={IMAGES * dist.get_world_size()}"),
            "scheduler.t_warmup=0ba",
        ],
    )
    batch = one_batch(IMAGES, PX, torch_device(device))
    spec = DataSpec(Batches(batch, steps), get_num_samples_in_batch=lambda batch: len(batch[1]))
    counts = Counts()
    with composers_own(device, is_on=kind == "composer"):
        trainer = trainer_of(kind, cfg, spec, device, callbacks=[Buckets(), StepParts(counts)], is_fused=True)
        next(a for a in trainer.state.algorithms if isinstance(a, EMA)).update_interval = Time.from_timestring("2ba")
        trainer.fit()
    if dist.get_global_rank() == 0:
        print("found " + json.dumps(counts.steps))
    return 0
