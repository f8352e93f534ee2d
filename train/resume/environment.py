"""What decides the bits of a result besides the settings: the versions of the libraries and the hardware."""

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from composer.devices import Device
from composer.utils import dist

from train.step.version import STEP

PACKAGES = {"torchvision": "torchvision", "composer": "mosaicml", "streaming": "mosaicml-streaming"}
CPUINFO = Path("/proc/cpuinfo")


def environment_of(device: Device, *, decoder_version: str) -> dict[str, Any]:
    """Return each part by its name, over all ranks; collective. Where ranks differ, a part is "this | that".

    On a CPU the number of threads counts: a sum is cut into as many pieces. So does the processor, by whose
    instructions kernels are chosen.
    """
    mine = {"torch": torch.__version__, "decoder": decoder_version}  # torch's has its CUDA, such as 2.7.0+cu126
    mine |= {name: version(package) for name, package in PACKAGES.items()}
    if device.name == "gpu":
        cudnn = torch.backends.cudnn.version()
        mine |= {"device": torch.cuda.get_device_name(), "cudnn": str(cudnn), "step": str(STEP)}
    else:
        mine |= {"device": processor_name(), "threads_per_rank": str(torch.get_num_threads())}
    everywhere: list[dict[str, str]] = dist.all_gather_object(mine)
    return {name: " | ".join(sorted({rank[name] for rank in everywhere})) for name in sorted(mine)}


def processor_name() -> str:
    """Return the CPU's model, such as "AMD EPYC 9R14", or its architecture where Linux does not tell."""
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        return platform.machine()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())
