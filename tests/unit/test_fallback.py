"""On a machine with GPUs that torch cannot use, a run is refused; trees and nvidia-smi are stand-ins."""

import os
from pathlib import Path

import pytest

from tests.gpu_stand_ins import nvidia_smi, program
from tests.integration.problem import command
from tests.processes import start
from train import fallback
from train.fallback import refused_fallback


@pytest.fixture(autouse=True)
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs, and no other NVIDIA tools; the GPUs are not hidden."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/bin:/usr/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    nvidia_smi(folder, 0)
    return folder


def tree(root: Path, *, device: bool = False, on_bus: int = 0, vendor: str = "QEMU") -> Path:
    """A machine's /dev and /sys."""
    (root / "dev").mkdir(parents=True)
    if device:
        (root / "dev/nvidia0").touch()
    for number in range(on_bus):
        at = root / f"sys/bus/pci/devices/0000:00:{number:02x}.0"
        at.mkdir(parents=True)
        (at / "vendor").write_text("0x10de\n")
        (at / "class").write_text("0x030200\n")
    (root / "sys/class/dmi/id").mkdir(parents=True)
    (root / "sys/class/dmi/id/sys_vendor").write_text(f"{vendor}\n")
    return root


def test_a_machine_without_gpus_may_train_on_its_cpu(tmp_path: Path) -> None:
    assert refused_fallback(root=tree(tmp_path / "root", vendor="Amazon EC2")) == ""


def test_a_drivers_device_is_enough(tmp_path: Path) -> None:
    assert "(/dev/nvidia0 is there)" in refused_fallback(root=tree(tmp_path / "root", device=True))


def test_gpus_that_nvidia_smi_lists_are_enough(tmp_path: Path, tools: Path) -> None:
    nvidia_smi(tools, 8)
    assert "(nvidia-smi lists 8)" in refused_fallback(root=tree(tmp_path / "root"))


def test_on_ec2_gpus_on_the_bus_are_enough_since_a_dead_driver_leaves_no_more(tmp_path: Path, tools: Path) -> None:
    program(tools, "nvidia-smi", "#!/bin/sh\nexit 9\n")
    ec2 = tree(tmp_path / "ec2", on_bus=8, vendor="Amazon EC2")
    assert "(8 of NVIDIA's on the PCI bus)" in refused_fallback(root=ec2)
    assert refused_fallback(root=tree(tmp_path / "desktop", on_bus=1)) == ""


def test_a_driver_that_does_not_answer_does_not_hold_up_the_run(
    tmp_path: Path, tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fallback, "SECONDS_TO_ANSWER", 0.5)
    program(tools, "nvidia-smi", "#!/bin/sh\nexec sleep 60\n")
    assert refused_fallback(root=tree(tmp_path / "root")) == ""


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_who_hides_the_gpus_wants_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hidden: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert refused_fallback(root=tree(tmp_path / "root", device=True)) == ""


@pytest.mark.slow
def test_a_run_is_refused_on_each_machine_and_says_so_there(tmp_path: Path, tools: Path, shards: Path) -> None:
    """Two machines whose drivers show GPUs that torch cannot use."""
    nvidia_smi(tools, 8)
    env = {"PATH": os.environ["PATH"], "CUDA_VISIBLE_DEVICES": "0"}
    argv = command(shards, tmp_path / "run", "max_duration=1ba")
    started = start(argv, tmp_path / "log", ranks=2, nodes=2, env=env)
    try:
        for process in started.ranks:
            process.join(60)
        assert [process.exitcode for process in started.ranks] == [2, 2]
    finally:
        started.kill()
    for rank in (0, 1):
        said = started.output(rank)
        assert said.count("this machine has GPUs (nvidia-smi lists 8), but torch cannot use them") == 1, said
    assert not (tmp_path / "run").exists()
