"""EC2's instances and GPUs, from infra/plan/machines.yaml."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

TABLE = Path(__file__).with_name("machines.yaml")


class UnknownMachineError(ValueError):
    """No such instance type in the table; the message lists those there are."""


@dataclass(frozen=True)
class Machine:
    """One instance type. Prices are USD an hour; `gpu_images_per_sec` is of one GPU at 224 px."""

    name: str
    gpu: str
    gpus: int
    vcpus: int
    network_gbit: float
    efa: bool
    nvme_gb: float
    nvme_gb_per_sec: float
    usd_per_hour: float
    spot_usd_per_hour: float
    gpu_images_per_sec: float


def read_table() -> dict[str, Any]:
    """The whole table, as it is in the file."""
    table: dict[str, Any] = yaml.safe_load(TABLE.read_text())
    return table


def machine(name: str) -> Machine:
    """Return one instance type.

    Raises:
        UnknownMachineError: it is not in the table.
    """
    table = read_table()
    if name not in table["machines"]:
        raise UnknownMachineError(f"{name}: not in infra/plan/machines.yaml, which has {', '.join(table['machines'])}")
    row = table["machines"][name]
    return Machine(name=name, gpu_images_per_sec=table["gpus"][row["gpu"]]["pytorch"], **row)
