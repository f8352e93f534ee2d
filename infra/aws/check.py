"""Can a cluster be had here? Read-only questions, asked before anything is made that bills.

    python infra/aws/cli.py check --region us-east-1 --queues p4d-spot,g5

`up` asks them first. A line is `ok`, `note` (worth knowing) or `AMISS` (nothing is made until it is mended).
"""

import datetime
import functools
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from infra.aws import cluster, head
from infra.aws.account import Account
from infra.aws.queues import SPOT, Queue
from infra.aws.spending import RefusedError

OK, NOTE, AMISS = "ok", "note", "AMISS"
NODE_AT_LEAST = (18,)  # AWS's CDK, which ParallelCluster runs, has ended support for older ones
SECONDS_TO_ANSWER = 60.0


@dataclass(frozen=True)
class Finding:
    """What was looked at, and what was seen; `level` is OK, NOTE or AMISS."""

    level: str
    what: str
    seen: str

    def __str__(self) -> str:
        return f"{self.level:<6} {self.what:<16} {self.seen}"


def check(account: Account, queues: Sequence[Queue], zone: str, max_nodes: int, *, with_cluster: bool) -> list[Finding]:
    """Look at everything that can be looked at; nothing is changed.

    Args:
        account: whose.
        queues: those of the cluster.
        zone: where it is to be; "" where no zone has all machines.
        max_nodes: of each queue.
        with_cluster: whether there is to be one; else the tools that make it are not looked for.
    """
    findings = [*tools()] if with_cluster else []
    findings += offers(account.client("ec2"), queues, zone)
    findings += quotas(account.client("service-quotas"), queues, max_nodes)
    findings += spot_prices(account.client("ec2"), queues, zone)
    return findings


def show(findings: Iterable[Finding]) -> None:
    """Print them, then refuse if one is amiss.

    Raises:
        RefusedError: one is.
    """
    listed = list(findings)
    for finding in listed:
        print(f"  {finding}")
    amiss = [finding.what for finding in listed if finding.level == AMISS]
    if amiss:
        raise RefusedError(f"{', '.join(dict.fromkeys(amiss))}: see above; nothing was made")


def tools() -> list[Finding]:
    """Node.js and ParallelCluster's command, of the version that the templates were checked with."""
    return [_safely("Node.js", _node), _safely("pcluster", _pcluster)]


def _node() -> Finding:
    if shutil.which("node") is None:
        return Finding(AMISS, "Node.js", "not found; pcluster runs AWS's CDK by it: install Node.js 18 or newer")
    said = _ask(["node", "--version"])
    number = re.match(r"v(\d+)", said)
    if number is None or (int(number[1]),) < NODE_AT_LEAST:
        return Finding(AMISS, "Node.js", f"{said or 'no version'}; 18 or newer is needed")
    return Finding(OK, "Node.js", said)


def _pcluster() -> Finding:
    try:
        said = head.pcluster("version").get("version", "")
    except RefusedError as error:
        return Finding(AMISS, "pcluster", str(error))
    if said != cluster.PCLUSTER_VERSION:
        wanted = f"{cluster.PCLUSTER_VERSION} is needed: `make infra-tools` installs it"
        return Finding(AMISS, "pcluster", f"version {said or 'unknown'}; {wanted}")
    return Finding(OK, "pcluster", said)


def cluster_in_default_network(account: Account, queues: Sequence[Queue], zone: str, max_nodes: int) -> Finding:
    """Have pcluster check the cluster's file before the foundation exists, in the default network's place.

    The network, the policies and the script that the stack will make are stood in for; `up` checks the real file again
    before it makes the cluster.
    """
    ec2 = account.client("ec2")
    subnets = ec2.describe_subnets(
        Filters=[{"Name": "default-for-az", "Values": ["true"]}, {"Name": "availability-zone", "Values": [zone]}]
    )["Subnets"]
    if not subnets:
        return Finding(NOTE, "cluster file", f"no default subnet in {zone} to check it in; `up` checks it later")
    vpc, subnet = subnets[0]["VpcId"], subnets[0]["SubnetId"]
    groups = ec2.describe_security_groups(
        Filters=[{"Name": "vpc-id", "Values": [vpc]}, {"Name": "group-name", "Values": ["default"]}]
    )["SecurityGroups"]
    policy = f"arn:{account.partition}:iam::aws:policy/AmazonS3ReadOnlyAccess"
    stand_ins = {
        **{"HeadSubnet": subnet, "PrivateSubnet": subnet, "ComputeSecurityGroup": groups[0]["GroupId"]},
        **{"TrainPolicy": policy, "ConvertPolicy": policy, "ContainerScript": "s3://not-there-yet/containers.sh"},
        **{"Region": account.region, "Partition": account.partition, "Name": account.name},
    }
    rendered = cluster.render(stand_ins, queues, max_nodes)
    for part in (rendered["HeadNode"], *rendered["Scheduling"]["SlurmQueues"]):
        del part["CustomActions"]  # pcluster looks whether the script is there
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "cluster.yaml"
        cluster.write(rendered, config)
        try:
            head.dry_run(f"{account.name}-check", account.region, config)
        except (head.HeadError, RefusedError) as error:
            return Finding(AMISS, "cluster file", str(error))
    return Finding(OK, "cluster file", f"pcluster would take it (in the default network of {zone})")


def zones_with(ec2: Any, types: Iterable[str]) -> dict[str, set[str]]:
    """The zones that offer each instance type."""
    wanted = sorted(set(types))
    pages = ec2.get_paginator("describe_instance_type_offerings").paginate(
        LocationType="availability-zone", Filters=[{"Name": "instance-type", "Values": wanted}]
    )
    found: dict[str, set[str]] = {name: set() for name in wanted}
    for page in pages:
        for offer in page["InstanceTypeOfferings"]:
            found[offer["InstanceType"]].add(offer["Location"])
    return found


def choose_zone(ec2: Any, queues: Sequence[Queue]) -> str:
    """The first zone that offers every queue's machine, and has the reservations; '' where none does."""
    if not queues:
        zones = ec2.describe_availability_zones(
            Filters=[{"Name": "zone-type", "Values": ["availability-zone"]}, {"Name": "state", "Values": ["available"]}]
        )["AvailabilityZones"]
        return min(str(zone["ZoneName"]) for zone in zones)
    in_all = set.intersection(*zones_with(ec2, [queue.machine.name for queue in queues]).values())
    for queue in queues:
        in_all &= {queue.zone} if queue.zone else in_all
    return min(in_all, default="")


def offers(ec2: Any, queues: Sequence[Queue], zone: str) -> list[Finding]:
    """Whether the zone has each queue's machine."""
    names = sorted({queue.machine.name for queue in queues})
    if not names:
        return []
    found = zones_with(ec2, names)
    lacking = [name for name in names if zone not in found[name]]
    if not lacking:
        return [Finding(OK, "machines", f"{zone} offers {', '.join(names)}")]
    zones = ", ".join(f"{queue.reservation} in {queue.zone}" for queue in queues if queue.zone)
    lines = "; ".join(f"{name} in {', '.join(sorted(found[name])) or 'no zone of this region'}" for name in names)
    where = f"{zone} has no {', '.join(lacking)}" if zone else "no zone has all of them"
    return [
        Finding(
            AMISS,
            "machines",
            f"{where}: {'; '.join(filter(None, [lines, zones]))}. Give other --queues, --zone or --region",
        )
    ]


def quotas(client: Any, queues: Sequence[Queue], max_nodes: int) -> list[Finding]:
    """Whether EC2 lets this account run as many vCPUs."""
    findings = []
    for code in dict.fromkeys(queue.quota for queue in queues if queue.quota):
        of_code = [queue for queue in queues if queue.quota == code]
        findings.append(_safely("quota", _quota(client, code, of_code, max_nodes)))
    return findings


def _quota(client: Any, code: str, queues: Sequence[Queue], max_nodes: int) -> Callable[[], Finding]:
    def look() -> Finding:
        try:
            answer = client.get_service_quota(ServiceCode="ec2", QuotaCode=code)["Quota"]
        except client.exceptions.NoSuchResourceException:  # never raised by AWS or by you: the default holds
            try:
                answer = client.get_aws_default_service_quota(ServiceCode="ec2", QuotaCode=code)["Quota"]
            except client.exceptions.NoSuchResourceException:
                return Finding(NOTE, "quota", f"AWS does not know {code} here; look in Service Quotas, EC2")
        names = ", ".join(queue.name for queue in queues)
        limit, name = int(answer["Value"]), f"{answer['QuotaName']} ({code})"
        one = max(queue.machine.vcpus for queue in queues)
        if limit < one:
            return Finding(
                AMISS,
                "quota",
                f"{name} is {limit} vCPUs, one node of {names} needs {one}; ask for more in Service Quotas",
            )
        if limit < one * max_nodes:
            return Finding(NOTE, "quota", f"{name} is {limit} vCPUs: {limit // one} of {max_nodes} nodes of {names}")
        return Finding(OK, "quota", f"{name}: {limit} vCPUs, {names}")

    return look


def spot_prices(ec2: Any, queues: Sequence[Queue], zone: str) -> list[Finding]:
    """Today's price of each spot queue's machine in the zone."""
    return [
        _safely("spot price", functools.partial(_spot_price, ec2, queue, zone))
        for queue in queues
        if queue.paid == SPOT and zone
    ]


def _spot_price(ec2: Any, queue: Queue, zone: str) -> Finding:
    entries = ec2.describe_spot_price_history(
        InstanceTypes=[queue.machine.name],
        ProductDescriptions=["Linux/UNIX"],
        AvailabilityZone=zone,
        StartTime=datetime.datetime.now(datetime.UTC),
    )["SpotPriceHistory"]
    if not entries:
        return Finding(NOTE, "spot price", f"{queue.machine.name} has none in {zone}: AWS offers no spot of it there")
    newest = max(entries, key=lambda entry: entry["Timestamp"])
    return Finding(OK, "spot price", f"{queue.machine.name} in {zone}: ${float(newest['SpotPrice']):.2f} an hour now")


def _ask(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_TO_ANSWER, check=False)
    return done.stdout.strip()


def _safely(what: str, look: Callable[[], Finding]) -> Finding:
    """A question that this account may not ask is a note: the answer may still be right."""
    try:
        return look()
    except (ClientError, head.HeadError, OSError, subprocess.TimeoutExpired) as error:
        return Finding(NOTE, what, f"could not be looked at: {error}")
