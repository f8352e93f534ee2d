"""The doctor says what is amiss with a machine; torch and the EFA tools are stand-ins where there are none."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from infra.launch.fabric import ROOT_VARIABLE
from tests.conftest import REPOSITORY

# By its file: another package on this machine may be called docker.
_spec = importlib.util.spec_from_file_location("doctor", REPOSITORY / "docker/doctor.py")
assert _spec and _spec.loader
doctor = importlib.util.module_from_spec(_spec)
sys.modules["doctor"] = doctor  # its dataclass looks there
_spec.loader.exec_module(doctor)


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
    found = doctor.gpus(1)
    assert found.level == doctor.AMISS
    assert "GPU 0 (NVIDIA B200) has compute capability 10.0" in found.seen and "sm_80, sm_90 alone" in found.seen


def test_a_gpu_for_which_torch_has_code_is_fine(one_gpu: pytest.MonkeyPatch) -> None:
    one_gpu.setattr(torch.cuda, "get_arch_list", lambda: ["sm_90", "sm_100"])
    assert doctor.gpus(1).level == doctor.OK


def efa_tools(folder: Path, monkeypatch: pytest.MonkeyPatch, *, code: int, endpoints: int = 0) -> None:
    """An fi_info that answers as libfabric's does (an entry for each endpoint; status 61, ENODATA, without any)."""
    tool = folder / "fi_info"
    tool.write_text("#!/bin/sh\n" + "echo 'provider: efa'\n" * endpoints + f"exit {code}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


@pytest.mark.parametrize("plugin", ["opt/amazon/ofi-nccl/lib/x86_64-linux-gnu", "opt/aws-ofi-nccl/lib", ""])
def test_the_doctor_finds_nccls_plugin_where_awss_installer_puts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plugin: str
) -> None:
    efa_tools(tmp_path, monkeypatch, code=0, endpoints=4)
    if plugin:
        (tmp_path / plugin).mkdir(parents=True)
        (tmp_path / plugin / "libnccl-net.so").touch()
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path))
    found = doctor.efa(wanted=True)
    assert "4 endpoints" in found.seen
    assert found.level == (doctor.OK if plugin else doctor.AMISS)
    assert (f"NCCL plug-in {tmp_path / plugin}/libnccl-net.so" if plugin else "is in none of /opt/amazon") in found.seen


def test_the_doctor_says_that_there_is_no_efa_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    efa_tools(tmp_path, monkeypatch, code=61)
    assert "no device" in doctor.efa(wanted=True).seen
