"""EC2's instances and GPUs, from infra/plan/machines.yaml; prices from infra/plan/prices.py where it has read newer."""

import datetime
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

TABLE = Path(__file__).with_name("machines.yaml")
PRICES_VARIABLE = "PRICES_FILE"  # another place than beside the table for what infra/plan/prices.py reads
ASK_AWS = "`python infra/plan/prices.py` asks AWS"
DAYS_A_PRICE_LASTS = 183


class UnknownMachineError(ValueError):
    """No such instance type in the table; the message lists those there are."""


class PricesFileError(ValueError):
    """The file of prices cannot be read; the message names it."""


@dataclass(frozen=True)
class Machine:
    """One instance type. Prices are USD an hour, None where unknown; `gpu_images_per_sec` is of one GPU at 224 px.

    Attributes:
        compute_capability: of its GPUs, such as "9.0"; "" where that is not known.
        prices_read: when, as 2026-02 or 2026-02-09.
        region: whose prices they are.
        efa_devices: how many EFA interfaces it can have; 0 where that is not known.
        allreduce_gb_per_sec: bus bandwidth of an all-reduce over its own GPUs; None where no figure is known.
    """

    name: str
    gpu: str
    gpus: int
    vcpus: int
    network_gbit: float
    efa: bool
    nvme_gb: float
    nvme_gb_per_sec: float
    usd_per_hour: float | None
    spot_usd_per_hour: float | None
    gpu_images_per_sec: float
    compute_capability: str = ""
    prices_read: str = ""
    region: str = "us-east-1"
    efa_devices: int = 0
    allreduce_gb_per_sec: float | None = None


def read_table() -> dict[str, Any]:
    """The whole table, as it is in the file."""
    table: dict[str, Any] = yaml.safe_load(TABLE.read_text())
    return table


def machine(name: str) -> Machine:
    """Return one instance type.

    Raises:
        UnknownMachineError: it is not in the table.
        PricesFileError: the prices that were read last are damaged.
    """
    table = read_table()
    if name not in table["machines"]:
        raise UnknownMachineError(f"{name}: not in infra/plan/machines.yaml, which has {', '.join(table['machines'])}")
    row = {"usd_per_hour": None, "spot_usd_per_hour": None, "prices_read": table["prices_read"]}
    row |= {"region": table["region"]} | table["machines"][name]
    gpu = table["gpus"][row["gpu"]]
    return Machine(
        name=name,
        gpu_images_per_sec=gpu["pytorch"],
        compute_capability=gpu["compute_capability"],
        allreduce_gb_per_sec=gpu.get("allreduce_gb_per_sec"),
        **(row | newer_prices(name, than=row["prices_read"])),
    )


def prices_file() -> Path:
    """Where infra/plan/prices.py writes, and plan.py and cli.py look."""
    return Path(os.environ.get(PRICES_VARIABLE) or TABLE.with_name("prices.json"))


def newer_prices(name: str, *, than: str) -> dict[str, Any]:
    """A machine's prices as AWS gave them last, if that is later; a price that AWS did not give is None."""
    path = prices_file()
    if not path.is_file():
        return {}
    try:
        read = json.loads(path.read_text())
        if day_of(read["read"]) < day_of(than):
            return {}
        return {
            "usd_per_hour": read["on_demand"].get(name),
            "spot_usd_per_hour": read["spot"].get(name),
            "prices_read": read["read"],
            "region": read["region"],
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise PricesFileError(
            f"{path} is not what infra/plan/prices.py writes; remove it, or run that again"
        ) from error


def day_of(date: str) -> datetime.date:
    """The day that a date like 2026-02 or 2026-02-09 means; of a month, its first."""
    return datetime.date.fromisoformat(date if date.count("-") == 2 else f"{date}-01")


def price_warnings(dates: Iterable[str], today: datetime.date | None = None) -> list[str]:
    """What has to be said of prices that were read on these dates: a line for each that is older than half a year."""
    now = today or datetime.datetime.now(datetime.UTC).date()
    ages = {date: (now - day_of(date)).days for date in sorted(set(dates))}
    return [
        f"WARNING: the prices are of {date}, {age} days ago: do not plan money with them. {ASK_AWS}"
        for date, age in ages.items()
        if age > DAYS_A_PRICE_LASTS
    ]


def no_price(on: Machine, *, spot: bool = False) -> str:
    """What is said where a price is wanted and none is known."""
    return f"no price of {on.name}{' on spot' * spot} is known; {ASK_AWS}"
