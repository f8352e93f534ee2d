"""The foundation's CloudFormation stack: made, changed after a look at what would be lost, and removed."""

import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from infra.aws.spending import RefusedError
from infra.aws.waiting import Waiting

TEMPLATE = Path(__file__).with_name("foundation.yaml")
FAILED_TO_START = ("ROLLBACK_COMPLETE", "ROLLBACK_FAILED", "CREATE_FAILED", "DELETE_FAILED", "REVIEW_IN_PROGRESS")
SECONDS_BETWEEN_LOOKS, SECONDS_TO_FINISH, SECONDS_TO_COMPARE = 10.0, 3600.0, 600.0
# What holds data, or what the cluster stands on: it is lost or replaced only when it is named.
PRECIOUS = (
    "AWS::EC2::Subnet",
    "AWS::EC2::VPC",
    "AWS::ECR::Repository",
    "AWS::FSx::DataRepositoryAssociation",
    "AWS::FSx::FileSystem",
    "AWS::S3::Bucket",
)


class StackError(RuntimeError):
    """CloudFormation could not do it; the message has its reason."""


def stack_name(name: str) -> str:
    return f"{name}-foundation"


def _described(cloudformation: Any, name: str) -> dict[str, Any]:
    """CloudFormation's description of the stack; empty when there is none."""
    try:
        stacks = cloudformation.describe_stacks(StackName=stack_name(name))["Stacks"]
    except ClientError as error:
        if "does not exist" in str(error):
            return {}
        raise
    described: dict[str, Any] = stacks[0]
    return {} if described["StackStatus"] == "DELETE_COMPLETE" else described


def state(cloudformation: Any, name: str) -> str:
    """CloudFormation's word for the stack's state; '' when there is none."""
    return str(_described(cloudformation, name).get("StackStatus", ""))


def outputs(cloudformation: Any, name: str) -> dict[str, str]:
    """The finished stack's outputs.

    Raises:
        RefusedError: there is no finished stack.
    """
    described = _described(cloudformation, name)
    found = str(described.get("StackStatus", ""))
    if not found.endswith("_COMPLETE") or found in FAILED_TO_START:
        raise RefusedError(f"stack {stack_name(name)} is {found or 'not there'}; run `up` first")
    return _outputs(described)


def outputs_so_far(cloudformation: Any, name: str) -> dict[str, str]:
    """The outputs of a stack in whatever state; empty where there are none."""
    return _outputs(_described(cloudformation, name))


def _outputs(described: Mapping[str, Any]) -> dict[str, str]:
    return {output["OutputKey"]: output["OutputValue"] for output in described.get("Outputs", [])}


def wait_for_others(cloudformation: Any, name: str) -> str:
    """Wait for what an interrupted call has begun; return the stack's state, '' where there is none."""
    found = state(cloudformation, name)
    if found.endswith("_IN_PROGRESS") and found != "REVIEW_IN_PROGRESS":
        print(f"stack {stack_name(name)} is {found}: an earlier call's work is waited for")
        found = wait(cloudformation, name)
    return found


def parameters_of(cloudformation: Any, name: str) -> dict[str, str]:
    """What the stack was made with; empty where there is none, or one that is half-made."""
    described = _described(cloudformation, name)
    if described.get("StackStatus", "") in FAILED_TO_START:
        return {}
    return {entry["ParameterKey"]: entry["ParameterValue"] for entry in described.get("Parameters", [])}


@dataclass(frozen=True)
class Change:
    """One line of a change set.

    Attributes:
        action: "Add", "Modify" or "Remove".
        replacement: "True" or "Conditional" where a modification makes a new one and removes the old; else "False".
    """

    action: str
    name: str
    kind: str
    replacement: str

    @property
    def loses(self) -> bool:
        """Whether something that holds data, or that the cluster stands on, would be gone."""
        return self.kind in PRECIOUS and (self.action == "Remove" or self.replacement != "False")

    def __str__(self) -> str:
        words = {"Add": "make", "Modify": "change", "Remove": "REMOVE"}[self.action]
        if self.action == "Modify" and self.replacement != "False":
            words = "REPLACE" if self.replacement == "True" else "perhaps REPLACE"
        return f"{words:<16} {self.name} ({self.kind})"


def bring_up(
    cloudformation: Any,
    name: str,
    parameters: Mapping[str, str],
    agreed: Callable[[Sequence[Change]], None],
) -> str:
    """Make the stack, or bring the one there is up to date; return its state.

    One that an interrupted call has begun is waited for. One that failed half-way holds nothing of use and is replaced.

    Args:
        cloudformation: botocore's client.
        name: of the project.
        parameters: of the template; one that is not given keeps the value that the stack was made with.
        agreed: gets the changes to a stack that is there, before they are made; it raises to prevent them.

    Raises:
        StackError: it cannot be made.
    """
    found = _settled(cloudformation, name)
    if not found:
        listed = [{"ParameterKey": key, "ParameterValue": value} for key, value in sorted(parameters.items())]
        cloudformation.create_stack(Parameters=listed, **_common(name))
    elif not _change(cloudformation, name, parameters, agreed):
        return found
    found = wait(cloudformation, name)
    if found not in ("CREATE_COMPLETE", "UPDATE_COMPLETE", "UPDATE_ROLLBACK_COMPLETE"):
        raise StackError(f"stack {stack_name(name)} is {found}: {reason(cloudformation, name)}")
    if found == "UPDATE_ROLLBACK_COMPLETE":
        raise StackError(f"the change was taken back: {reason(cloudformation, name)}")
    return found


def _settled(cloudformation: Any, name: str) -> str:
    """The state of a stack that can be worked on, '' for none."""
    found = wait_for_others(cloudformation, name)
    if found in FAILED_TO_START:
        print(f"stack {stack_name(name)} is {found}, half-made: it is removed and made anew")
        cloudformation.delete_stack(StackName=stack_name(name))
        found = wait(cloudformation, name)
        if found:
            raise StackError(f"stack {stack_name(name)} cannot be removed: {found}; {reason(cloudformation, name)}")
    return found


def _common(name: str) -> dict[str, Any]:
    return {
        "StackName": stack_name(name),
        "TemplateBody": TEMPLATE.read_text(),
        "Capabilities": ["CAPABILITY_IAM"],
        "Tags": [{"Key": "Project", "Value": name}],
    }


def _change(
    cloudformation: Any, name: str, parameters: Mapping[str, str], agreed: Callable[[Sequence[Change]], None]
) -> bool:
    """Change the stack by a change set, once it is agreed to; return whether there was anything to change."""
    had = parameters_of(cloudformation, name)
    # The buckets stay as they came: in this stack, or from before it.
    kept = {key for key in had if key not in parameters or key == "BucketsExist"} & _template_parameters()
    listed: list[dict[str, Any]] = [{"ParameterKey": key, "UsePreviousValue": True} for key in sorted(kept)]
    given = {key: value for key, value in parameters.items() if key not in kept}
    listed += [{"ParameterKey": key, "ParameterValue": value} for key, value in sorted(given.items())]
    change_set = {"StackName": stack_name(name), "ChangeSetName": f"{name}-{int(time.time())}"}
    cloudformation.create_change_set(
        **change_set | _common(name), ChangeSetType="UPDATE", Parameters=listed, Description="infra/aws/cli.py up"
    )
    changes = _read_change_set(cloudformation, change_set)
    try:
        if changes:
            agreed(changes)
    except BaseException:
        cloudformation.delete_change_set(**change_set)
        raise
    if not changes:
        cloudformation.delete_change_set(**change_set)
        return False
    cloudformation.execute_change_set(**change_set)
    return True


def _template_parameters() -> set[str]:
    text = TEMPLATE.read_text().partition("\nParameters:\n")[2].partition("\nConditions:\n")[0]
    return set(re.findall(r"^  (\w+):", text, re.MULTILINE))


def _read_change_set(cloudformation: Any, change_set: Mapping[str, str]) -> list[Change]:
    """Wait until CloudFormation has compared, and return what would change."""
    deadline = time.monotonic() + SECONDS_TO_COMPARE
    while True:
        answer = cloudformation.describe_change_set(**change_set)
        status, why = answer["Status"], answer.get("StatusReason", "")
        if status == "FAILED" and ("didn't contain changes" in why or "No updates are to be performed" in why):
            return []
        if status == "FAILED":
            cloudformation.delete_change_set(**change_set)
            raise StackError(f"CloudFormation cannot tell what would change: {why}")
        if status == "CREATE_COMPLETE":
            break
        if time.monotonic() > deadline:
            raise StackError(f"CloudFormation has not compared the stack after {SECONDS_TO_COMPARE:g} s ({status})")
        time.sleep(SECONDS_BETWEEN_LOOKS)
    entries = list(answer["Changes"])
    while answer.get("NextToken"):
        answer = cloudformation.describe_change_set(**change_set, NextToken=answer["NextToken"])
        entries += answer["Changes"]
    resources = [entry["ResourceChange"] for entry in entries if "ResourceChange" in entry]
    return [
        Change(row["Action"], row["LogicalResourceId"], row["ResourceType"], row.get("Replacement", "False") or "False")
        for row in resources
    ]


def refuse_losses(changes: Sequence[Change], allowed: Collection[str]) -> None:
    """Refuse to lose what holds data or carries the cluster, unless it is named.

    Raises:
        RefusedError: naming each loss, and how it is allowed.
    """
    lost = [change for change in changes if change.loses and change.name not in allowed]
    if lost:
        lines = "".join(f"\n  {change}" for change in lost)
        names = ",".join(change.name for change in lost)
        raise RefusedError(f"this would lose:{lines}\nnothing was changed; --replace {names} allows it")


def take_down(cloudformation: Any, name: str) -> bool:
    """Remove the stack; return whether there was one. Its buckets stay.

    Raises:
        StackError: something in it is still used.
    """
    if not state(cloudformation, name):
        return False
    cloudformation.delete_stack(StackName=stack_name(name))
    found = wait(cloudformation, name)
    if found:
        raise StackError(f"stack {stack_name(name)} is {found}: {reason(cloudformation, name)}")
    return True


def wait(cloudformation: Any, name: str) -> str:
    """Wait until nothing is in progress; return the state."""
    deadline = time.monotonic() + SECONDS_TO_FINISH
    with Waiting(f"stack {stack_name(name)}") as waiting:
        while True:
            found = state(cloudformation, name)
            if not found.endswith("_IN_PROGRESS") or found == "REVIEW_IN_PROGRESS":
                return found
            if time.monotonic() > deadline:
                raise StackError(f"stack {stack_name(name)} is still {found} after an hour; look at it in the console")
            waiting.is_at(found)
            time.sleep(SECONDS_BETWEEN_LOOKS)


def reason(cloudformation: Any, name: str) -> str:
    """The first failure among the stack's events, in AWS's words."""
    events = cloudformation.describe_stack_events(StackName=stack_name(name))["StackEvents"]
    failed = [event for event in events if event.get("ResourceStatus", "").endswith("FAILED")]
    if not failed:
        return "its events name no failure"
    first = failed[-1]
    return f"{first['LogicalResourceId']}: {first.get('ResourceStatusReason', 'no reason given')}"
