"""infra/aws/cluster.yaml with a stack's outputs and the queues in it: what `pcluster create-cluster` takes."""

import copy
import ipaddress
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

import yaml

from infra.aws.queues import BLOCK, CAPACITY_TYPES, RESERVED, Queue

TEMPLATE = Path(__file__).with_name("cluster.yaml")
CONTAINER_SCRIPT = Path(__file__).with_name("containers.sh")
PCLUSTER_VERSION = "3.16.1"  # `make infra-tools` installs it; a cluster is updated by the version that made it

MOST_SSH_ADDRESSES = 256
NOBODY = "127.0.0.1/32"  # an address that nothing comes from
# What a cluster may do without; render() then leaves its place out of the file.
OPTIONAL = ("FileSystem", "KeyName", "SshCidr")
LEFT_OUT = "left-out"


class ClusterError(ValueError):
    """A value that the template needs is missing; the message names it."""


def render(values: Mapping[str, str], queues: Sequence[Queue], max_nodes: int) -> dict[str, Any]:
    """Return the configuration as plain data.

    Args:
        values: by the names in the template: the foundation stack's outputs, Region, Partition, Name, ContainerScript;
            and, where they are wanted, KeyName with SshCidr.
        queues: one or more.
        max_nodes: of each queue without a reservation.

    Raises:
        ClusterError: one that has to be there is missing or empty.
    """
    wanted = set(re.findall(r"\$\{(\w+)\}", TEMPLATE.read_text()))
    missing = sorted(name for name in wanted if not values.get(name) and name not in OPTIONAL)
    if missing:
        raise ClusterError(f"infra/aws/cluster.yaml needs {', '.join(missing)}; does the foundation stack give them?")
    if not queues:
        raise ClusterError("a cluster needs a queue; --queues names them, such as p4d-spot")
    filled = {name: values.get(name) or LEFT_OUT for name in wanted}
    config: dict[str, Any] = yaml.safe_load(Template(TEMPLATE.read_text()).substitute(filled))
    if not values.get("FileSystem"):
        del config["SharedStorage"]
    check_ssh(values.get("KeyName", ""), values.get("SshCidr", ""))
    if not values.get("KeyName"):  # without the section ParallelCluster opens port 22 to everyone
        config["HeadNode"]["Ssh"] = {"AllowedIps": NOBODY}
    (pattern,) = config["Scheduling"]["SlurmQueues"]
    config["Scheduling"]["SlurmQueues"] = [_queue(pattern, queue, max_nodes) for queue in queues]
    return config


def _queue(pattern: Mapping[str, Any], queue: Queue, max_nodes: int) -> dict[str, Any]:
    made = copy.deepcopy(dict(pattern))
    made |= {"Name": queue.name, "CapacityType": CAPACITY_TYPES[queue.paid]}
    resource = made["ComputeResources"][0]
    resource |= {"Name": queue.kind, "Instances": [{"InstanceType": queue.machine.name}]}
    resource |= {"MinCount": 0, "MaxCount": queue.reserved_nodes or max_nodes}
    resource["Efa"] = {"Enabled": queue.machine.efa}
    if queue.paid in (BLOCK, RESERVED):
        resource["CapacityReservationTarget"] = {"CapacityReservationId": queue.reservation}
        del made["Networking"]["PlacementGroup"]  # a reservation brings its own
    if queue.paid == BLOCK:  # ParallelCluster needs all of it, always; it is paid for in any case
        resource["MinCount"] = queue.reserved_nodes
    return made


def check_ssh(key_name: str, cidr: str) -> None:
    """Refuse ssh from nowhere, or from more than a few addresses.

    Raises:
        ClusterError: a key pair is named without addresses, or these are no network of at most 256.
    """
    if key_name and not cidr:
        raise ClusterError("--key-name needs --ssh-cidr: from where ssh may come, such as 203.0.113.7/32")
    if cidr and not key_name:
        raise ClusterError("--ssh-cidr needs --key-name: the EC2 key pair that opens the head node")
    if not cidr:
        return
    try:
        network = ipaddress.IPv4Network(cidr)
    except ValueError as error:
        raise ClusterError(f"--ssh-cidr {cidr}: {error}; give addresses such as 203.0.113.7/32") from None
    if network.num_addresses > MOST_SSH_ADDRESSES:
        raise ClusterError(f"--ssh-cidr {cidr} opens ssh to {network.num_addresses:,} addresses; give a /24 or smaller")


def write(config: Mapping[str, Any], path: Path) -> None:
    """Write it as YAML without anchors, which `pcluster` would take but people find hard to read."""
    path.write_text(yaml.dump(config, Dumper=_PlainDumper, sort_keys=False))


class _PlainDumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True
