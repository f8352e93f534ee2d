"""`infra/aws/cli.py check`: what would fail after the foundation bills is said before it is made."""

import datetime
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.stub import Stubber

from infra.aws import check, cli, cluster, head
from infra.aws.account import Account
from infra.aws.queues import DEFAULT_QUEUES, Queue, queue_of, queues_of, reserved_queues
from infra.aws.spending import RefusedError
from infra.plan.machines import machine
from tests.conftest import REPOSITORY
from tests.infra.accounts import DATA, gone, stubbed

pytestmark = pytest.mark.usefixtures("aws")
QUOTAS = check.quotas  # the fixture puts a stand-in into the module
VALUES = dict.fromkeys(("HeadSubnet", "PrivateSubnet", "ComputeSecurityGroup", "TrainPolicy", "ConvertPolicy"), "x")
VALUES |= dict.fromkeys(("Region", "Name", "Partition", "ContainerScript"), "x")


@pytest.mark.parametrize(
    ("name", "instance", "paid"),
    [("p4d", "p4d.24xlarge", ""), ("g5-spot", "g5.48xlarge", "spot"), ("p5-block", "p5.48xlarge", "block")],
)
def test_a_queues_name_says_machine_and_price(name: str, instance: str, paid: str) -> None:
    queue = queue_of(name)
    assert (queue.machine.name, queue.paid, queue.name) == (instance, paid, name)


@pytest.mark.parametrize("names", ["", " , ", "x", "p4d,,p4d", "p5-block", "spot", "p4d-cheap"])
def test_queues_that_cannot_be_are_refused(names: str) -> None:
    with pytest.raises(RefusedError):
        queues_of(names)


def offers(stubber: Stubber, **zones: list[str]) -> None:
    rows = [
        {"InstanceType": name.replace("_", "."), "LocationType": "availability-zone", "Location": zone}
        for name, listed in zones.items()
        for zone in listed
    ]
    stubber.add_response("describe_instance_type_offerings", {"InstanceTypeOfferings": rows})


def test_the_zone_is_one_that_has_every_machine() -> None:
    ec2 = boto3.client("ec2")
    with Stubber(ec2) as stubber:
        offers(stubber, p4d_24xlarge=["us-east-1a", "us-east-1d"], g5_48xlarge=["us-east-1b", "us-east-1d"])
        assert check.choose_zone(ec2, queues_of("p4d,g5")) == "us-east-1d"
        offers(stubber, p4d_24xlarge=["us-east-1a"], g5_48xlarge=["us-east-1b"])
        assert check.choose_zone(ec2, queues_of("p4d,g5")) == ""
        offers(stubber, p4d_24xlarge=["us-east-1a"], g5_48xlarge=["us-east-1b"])
        (finding,) = check.offers(ec2, queues_of("p4d,g5"), "")
    assert finding.level == check.AMISS
    assert "g5.48xlarge in us-east-1b; p4d.24xlarge in us-east-1a" in finding.seen and "--queues" in finding.seen


def test_up_makes_nothing_where_the_zone_lacks_a_machine(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It used to make the stack with its NAT gateway, and to fail then."""
    monkeypatch.setattr(check, "tools", list)
    argv = ["up", "--budget-usd", "9", "--email", "me@here.org", "--yes", "--zone", "us-east-1e", "--queues", "p4d"]
    assert cli.main(argv) == 2
    printed = capsys.readouterr()
    assert "us-east-1e has no p4d.24xlarge" in printed.out and "nothing was made" in printed.err
    assert boto3.client("cloudformation").list_stacks()["StackSummaries"] == []
    assert boto3.client("s3").list_buckets()["Buckets"] == []


def quota(stubber: Stubber, vcpus: float) -> None:
    answer = {"Quota": {"QuotaName": "Running On-Demand P instances", "Value": vcpus}}
    stubber.add_response("get_service_quota", answer, {"ServiceCode": "ec2", "QuotaCode": "L-417A185B"})


@pytest.mark.parametrize(
    ("vcpus", "level", "words"),
    [
        (0, check.AMISS, "is 0 vCPUs, one node of p4d needs 96"),
        (95, check.AMISS, "one node of p4d needs 96"),
        (192, check.NOTE, "2 of 4 nodes"),
        (384, check.OK, "384 vCPUs"),
    ],
)
def test_a_quota_is_held_against_one_node_and_against_all(vcpus: float, level: str, words: str) -> None:
    client = boto3.client("service-quotas")
    with Stubber(client) as stubber:
        quota(stubber, vcpus)
        (finding,) = QUOTAS(client, queues_of("p4d"), 4)
    assert finding.level == level and words in finding.seen


def test_a_quota_that_was_never_raised_is_awss_default_and_a_forbidden_question_is_a_note() -> None:
    client = boto3.client("service-quotas")
    with Stubber(client) as stubber:
        stubber.add_client_error("get_service_quota", "NoSuchResourceException")
        stubber.add_response("get_aws_default_service_quota", {"Quota": {"QuotaName": "P", "Value": 0.0}})
        stubber.add_client_error("get_service_quota", "AccessDeniedException")
        first, second = QUOTAS(client, queues_of("p4d,g5"), 4)
    assert first.level == check.AMISS
    assert second.level == check.NOTE and "AccessDenied" in second.seen


def test_on_demand_and_spot_have_quotas_of_their_own() -> None:
    codes = [queue.quota for queue in queues_of("p4d,p4d-spot,p5-spot,g5,g6-spot")]
    assert codes == ["L-417A185B", "L-7212CCBC", "L-C4BD4855", "L-DB2E81BA", "L-3819A6DF"]
    assert queue_of("p5-block").quota == ""


def test_todays_spot_price_is_shown() -> None:
    ec2 = boto3.client("ec2")
    moment = datetime.datetime(2026, 1, 1)
    with Stubber(ec2) as stubber:
        row = {"InstanceType": "g5.48xlarge", "SpotPrice": "6.543", "Timestamp": moment}
        stubber.add_response("describe_spot_price_history", {"SpotPriceHistory": [row]})
        stubber.add_response("describe_spot_price_history", {"SpotPriceHistory": []})
        first, second = check.spot_prices(ec2, queues_of("g5-spot,p4d-spot,g5"), "us-east-1a")
    assert "$6.54 an hour now" in first.seen
    assert second.level == check.NOTE


def reservation(**changed: Any) -> dict[str, Any]:
    entry: dict[str, Any] = {
        **{"CapacityReservationId": "cr-1", "InstanceType": "p5.48xlarge", "State": "active"},
        **{"AvailabilityZone": "us-east-1b", "TotalInstanceCount": 3, "ReservationType": "capacity-block"},
    }
    return {"CapacityReservations": [entry | changed]}


def test_a_capacity_block_becomes_a_queue_that_is_always_there() -> None:
    ec2 = boto3.client("ec2")
    with Stubber(ec2) as stubber:
        stubber.add_response("describe_capacity_reservations", reservation(), {"CapacityReservationIds": ["cr-1"]})
        queues = reserved_queues(ec2, ["cr-1"], [], "us-east-1b")
    (rendered,) = cluster.render(VALUES, queues, 9)["Scheduling"]["SlurmQueues"]
    resource = rendered["ComputeResources"][0]
    assert (rendered["Name"], rendered["CapacityType"]) == ("p5-block", "CAPACITY_BLOCK")
    assert (resource["MinCount"], resource["MaxCount"]) == (3, 3)
    assert resource["CapacityReservationTarget"] == {"CapacityReservationId": "cr-1"}
    assert "PlacementGroup" not in rendered["Networking"]


def test_the_zone_is_that_of_the_block() -> None:
    ec2 = boto3.client("ec2")
    with Stubber(ec2) as stubber:
        stubber.add_response("describe_capacity_reservations", reservation())
        queues = [*queues_of("g5"), *reserved_queues(ec2, ["cr-1"], [], "")]
        offers(stubber, p5_48xlarge=["us-east-1a", "us-east-1b"], g5_48xlarge=["us-east-1a", "us-east-1b"])
        assert check.choose_zone(ec2, queues) == "us-east-1b"
        offers(stubber, p5_48xlarge=["us-east-1b"], g5_48xlarge=["us-east-1a"])
        assert check.choose_zone(ec2, queues) == ""
        offers(stubber, p5_48xlarge=["us-east-1b"], g5_48xlarge=["us-east-1a"])
        (finding,) = check.offers(ec2, queues, "")
    assert finding.level == check.AMISS and "cr-1 in us-east-1b" in finding.seen


def test_a_reservation_on_demand_becomes_a_queue_that_starts_nothing_by_itself() -> None:
    ec2 = boto3.client("ec2")
    with Stubber(ec2) as stubber:
        stubber.add_response("describe_capacity_reservations", reservation(ReservationType="default"))
        queues = reserved_queues(ec2, [], ["cr-1"], "")
    (rendered,) = cluster.render(VALUES, queues, 9)["Scheduling"]["SlurmQueues"]
    resource = rendered["ComputeResources"][0]
    assert (rendered["Name"], rendered["CapacityType"]) == ("p5-reserved", "ONDEMAND")
    assert (resource["MinCount"], resource["MaxCount"]) == (0, 3)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"State": "expired"}, "cr-1 is expired"),
        ({"AvailabilityZone": "us-east-1c"}, "cr-1 is in us-east-1c, the cluster in us-east-1b"),
        ({"ReservationType": "default"}, "give --reservation"),
        ({"InstanceType": "m5.large"}, "there is none"),
        ({"CapacityReservationId": "cr-2"}, "EC2 has no such capacity reservation"),
    ],
)
def test_a_reservation_that_cannot_be_used_is_refused(changed: dict[str, Any], words: str) -> None:
    ec2 = boto3.client("ec2")
    with Stubber(ec2) as stubber:
        stubber.add_response("describe_capacity_reservations", reservation(**changed))
        with pytest.raises(RefusedError, match=words):
            reserved_queues(ec2, ["cr-1"], [], "us-east-1b")


def test_every_default_queue_renders_with_what_its_machine_has() -> None:
    queues = cluster.render(VALUES, queues_of(DEFAULT_QUEUES), 7)["Scheduling"]["SlurmQueues"]
    assert ",".join(queue["Name"] for queue in queues) == DEFAULT_QUEUES
    for queue in queues:
        (resource,) = queue["ComputeResources"]
        (instance,) = resource["Instances"]
        assert resource["Efa"]["Enabled"] == machine(instance["InstanceType"]).efa
        assert (resource["MinCount"], resource["MaxCount"]) == (0, 7)
    with_one_card = Queue(machine("g5.xlarge"), "")
    (queue,) = cluster.render(VALUES, [with_one_card], 1)["Scheduling"]["SlurmQueues"]
    assert queue["ComputeResources"][0]["Efa"] == {"Enabled": False}


def test_missing_tools_are_amiss(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("PCLUSTER")
    monkeypatch.setattr(head, "ROOT", tmp_path)
    node, pcluster = check.tools()
    assert node.level == check.AMISS and "install Node.js" in node.seen
    assert pcluster.level == check.AMISS and "make infra-tools" in pcluster.seen


@pytest.mark.parametrize(("said", "level"), [("v22.1.0", check.OK), ("v16.20.0", check.AMISS), ("", check.AMISS)])
def test_an_old_node_is_amiss(
    said: str, level: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pcluster: Path
) -> None:
    (tmp_path / "node").write_text(f"#!/bin/sh\necho {said}\n")
    (tmp_path / "node").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    node, of_the_right_version = check.tools()
    assert node.level == level
    assert of_the_right_version.level == check.OK
    monkeypatch.setattr(cluster, "PCLUSTER_VERSION", "3.0.0")
    assert "3.0.0 is needed" in check.tools()[1].seen


def test_the_pinned_version_is_the_one_that_lint_uses() -> None:
    text = (REPOSITORY / "tests/infra/tools/pcluster.txt").read_text()
    assert f"aws-parallelcluster=={cluster.PCLUSTER_VERSION}\n" in text


def test_check_has_pcluster_read_the_file_in_the_default_network(
    monkeypatch: pytest.MonkeyPatch, pcluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check, "tools", list)
    stubbed(monkeypatch, "cloudformation", gone)
    assert cli.main(["check", "--queues", "g5-spot"]) == 0
    printed = capsys.readouterr().out
    assert "pcluster would take it (in the default network of us-east-1a)" in printed
    assert (pcluster / "calls").read_text().count("create-cluster") == 1
    assert not (pcluster / "cluster.yaml").exists(), "a dry run"
    program = pcluster / "pcluster"
    refusal = '{"message": "Invalid", "configurationValidationErrors": [{"level": "ERROR", "message": "no such AMI"}]}'
    program.write_text(f"#!/bin/sh\necho '{refusal}'\nexit 1\n")
    stubbed(monkeypatch, "cloudformation", gone)
    assert cli.main(["check", "--queues", "g5-spot"]) == 2
    assert "no such AMI" in capsys.readouterr().out


def test_check_changes_nothing(monkeypatch: pytest.MonkeyPatch, pcluster: Path) -> None:
    monkeypatch.setattr(check, "tools", list)
    assert cli.main(["check", "--queues", "p4d,g5-spot"]) == 0
    account = Account(cli.parse(["status"]))
    assert not account.bucket_exists(DATA)
    assert boto3.client("cloudformation").list_stacks()["StackSummaries"] == []
