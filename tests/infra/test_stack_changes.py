"""A second `up`: what would change is shown, and nothing that holds data is lost unless it is named."""

from collections.abc import Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from botocore.stub import ANY, Stubber

from infra.aws import cli, filesystem, stack
from infra.aws.choices import Choices, remember
from infra.aws.spending import RefusedError
from infra.aws.up import refuse_running_jobs
from tests.infra.accounts import DATA, describe, stubbed

pytestmark = pytest.mark.usefixtures("aws")
MADE_WITH = {"AvailabilityZone": "us-east-1b", "FsxStorageGiB": "1200", "BucketsExist": "false", "Name": "resnet"}
UP = ["up", "--no-cluster", "--yes"]


def change(action: str, name: str, kind: str, replacement: str = "False") -> dict[str, Any]:
    row = {"Action": action, "LogicalResourceId": name, "ResourceType": kind, "Replacement": replacement}
    return {"Type": "Resource", "ResourceChange": row}


def answers(stubber: Stubber, *changes: dict[str, Any], parameters: Any = ANY) -> None:
    """What CloudFormation says to an `up` of a stack that is there, up to the change set."""
    for _ in range(3):
        stubber.add_response("describe_stacks", describe("CREATE_COMPLETE", None, **MADE_WITH))
    names = ("StackName", "ChangeSetName", "TemplateBody", "Capabilities", "Tags", "Description")
    expected = dict.fromkeys(names, ANY) | {"ChangeSetType": "UPDATE", "Parameters": parameters}
    stubber.add_response("create_change_set", {"Id": "x"}, expected)
    stubber.add_response("describe_change_set", {"Status": "CREATE_IN_PROGRESS"})
    first, rest = list(changes[:1]), list(changes[1:])
    stubber.add_response(
        "describe_change_set", {"Status": "CREATE_COMPLETE", "Changes": first, **({"NextToken": "n"} if rest else {})}
    )
    if rest:
        stubber.add_response("describe_change_set", {"Status": "CREATE_COMPLETE", "Changes": rest})


@pytest.fixture(autouse=True)
def bucket(aws: None) -> None:
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket=DATA)
    remember(s3, DATA, Choices(queues="g5", max_nodes=2, budget_usd=9, email="me@here.org"))


def test_a_second_up_keeps_the_zone_and_fsx(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --fsx-gib it used to set FSx to 0, which deletes it."""
    parameters: list[dict[str, object]] = [
        {"ParameterKey": "BucketsExist", "UsePreviousValue": True},
        {"ParameterKey": "AvailabilityZone", "ParameterValue": "us-east-1b"},
        {"ParameterKey": "Email", "ParameterValue": "me@here.org"},
        {"ParameterKey": "FsxStorageGiB", "ParameterValue": "1200"},
        {"ParameterKey": "Name", "ParameterValue": "resnet"},
    ]

    def prepare(stubber: Stubber) -> None:
        answers(stubber, change("Modify", "Vpc", "AWS::EC2::VPC"), parameters=parameters)
        stubber.add_response("execute_change_set", {})
        stubber.add_response("describe_stacks", describe("UPDATE_COMPLETE", None, **MADE_WITH))

    stubber = stubbed(monkeypatch, "cloudformation", prepare)
    assert cli.main(UP) == 0
    stubber.assert_no_pending_responses()


@pytest.mark.parametrize(
    "lost",
    [
        change("Remove", "FileSystem", "AWS::FSx::FileSystem"),
        change("Modify", "PrivateSubnet", "AWS::EC2::Subnet", "True"),
        change("Modify", "DataBucket", "AWS::S3::Bucket", "Conditional"),
    ],
)
def test_a_loss_is_refused_and_the_change_set_removed(
    lost: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def prepare(stubber: Stubber) -> None:
        answers(stubber, change("Add", "Alerts", "AWS::SNS::Topic"), lost)
        stubber.add_response("delete_change_set", {})

    stubber = stubbed(monkeypatch, "cloudformation", prepare)
    assert cli.main(UP) == 2
    printed = capsys.readouterr()
    name = lost["ResourceChange"]["LogicalResourceId"]
    assert f"--replace {name} allows it" in printed.err and "nothing was changed" in printed.err
    assert "make             Alerts (AWS::SNS::Topic)" in printed.out
    stubber.assert_no_pending_responses()


def test_a_loss_that_is_named_is_made_once_the_runs_are_in_the_bucket(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    exported: list[str] = []
    monkeypatch.setattr(filesystem, "file_system_exists", lambda *_: True)
    monkeypatch.setattr(filesystem, "export_runs", lambda fsx, which: str(exported.append(which)))  # type: ignore[func-returns-value]

    def prepare(stubber: Stubber) -> None:
        answers(stubber, change("Remove", "FileSystem", "AWS::FSx::FileSystem"))
        outputs = describe("CREATE_COMPLETE", {"FileSystem": "fs-0123456789abcdef0"}, **MADE_WITH)
        stubber.add_response("describe_stacks", outputs)
        stubber.add_response("execute_change_set", {})
        stubber.add_response("describe_stacks", describe("UPDATE_COMPLETE"))

    stubber = stubbed(monkeypatch, "cloudformation", prepare)
    assert cli.main([*UP, "--fsx-gib", "0", "--replace", "FileSystem"]) == 0
    assert exported == ["fs-0123456789abcdef0"]
    assert "REMOVE           FileSystem" in capsys.readouterr().out
    stubber.assert_no_pending_responses()


def test_what_cannot_be_compared_is_said() -> None:
    client = boto3.client("cloudformation")
    with Stubber(client) as stubber:
        stubber.add_response("describe_change_set", {"Status": "FAILED", "StatusReason": "Template error: x"})
        stubber.add_response("delete_change_set", {})
        with pytest.raises(stack.StackError, match="Template error: x"):
            stack._read_change_set(client, {"StackName": "s", "ChangeSetName": "c"})


def task(lifecycle: str, done: int = 0, failed: int = 0, total: int = 2) -> dict[str, Any]:
    counts = {"TotalCount": total, "SucceededCount": done, "FailedCount": failed}
    return {
        **{
            "TaskId": "task-0123456789abcdef0",
            "Lifecycle": lifecycle,
            "Type": "EXPORT_TO_REPOSITORY",
            "CreationTime": "2026-01-01",
        },
        **{
            "FileSystemId": "fs-0123456789abcdef0",
            "ResourceARN": "arn:aws:fsx:x:1:task/task-0123456789abcdef0",
            "Status": counts,
        },
        "FailureDetails": {"Message": "the bucket is away"},
    }


@pytest.mark.parametrize("tasks", [[task("PENDING"), task("EXECUTING", 1), task("SUCCEEDED", 2)], [task("SUCCEEDED")]])
def test_down_waits_until_fsx_has_written_the_runs(tasks: Sequence[dict[str, Any]]) -> None:
    fsx = boto3.client("fsx")
    expected = {
        **{
            "Type": "EXPORT_TO_REPOSITORY",
            "FileSystemId": "fs-0123456789abcdef0",
            "Paths": ["runs"],
            "Report": {"Enabled": False},
        },
    }
    with Stubber(fsx) as stubber:
        stubber.add_response("create_data_repository_task", {"DataRepositoryTask": task("PENDING")}, expected)
        for state in tasks:
            stubber.add_response("describe_data_repository_tasks", {"DataRepositoryTasks": [state]})
        assert "is in the bucket" in filesystem.export_runs(fsx, "fs-0123456789abcdef0")
        stubber.assert_no_pending_responses()


@pytest.mark.parametrize("end", [task("FAILED"), task("SUCCEEDED", 1, failed=1), task("CANCELED")])
def test_down_leaves_fsx_where_the_bucket_lacks_a_run(
    end: dict[str, Any], monkeypatch: pytest.MonkeyPatch, pcluster: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def of_stack(stubber: Stubber) -> None:
        for _ in range(2):
            stubber.add_response(
                "describe_stacks", describe("CREATE_COMPLETE", {"FileSystem": "fs-0123456789abcdef0"}, **MADE_WITH)
            )

    def of_fsx(stubber: Stubber) -> None:
        system = {"FileSystems": [{"FileSystemId": "fs-0123456789abcdef0", "Lifecycle": "AVAILABLE"}]}
        stubber.add_response("describe_file_systems", system)
        stubber.add_response("create_data_repository_task", {"DataRepositoryTask": task("PENDING")})
        stubber.add_response("describe_data_repository_tasks", {"DataRepositoryTasks": [end]})

    stubbed(monkeypatch, "cloudformation", of_stack)
    stubber = stubbed(monkeypatch, "fsx", of_fsx)
    assert cli.main(["down", "--yes"]) == 2
    assert "so FSx is not removed" in capsys.readouterr().err
    stubber.assert_no_pending_responses()  # and no delete_stack


@pytest.mark.parametrize(("running", "is_refused"), [({}, False), ({"c7i.xlarge": 1}, False), ({"p4d": 2}, True)])
def test_fsx_does_not_go_under_running_jobs(running: dict[str, int], is_refused: bool) -> None:
    account: Any = SimpleNamespace(running=lambda: running)  # one machine is the head node
    with pytest.raises(RefusedError, match=r"running\. Let the jobs end") if is_refused else nullcontext():
        refuse_running_jobs(account)


def test_the_template_exports_what_runs_save() -> None:
    text = stack.TEMPLATE.read_text().partition("  RunsOfBucket:\n")[2].partition("\n\n")[0]
    assert "FileSystemPath: /runs" in text and "AutoExportPolicy: {Events: [NEW, CHANGED, DELETED]}" in text
    assert filesystem.RUNS == "runs"


def test_nothing_is_changed_without_agreement() -> None:
    with pytest.raises(RefusedError):
        stack.refuse_losses([stack.Change("Remove", "FileSystem", "AWS::FSx::FileSystem", "False")], ["Other"])
    stack.refuse_losses([stack.Change("Modify", "FileSystem", "AWS::FSx::FileSystem", "False")], [])
