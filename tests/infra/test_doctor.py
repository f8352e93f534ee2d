"""The doctor says what is amiss with a machine; torch and the EFA tools are stand-ins where there are none."""

import pytest
import torch

from docker.doctor import AMISS, OK, gpus


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A GPU of compute capability 10.0, as torch would show it."""
    for name, value in {
        "is_available": True,
        "device_count": 1,
        "mem_get_info": (180_000_000_000, 192_000_000_000),
        "get_device_name": "NVIDIA B200",
        "get_device_capability": (10, 0),
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda *args, value=value: value)
    return monkeypatch


def test_a_gpu_for_which_torch_has_no_code_is_amiss(one_gpu: pytest.MonkeyPatch) -> None:
    one_gpu.setattr(torch.cuda, "get_arch_list", lambda: ["sm_80", "sm_90"])
    found = gpus(1)
    assert found.level == AMISS
    assert "GPU 0 (NVIDIA B200) has compute capability 10.0" in found.seen and "sm_80, sm_90 alone" in found.seen


def test_a_gpu_for_which_torch_has_code_is_fine(one_gpu: pytest.MonkeyPatch) -> None:
    one_gpu.setattr(torch.cuda, "get_arch_list", lambda: ["sm_90", "sm_100"])
    assert gpus(1).level == OK
