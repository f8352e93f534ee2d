"""The cluster's queues: which machines each has, and how these are paid for.

A queue's name says both: `p4d` (on demand), `p4d-spot`, `p5-block` (a capacity block that was bought ahead) and
`p5-reserved` (a capacity reservation of one's own).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from infra.aws.spending import RefusedError
from infra.plan.machines import Machine, machine, read_table

DEFAULT_QUEUES = "p4d,p4d-spot,g5,g5-spot"
ON_DEMAND, SPOT, BLOCK, RESERVED = "", "spot", "block", "reserved"
CAPACITY_TYPES = {ON_DEMAND: "ONDEMAND", SPOT: "SPOT", BLOCK: "CAPACITY_BLOCK", RESERVED: "ONDEMAND"}
# EC2's quotas of vCPUs, by family and by how they are paid for; blocks have none.
# (docs.aws.amazon.com/AWSEC2/latest/UserGuide/using-spot-limits.html and ec2-on-demand-instances.html#ec2-on-demand-
# instances-limits; the spot quota of p6 is written down from other people's scripts: where it is wrong, `check` says
# that AWS does not know it.)
ON_DEMAND_QUOTAS = {"p": "L-417A185B", "g": "L-DB2E81BA"}
SPOT_QUOTAS = {"g": "L-3819A6DF", "p4": "L-7212CCBC", "p5": "L-C4BD4855", "p6": "L-C4BD4855"}


@dataclass(frozen=True)
class Queue:
    """One queue of the cluster.

    Attributes:
        paid: ON_DEMAND, SPOT, BLOCK or RESERVED.
        reservation: the id of the block or reservation, else "".
        reserved_nodes: how many machines it has; 0 without one.
        zone: where these are; "" without one.
    """

    machine: Machine
    paid: str
    reservation: str = ""
    reserved_nodes: int = 0
    zone: str = ""

    @property
    def kind(self) -> str:
        """The machine's family, such as "p4d" or "p6-b200"."""
        return self.machine.name.partition(".")[0]

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.paid}" if self.paid else self.kind

    @property
    def quota(self) -> str:
        """The code of EC2's quota that its machines count against; "" where none does."""
        if self.paid in (BLOCK, RESERVED):
            return ""
        if self.paid == SPOT:
            return SPOT_QUOTAS.get(self.kind[:2]) or SPOT_QUOTAS.get(self.kind[0], "")
        return ON_DEMAND_QUOTAS.get(self.kind[0], "")


def kinds() -> dict[str, str]:
    """The largest machine of each family in infra/plan/machines.yaml, by the family's name."""
    largest: dict[str, str] = {}
    machines = read_table()["machines"]
    for name, row in machines.items():
        kind = name.partition(".")[0]
        if kind not in largest or (row["gpus"], row["vcpus"]) > (
            machines[largest[kind]]["gpus"],
            machines[largest[kind]]["vcpus"],
        ):
            largest[kind] = name
    return largest


def queue_of(name: str) -> Queue:
    """The queue of this name; a block's or a reservation's size is not known by it.

    Raises:
        RefusedError: no machine is called so.
    """
    kind, dash, paid = name.rpartition("-")
    if not dash or paid not in (SPOT, BLOCK, RESERVED):
        kind, paid = name, ON_DEMAND
    if kind not in kinds():
        raise RefusedError(
            f"queue {name}: there is none; of {', '.join(kinds())}, with -spot for spot instances, such as p4d-spot"
        )
    return Queue(machine(kinds()[kind]), paid)


def queues_of(names: str) -> list[Queue]:
    """The queues that are asked for by name, each once.

    Raises:
        RefusedError: there is none, or one is unknown, named twice, or wants a reservation.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if not wanted:
        raise RefusedError(
            f"--queues names none; of {', '.join(kinds())}, with -spot for spot, such as {DEFAULT_QUEUES}"
        )
    repeated = sorted({name for name in wanted if wanted.count(name) > 1})
    if repeated:
        raise RefusedError(f"--queues names {', '.join(repeated)} twice")
    found = [queue_of(name) for name in wanted]
    for queue in found:
        if queue.paid in (BLOCK, RESERVED):
            raise RefusedError(
                f"--queues {queue.name}: such a queue comes from --capacity-block CR-ID or --reservation CR-ID"
            )
    return found


def reserved_queues(ec2: Any, blocks: Sequence[str], reservations: Sequence[str], zone: str) -> list[Queue]:
    """The queues of capacity blocks and reservations, as EC2 describes them.

    Args:
        ec2: botocore's client.
        blocks, reservations: their ids, "cr-...".
        zone: where the cluster is to be; "" where that is not settled.

    Raises:
        RefusedError: one has ended, is in another zone, is of the other kind or of a machine without a row.
    """
    ids = [*blocks, *reservations]
    if not ids:
        return []
    entries = ec2.describe_capacity_reservations(CapacityReservationIds=ids)["CapacityReservations"]
    found = {entry["CapacityReservationId"]: entry for entry in entries}
    queues = []
    for number in ids:
        if number not in found:
            raise RefusedError(f"{number}: EC2 has no such capacity reservation in this region")
        _check_reservation(found[number], zone, block=number in blocks)
        queue = queue_of(str(found[number]["InstanceType"]).partition(".")[0])
        if queue.machine.name != found[number]["InstanceType"]:
            raise RefusedError(f"{number} is for {found[number]['InstanceType']}; queues are of {queue.machine.name}")
        paid = BLOCK if number in blocks else RESERVED
        nodes, where = int(found[number]["TotalInstanceCount"]), str(found[number]["AvailabilityZone"])
        queues.append(Queue(queue.machine, paid, number, nodes, where))
    return queues


def _check_reservation(entry: dict[str, Any], zone: str, *, block: bool) -> None:
    number, state = entry["CapacityReservationId"], str(entry["State"])
    is_block = entry.get("ReservationType") == "capacity-block"
    if is_block != block:
        right = "--capacity-block" if is_block else "--reservation"
        raise RefusedError(f"{number} is a {'capacity block' if is_block else 'reservation on demand'}; give {right}")
    if state not in ("active", "scheduled", "pending", "payment-pending", "assessing", "delayed"):
        option = "--capacity-block" if block else "--reservation"
        raise RefusedError(f"{number} is {state}; it gives no machines any more. {option} '' leaves it out")
    if zone and entry["AvailabilityZone"] != zone:
        raise RefusedError(f"{number} is in {entry['AvailabilityZone']}, the cluster in {zone}; give --zone")
