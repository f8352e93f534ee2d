"""MosaicML's recipes, as our command trains them, end with the bits of a program on Composer's Trainer alone."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.parity_program import BATCH, EPOCHS, LR, PX, WEIGHT_DECAY
from tests.processes import run


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [pytest.param("mosaic-baseline", marks=pytest.mark.exhaustive), "mosaic-mild"])
def test_it_ends_with_the_weights_of_a_program_on_composer_alone(shards: Path, tmp_path: Path, recipe: str) -> None:
    one_thread = {"OMP_NUM_THREADS": "1"}
    arguments = [recipe, str(shards), str(tmp_path / "theirs")]
    code, output = run(arguments, tmp_path / "log", program="tests.parity_program", env=one_thread)
    assert code == 0, output
    ours = [f"yamls/recipes/{recipe}.yaml", f"data.local={shards}", f"checkpoint.save_folder={tmp_path / 'ours'}"]
    ours += [
        f"global_batch_size={BATCH}",
        f"max_duration={EPOCHS}ep",
        "scale_with_batch=null",
        "scheduler.t_warmup=1ep",
    ]
    ours += [f"optimizer.lr={LR}", f"optimizer.weight_decay={WEIGHT_DECAY}", "data.num_workers=0"]
    ours += [f"data.crop_size={PX}", "data.eval_resize_size=36", "data.eval_crop_size=32"]
    code, output = run(ours, tmp_path / "log", env=one_thread)
    assert code == 0, output
    one, other = (saved(tmp_path / folder) for folder in ("ours", "theirs"))
    assert sorted(one) == sorted(other)
    assert [name for name, value in one.items() if not torch.equal(value, other[name])] == []


def saved(folder: Path) -> dict[str, Any]:
    """The last checkpoint's tensors that decide what the model computes, and how it would continue."""
    (path,) = folder.glob(f"ep{EPOCHS}-ba24*.pt")
    state = torch.load(path, weights_only=False)["state"]  # of this test
    tensors = {f"model {name}": value for name, value in state["model"].items() if name.startswith("module.")}
    for optimizer in state["optimizers"].values():
        tensors |= {
            f"momentum {name}": values["momentum_buffer"]
            for name, values in optimizer["state"].items()
            if "momentum_buffer" in values
        }
    return tensors
