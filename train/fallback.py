"""Whether a machine has GPUs that torch cannot use, so that a run would take the CPU at the GPUs' price."""

import os
import shutil
import subprocess
from pathlib import Path

NVIDIA, DISPLAY_CLASSES = "0x10de", ("0x0300", "0x0302")  # of PCI: VGA and 3D controllers (pci-ids.ucw.cz)
SECONDS_TO_ANSWER = 60.0


def refused_fallback(*, root: Path = Path("/")) -> str:
    """Why this process must not train on a CPU, or ''. It asks nobody where CUDA_VISIBLE_DEVICES hides the GPUs.

    Args:
        root: the tree with /dev and /sys.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return ""
    seen = gpus_in_words(root)
    if not seen:
        return ""
    return (
        f"this machine has GPUs ({seen}), but torch cannot use them, and the CPU would do the work at their price. "
        "Look at nvidia-smi and docker/doctor.py: the driver may be dead or too old, or the container was started "
        'without --gpus all. To use the CPU on purpose, set CUDA_VISIBLE_DEVICES=""'
    )


def gpus_in_words(root: Path) -> str:
    """By what a machine with NVIDIA's GPUs is known, or ''.

    On EC2 the PCI bus alone will do, since its instances with GPUs are rented for them, and where the driver is dead
    nothing else is left. Elsewhere a computer may have a graphics card that nobody means to train on.
    """
    devices = sorted(path.name for path in (root / "dev").glob("nvidia[0-9]*"))
    if devices:
        return f"/dev/{devices[0]} is there"
    if listed := _listed():
        return f"nvidia-smi lists {listed}"
    on_bus = _on_pci_bus(root)
    if on_bus and _text(root / "sys/class/dmi/id/sys_vendor") == "Amazon EC2":
        return f"{on_bus} of NVIDIA's on the PCI bus"
    return ""


def _listed() -> int:
    if shutil.which("nvidia-smi") is None:
        return 0
    command = ["nvidia-smi", "-L"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_TO_ANSWER, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in done.stdout.splitlines())


def _on_pci_bus(root: Path) -> int:
    devices = (root / "sys/bus/pci/devices").glob("*")
    return sum(_text(at / "vendor") == NVIDIA and _text(at / "class")[:6] in DISPLAY_CLASSES for at in devices)


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
