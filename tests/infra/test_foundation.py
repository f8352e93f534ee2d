"""The foundation's template: CloudFormation makes each thing after what it names, and ssh is open to nobody unasked."""

from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from infra.aws import cluster, stack
from infra.aws.queues import queues_of

BUCKETS = {"-data-": "DataBucket", "-logs-": "LogBucket"}
ALLOWS = {"AWS::IAM::ManagedPolicy"}
"""What may name a bucket that is not there yet: a permission."""


class _Loader(yaml.SafeLoader):
    """YAML with CloudFormation's short forms, as {"Ref": ...} and the like."""


def _short_form(loader: _Loader, suffix: str, node: yaml.Node) -> dict[str, Any]:
    if isinstance(node, yaml.ScalarNode):
        return {suffix: loader.construct_scalar(node)}
    if isinstance(node, yaml.SequenceNode):
        return {suffix: loader.construct_sequence(node, deep=True)}
    assert isinstance(node, yaml.MappingNode)
    return {suffix: loader.construct_mapping(node, deep=True)}


_Loader.add_multi_constructor("!", _short_form)
TEMPLATE: dict[str, Any] = yaml.load(stack.TEMPLATE.read_text(), _Loader)
RESOURCES: dict[str, Any] = TEMPLATE["Resources"]


def leaves(value: Any) -> Iterator[tuple[str, str]]:
    """Yield (form, text) of each short form and of each plain text, which has the form ''."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in ("Ref", "GetAtt", "Sub") and isinstance(inner, str):
                yield key, inner
            else:
                yield from leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner)
    elif isinstance(value, str):
        yield "", value


def edges(name: str) -> set[str]:
    """The resources that CloudFormation makes before this one."""
    resource = RESOURCES[name]
    given = resource.get("DependsOn", [])
    found = {given} if isinstance(given, str) else set(given)
    for form, text in leaves(resource.get("Properties", {})):
        if form == "Sub":
            found |= {part.partition("}")[0].partition(".")[0] for part in text.split("${")[1:]}
        elif form:
            found.add(text.partition(".")[0])
    return found & RESOURCES.keys()


def before(name: str) -> set[str]:
    """All of them, and those before these."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        new = edges(waiting.pop()) - found
        found |= new
        waiting += new
    return found


@pytest.mark.parametrize("name", [name for name in RESOURCES if RESOURCES[name]["Type"] not in ALLOWS])
def test_a_bucket_is_made_before_what_names_it(name: str) -> None:
    texts = [text for _, text in leaves(RESOURCES[name].get("Properties", {}))]
    named = {bucket for part, bucket in BUCKETS.items() if any("${Name}" + part in text for text in texts)} - {name}
    assert named <= before(name), f"{name} names {sorted(named)}, and depends on {sorted(before(name))}"


def test_what_writes_to_the_logs_waits_until_it_may() -> None:
    assert "LogBucketPolicy" in before("FlowLogs") and "LogBucketPolicy" in before("DataBucket")
    assert all(name not in before(name) for name in RESOURCES)


def test_every_parameter_and_every_group_of_rules_is_used() -> None:
    texts = [*leaves(RESOURCES), *leaves(TEMPLATE["Conditions"])]
    used = {text for form, text in texts if form == "Ref"}
    used |= {part.partition("}")[0] for form, text in texts if form == "Sub" for part in text.split("${")[1:]}
    assert TEMPLATE["Parameters"].keys() <= used
    groups = {name for name in RESOURCES if RESOURCES[name]["Type"] == "AWS::EC2::SecurityGroup"}
    of_nodes = {part.partition("}")[0] for part in cluster.TEMPLATE.read_text().split("${")[1:]}
    assert groups == {"ComputeSecurityGroup", "FsxSecurityGroup"} and "ComputeSecurityGroup" in of_nodes


OUTPUTS = ("HeadSubnet", "PrivateSubnet", "ComputeSecurityGroup", "TrainPolicy", "ConvertPolicy", "DataBucket")
VALUES = {name: "x" for name in (*OUTPUTS, "Region", "Name", "Partition", "ContainerScript")}


def test_without_a_key_nobody_may_ssh_and_with_one_those_who_are_named() -> None:
    """ParallelCluster opens port 22 to 0.0.0.0/0 where the section says nothing."""
    assert cluster.render(VALUES, queues_of("g5"), 2)["HeadNode"]["Ssh"] == {"AllowedIps": "127.0.0.1/32"}
    named = cluster.render(VALUES | {"KeyName": "mine", "SshCidr": "203.0.113.0/28"}, queues_of("g5"), 2)
    assert named["HeadNode"]["Ssh"] == {"KeyName": "mine", "AllowedIps": "203.0.113.0/28"}


@pytest.mark.parametrize(
    ("key", "cidr", "words"),
    [
        ("mine", "", "--key-name needs --ssh-cidr"),
        ("", "203.0.113.7/32", "--ssh-cidr needs --key-name"),
        ("mine", "0.0.0.0/0", r"opens ssh to 4,294,967,296 addresses; give a /24 or smaller"),
        ("mine", "203.0.113.7/24", "host bits set"),
        ("mine", "here", "give addresses such as 203.0.113.7/32"),
    ],
)
def test_ssh_from_everywhere_or_by_nobody_is_refused(key: str, cidr: str, words: str) -> None:
    with pytest.raises(cluster.ClusterError, match=words):
        cluster.check_ssh(key, cidr)
