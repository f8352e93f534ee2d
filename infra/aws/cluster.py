"""infra/aws/cluster.yaml with a stack's outputs in it: what `pcluster create-cluster` takes."""

import ipaddress
import re
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

import yaml

TEMPLATE = Path(__file__).with_name("cluster.yaml")
CAPACITY_BLOCK_QUEUE = "p5-block"
NOT_WANTED = "not-wanted"

# What a cluster may do without, and where it then leaves the file.
MOST_SSH_ADDRESSES = 256
NOBODY = "127.0.0.1/32"  # an address that nothing comes from
OPTIONAL = ("FileSystem", "KeyName", "SshCidr", "CapacityBlockId", "CapacityBlockNodes")


class ClusterError(ValueError):
    """A value that the template wants is missing; the message names it."""


def render(values: Mapping[str, str | int]) -> dict[str, Any]:
    """Return the configuration as plain data.

    Args:
        values: by the names in the template: the foundation stack's outputs, Region, Partition, Name, MaxNodes; and,
            where they are wanted, KeyName with SshCidr, CapacityBlockId with CapacityBlockNodes.

    Raises:
        ClusterError: one that has to be there is missing or empty.
    """
    wanted = set(re.findall(r"\$\{(\w+)\}", TEMPLATE.read_text()))
    missing = sorted(name for name in wanted if not values.get(name) and name not in OPTIONAL)
    if missing:
        raise ClusterError(f"infra/aws/cluster.yaml wants {', '.join(missing)}; does the foundation stack give them?")
    filled = {name: str(values.get(name) or NOT_WANTED) for name in wanted}
    config: dict[str, Any] = yaml.safe_load(Template(TEMPLATE.read_text()).substitute(filled))
    if not values.get("FileSystem"):
        del config["SharedStorage"]
    check_ssh(str(values.get("KeyName") or ""), str(values.get("SshCidr") or ""))
    if not values.get("KeyName"):  # without the section ParallelCluster opens port 22 to everyone
        config["HeadNode"]["Ssh"] = {"AllowedIps": NOBODY}
    queues = config["Scheduling"]["SlurmQueues"]
    if not values.get("CapacityBlockId"):
        config["Scheduling"]["SlurmQueues"] = [queue for queue in queues if queue["Name"] != CAPACITY_BLOCK_QUEUE]
    return config


def check_ssh(key_name: str, cidr: str) -> None:
    """Refuse ssh from nowhere, or from more than a few addresses.

    Raises:
        ClusterError: a key pair is named without addresses, or these are no network of at most 256.
    """
    if key_name and not cidr:
        raise ClusterError("--key-name wants --ssh-cidr: from where ssh may come, such as 203.0.113.7/32")
    if cidr and not key_name:
        raise ClusterError("--ssh-cidr wants --key-name: the EC2 key pair that opens the head node")
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
