"""The foundation's CloudFormation stack: made, made again after an interruption, and removed."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from infra.aws.spending import RefusedError

TEMPLATE = Path(__file__).with_name("foundation.yaml")
FAILED_TO_START = ("ROLLBACK_COMPLETE", "ROLLBACK_FAILED", "CREATE_FAILED", "DELETE_FAILED", "REVIEW_IN_PROGRESS")
SECONDS_BETWEEN_LOOKS, SECONDS_TO_FINISH = 10.0, 3600.0


class StackError(RuntimeError):
    """CloudFormation could not do it; the message has its reason."""


def stack_name(name: str) -> str:
    return f"{name}-foundation"


def state(cloudformation: Any, name: str) -> str:
    """CloudFormation's word for the stack's state; '' when there is none."""
    try:
        stacks = cloudformation.describe_stacks(StackName=stack_name(name))["Stacks"]
    except ClientError as error:
        if "does not exist" in str(error):
            return ""
        raise
    status: str = stacks[0]["StackStatus"]
    return "" if status == "DELETE_COMPLETE" else status


def outputs(cloudformation: Any, name: str) -> dict[str, str]:
    """The finished stack's outputs.

    Raises:
        RefusedError: there is no finished stack.
    """
    found = state(cloudformation, name)
    if not found.endswith("_COMPLETE") or found in FAILED_TO_START:
        raise RefusedError(f"stack {stack_name(name)} is {found or 'not there'}; run `up` first")
    stack = cloudformation.describe_stacks(StackName=stack_name(name))["Stacks"][0]
    return {output["OutputKey"]: output["OutputValue"] for output in stack.get("Outputs", [])}


def bring_up(cloudformation: Any, name: str, parameters: Mapping[str, str]) -> str:
    """Make the stack, or bring the one there is up to date; return its state.

    One that an interrupted call has begun is waited for. One that failed half-way holds nothing of use and is replaced.

    Raises:
        StackError: it cannot be made.
    """
    found = state(cloudformation, name)
    if found.endswith("_IN_PROGRESS") and found != "REVIEW_IN_PROGRESS":
        print(f"stack {stack_name(name)} is {found}: an earlier call's work is waited for")
        found = wait(cloudformation, name)
    if found in FAILED_TO_START:
        print(f"stack {stack_name(name)} is {found}, half-made: it is removed and made anew")
        cloudformation.delete_stack(StackName=stack_name(name))
        found = wait(cloudformation, name)
        if found:
            raise StackError(f"stack {stack_name(name)} cannot be removed: {found}; {reason(cloudformation, name)}")
    listed = [{"ParameterKey": key, "ParameterValue": value} for key, value in sorted(parameters.items())]
    common = {
        "StackName": stack_name(name),
        "TemplateBody": TEMPLATE.read_text(),
        "Capabilities": ["CAPABILITY_IAM"],
        "Tags": [{"Key": "Project", "Value": name}],
    }
    try:
        if not found:
            cloudformation.create_stack(Parameters=listed, **common)
        else:  # the buckets stay as they came: in this stack, or from before it
            kept = {"ParameterKey": "BucketsExist", "UsePreviousValue": True}
            changed = [entry for entry in listed if entry["ParameterKey"] != "BucketsExist"]
            cloudformation.update_stack(Parameters=[*changed, kept], **common)
    except ClientError as error:
        if "No updates are to be performed" not in str(error):
            raise
    found = wait(cloudformation, name)
    if found not in ("CREATE_COMPLETE", "UPDATE_COMPLETE", "UPDATE_ROLLBACK_COMPLETE"):
        raise StackError(f"stack {stack_name(name)} is {found}: {reason(cloudformation, name)}")
    if found == "UPDATE_ROLLBACK_COMPLETE":
        raise StackError(f"the change was taken back: {reason(cloudformation, name)}")
    return found


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
    while True:
        found = state(cloudformation, name)
        if not found.endswith("_IN_PROGRESS") or found == "REVIEW_IN_PROGRESS":
            return found
        if time.monotonic() > deadline:
            raise StackError(f"stack {stack_name(name)} is still {found} after an hour; look at it in the console")
        time.sleep(SECONDS_BETWEEN_LOOKS)


def reason(cloudformation: Any, name: str) -> str:
    """The first failure among the stack's events, in AWS's words."""
    events = cloudformation.describe_stack_events(StackName=stack_name(name))["StackEvents"]
    failed = [event for event in events if event.get("ResourceStatus", "").endswith("FAILED")]
    if not failed:
        return "its events name no failure"
    first = failed[-1]
    return f"{first['LogicalResourceId']}: {first.get('ResourceStatusReason', 'no reason given')}"
