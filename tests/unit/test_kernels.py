"""What `deterministic: true` asks of torch, and what it leaves out."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from composer.devices import DeviceCPU, DeviceGPU
from composer.utils import reproducibility
from torch import nn

from train.config.run_config import ConfigError, load_config
from train.process import choose_kernels

FILLING: Any = torch.utils.deterministic  # torch's types lack the attribute


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # Composer sets it
    fills, benchmark = FILLING.fill_uninitialized_memory, torch.backends.cudnn.benchmark
    deterministic = torch.backends.cudnn.deterministic
    yield
    torch.use_deterministic_algorithms(False)
    FILLING.fill_uninitialized_memory = fills
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = benchmark, deterministic


def operations_of_a_step() -> Counter[str]:
    """Return how often torch runs each operation in a step of a small network."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))
    with torch.autograd.profiler.profile() as profile:
        network(torch.ones(2, 3, 8, 8)).sum().backward()
    return Counter({event.key: event.count for event in profile.key_averages()})


def test_deterministic_kernels_fill_no_memory_that_is_written_at_once() -> None:
    plain = operations_of_a_step()
    reproducibility.configure_deterministic_mode()  # as Composer's Trainer does
    as_torch_has_it = operations_of_a_step()
    choose_kernels(load_config("yamls/tiny.yaml", ["data.local=tests", "deterministic=true"]), DeviceCPU())
    assert operations_of_a_step() == plain
    # What torch does by default. Where it no longer does, choose_kernels need not turn it off.
    assert as_torch_has_it["aten::fill_"] > plain["aten::fill_"] + 10


def test_kernels_are_searched_for_unless_a_run_is_deterministic() -> None:
    gpu = DeviceGPU.__new__(DeviceGPU)
    choose_kernels(load_config("yamls/tiny.yaml", ["data.local=tests"]), gpu)
    assert torch.backends.cudnn.benchmark and FILLING.fill_uninitialized_memory
    cfg = ["data.local=tests", "deterministic=true", "device_train_microbatch_size=8"]
    choose_kernels(load_config("yamls/tiny.yaml", cfg), gpu)
    assert not torch.backends.cudnn.benchmark
    with pytest.raises(ConfigError, match="deterministic: true rules out; give a number"):
        choose_kernels(load_config("yamls/tiny.yaml", [*cfg, "device_train_microbatch_size=auto"]), gpu)
