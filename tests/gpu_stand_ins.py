"""Programs that answer as NVIDIA's, libfabric's and the kernel's do, for machines that have no GPU."""

import stat
from collections.abc import Mapping
from pathlib import Path

HEALTHY = {
    "name": "NVIDIA A100-SXM4-40GB",
    "ecc.errors.uncorrected.volatile.total": "0",
    "retired_pages.pending": "[N/A]",
    "remapped_rows.pending": "0",
    "remapped_rows.failure": "0",
    "clocks_event_reasons.hw_thermal_slowdown": "Not Active",
    "clocks_event_reasons.hw_power_brake_slowdown": "Not Active",
}
"""What nvidia-smi says of a GPU that is well."""

# As nvidia-smi does: a row for each GPU with the values in the fields' order; an unknown field ends it with status 2.
SMI = """#!{python}
import sys
gpus = {gpus!r}
if "-L" in sys.argv:
    print("".join(f"GPU {{index}}: {{gpu['name']}} (UUID: GPU-{{index}})\\n" for index, gpu in enumerate(gpus)), end="")
    sys.exit(0)
fields = next(word.partition("=")[2].split(",") for word in sys.argv if word.startswith("--query-"))
for index, gpu in enumerate(gpus):
    values = {{**gpu, "index": str(index), "gpu_bus_id": f"00000000:{{index:02X}}:00.0"}}
    for field in fields:
        if field not in values:
            print(f'Field "{{field}}" is not a valid field to query.')
            sys.exit(2)
    print(", ".join(values[field] for field in fields))
"""


def program(folder: Path, name: str, text: str) -> None:
    """Put a program there."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)


def nvidia_smi(folder: Path, gpus: int, *changed: Mapping[str, str], python: str = "/usr/bin/env python3") -> None:
    """An nvidia-smi with so many GPUs that are well, but for what is changed of the first ones."""
    listed = [{**HEALTHY, **(changed[index] if index < len(changed) else {})} for index in range(gpus)]
    program(folder, "nvidia-smi", SMI.format(gpus=listed, python=python))


def kernel_log(folder: Path, *lines: str, code: int = 0) -> None:
    """A dmesg with these lines."""
    text = "".join(f"echo '{line}'\n" for line in lines)
    program(folder, "dmesg", f"#!/bin/sh\n{text}exit {code}\n")
