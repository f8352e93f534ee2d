"""`infra/aws/cli.py` against moto, and against botocore's Stubber where moto lacks a call."""

import base64
import io
import re
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from botocore.exceptions import ClientError, NoCredentialsError
from botocore.stub import ANY, Stubber

from infra.aws import check, cli, cluster, head, stack, submit
from infra.aws.account import Account
from infra.aws.choices import Choices, recall, remember
from infra.aws.queues import queues_of
from infra.aws.spending import HEAD_NODE
from tests.infra.accounts import ACCOUNT, DATA, OUTPUTS, describe, git_says, gone, has_budget, stubbed

pytestmark = pytest.mark.usefixtures("aws")
UP = ["up", "--budget-usd", "200", "--email", "me@example.com", "--no-cluster", "--yes"]


class Screen(io.StringIO):
    """What is written to a terminal."""

    def isatty(self) -> bool:
        return True


def shards(tmp_path: Path) -> Path:
    for name in ("train/shard.00000.mds", "train/shard.00001.mds", "train/index.json", "manifest.json"):
        (tmp_path / "mds" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mds" / name).write_bytes(name.encode())
    return tmp_path / "mds"


def test_up_without_a_budget_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["up", "--yes"], ["up", "--dry-run"], ["up", "--budget-usd", "-5", "--email", "me@here.org", "--yes"]):
        assert cli.main(argv) == 2
        assert "without a budget nothing is made" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv",
    [
        [*UP, "--dry-run"],
        ["push-image", "--dry-run"],
        ["check", "--dry-run"],
        ["secret", "--dry-run", "WANDB_API_KEY"],
        ["submit", "--dry-run", "--no-image", "--nodes", "2", "yamls/full.yaml"],
        ["status", "--dry-run"],
        ["logs", "--job", "1", "--dry-run"],
        ["cost", "--dry-run"],
        ["down", "--dry-run"],
    ],
)
def test_a_dry_run_says_what_it_would_do_and_changes_nothing(
    argv: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submit, "git", git_says())
    has_budget()
    assert cli.main(argv) == 0
    assert len(capsys.readouterr().out) > 30
    assert boto3.client("s3").list_buckets()["Buckets"] == []
    assert boto3.client("cloudformation").list_stacks()["StackSummaries"] == []


@pytest.mark.parametrize("name", ["Resnet", "re", "my_runs", "-x-", "a" * 22, "x/../y"])
def test_a_name_that_no_bucket_can_have_is_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["status", f"--name={name}"])
    assert ended.value.code == 2
    assert "must be 3 to 21 of a-z" in capsys.readouterr().err


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
@pytest.mark.parametrize("gib", ["-1200", "1000", "3600"])
def test_a_size_that_fsx_does_not_have_is_refused(gib: str, dry: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*UP, f"--fsx-gib={gib}", *dry]) == 2
    assert "must be 0 (none), 1200, or a multiple of 2400" in capsys.readouterr().err
    assert boto3.client("cloudformation").list_stacks()["StackSummaries"] == []


def test_the_region_is_the_options_then_aws_regions_then_the_profiles(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train/index.json").write_text("{}")
    for variable, options, expected in (
        (None, [], "us-east-1"),
        ("eu-west-1", [], "eu-west-1"),
        ("eu-west-1", ["--region", "us-west-2"], "us-west-2"),
    ):
        if variable:
            monkeypatch.setenv("AWS_REGION", variable)
        assert cli.main(["upload", str(tmp_path), "--dry-run", *options]) == 0
        assert f"-{expected}/imagenet" in capsys.readouterr().out
    assert cli.main(["upload", str(tmp_path), "--dry-run", "--prefix", "imagenette"]) == 2
    assert "runs may read imagenet and what is below it; give imagenet/NAME" in capsys.readouterr().err


def test_the_price_an_hour_is_in_the_dry_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*UP, "--dry-run", "--fsx-gib", "1200"]) == 0
    printed = capsys.readouterr().out
    assert "$0.050/h" in printed and "$0.345/h" in printed and "an hour while it exists" in printed


def test_nothing_is_spent_without_a_yes(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(UP[:-1]) == 2
    assert "Nobody is here to ask" in capsys.readouterr().err
    assert boto3.client("cloudformation").list_stacks()["StackSummaries"] == []


def made(stubber: Stubber) -> None:
    stubber.add_response("create_stack", {"StackId": "x"}, _create())
    stubber.add_response("describe_stacks", describe("CREATE_COMPLETE"))


def _create() -> dict[str, Any]:
    names = ("StackName", "TemplateBody", "Capabilities", "Tags", "Parameters")
    return dict.fromkeys(names, ANY) | {"StackName": "resnet-foundation", "Capabilities": ["CAPABILITY_IAM"]}


@pytest.fixture
def bucket() -> None:
    """The data bucket, which an earlier stack has left."""
    boto3.client("s3").create_bucket(Bucket=DATA)


def test_up_makes_budget_and_stack(
    bucket: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def prepare(stubber: Stubber) -> None:
        gone(stubber)  # the check asks, then `up`
        gone(stubber)
        made(stubber)

    stubbed(monkeypatch, "cloudformation", prepare)
    assert cli.main(UP) == 0
    assert "stack: CREATE_COMPLETE" in capsys.readouterr().out
    budget = boto3.client("budgets").describe_budget(AccountId=ACCOUNT, BudgetName="resnet-monthly")["Budget"]
    assert budget["BudgetLimit"] == {"Amount": "200", "Unit": "USD"}
    assert recall(boto3.client("s3"), DATA)["email"] == "me@example.com"


def test_up_waits_for_what_an_interrupted_up_has_begun(
    bucket: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def prepare(stubber: Stubber) -> None:
        for status in ("CREATE_IN_PROGRESS", "CREATE_IN_PROGRESS", "CREATE_IN_PROGRESS", "CREATE_COMPLETE"):
            stubber.add_response("describe_stacks", describe(status, AvailabilityZone="us-east-1b"))
        no_changes(stubber)

    stubbed(monkeypatch, "cloudformation", prepare)
    assert cli.main(UP) == 0
    assert "an earlier call's work is waited for" in capsys.readouterr().out


def test_what_an_interrupted_up_left_half_made_is_made_anew_with_the_buckets_that_are_there(
    bucket: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare(stubber: Stubber) -> None:
        for status in ("CREATE_IN_PROGRESS", "CREATE_IN_PROGRESS", "ROLLBACK_COMPLETE"):
            stubber.add_response("describe_stacks", describe(status, AvailabilityZone="us-east-1b"))
        stubber.add_response("delete_stack", {}, {"StackName": "resnet-foundation"})
        gone(stubber)
        parameters = {
            **{"AvailabilityZone": "us-east-1b", "BucketsExist": "true", "Email": "me@example.com"},
            **{"FsxStorageGiB": "0", "Name": "resnet"},
        }
        listed = [{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()]
        stubber.add_response("create_stack", {"StackId": "x"}, _create() | {"Parameters": listed})
        stubber.add_response("describe_stacks", describe("CREATE_COMPLETE"))

    stubber = stubbed(monkeypatch, "cloudformation", prepare)
    assert cli.main(UP) == 0
    stubber.assert_no_pending_responses()


def no_changes(stubber: Stubber) -> None:
    """CloudFormation compares, and finds the stack as it should be."""
    stubber.add_response("describe_stacks", describe("CREATE_COMPLETE", AvailabilityZone="us-east-1b"))
    stubber.add_response("create_change_set", {"Id": "x"})
    why = "The submitted information didn't contain changes. Submit different information to create a change set."
    stubber.add_response("describe_change_set", {"Status": "FAILED", "StatusReason": why, "Changes": []})
    stubber.add_response("delete_change_set", {})


@pytest.mark.parametrize("status", ["ROLLBACK_COMPLETE", "CREATE_FAILED", "DELETE_FAILED"])
def test_a_half_created_stack_is_removed_and_made_anew(
    status: str, bucket: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def prepare(stubber: Stubber) -> None:
        for _ in range(2):
            stubber.add_response("describe_stacks", describe(status))
        stubber.add_response("delete_stack", {}, {"StackName": "resnet-foundation"})
        stubber.add_response("describe_stacks", describe("DELETE_IN_PROGRESS"))
        gone(stubber)
        made(stubber)

    stubbed(monkeypatch, "cloudformation", prepare)
    assert cli.main(UP) == 0
    assert "half-made" in capsys.readouterr().out


def test_a_stack_that_cannot_be_made_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    event = {
        **{"StackId": "x", "EventId": "1", "StackName": "resnet-foundation", "Timestamp": "2026-01-01"},
        **{"LogicalResourceId": "NatAddress", "ResourceStatus": "CREATE_FAILED"},
        "ResourceStatusReason": "The maximum number of addresses has been reached.",
    }

    def prepare(stubber: Stubber) -> None:
        gone(stubber)
        gone(stubber)
        stubber.add_response("create_stack", {"StackId": "x"})
        stubber.add_response("describe_stacks", describe("ROLLBACK_COMPLETE"))
        stubber.add_response("describe_stack_events", {"StackEvents": [event]})

    stubbed(monkeypatch, "cloudformation", prepare)
    assert cli.main(UP) == 1
    assert "NatAddress: The maximum number of addresses" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("code", "words"),
    [("AccessDenied", "AWS forbids DescribeStacks"), ("Throttling", "AWS asks to slow down (DescribeStacks)")],
)
def test_a_refusal_of_aws_is_explained(
    code: str, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stubbed(monkeypatch, "cloudformation", lambda stubber: stubber.add_client_error("describe_stacks", code, "no"))
    assert cli.main(UP) == 1
    assert words in capsys.readouterr().err


def test_no_credentials_are_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def prepare(self: Account, service: str) -> Any:
        raise NoCredentialsError

    monkeypatch.setattr(Account, "client", prepare)
    assert cli.main(UP) == 2
    assert "no AWS credentials" in capsys.readouterr().err


def test_up_with_a_cluster_makes_it_and_the_next_up_changes_it(
    bucket: None, monkeypatch: pytest.MonkeyPatch, pcluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stack_is_there(monkeypatch)
    argv = [word for word in UP if word != "--no-cluster"]
    assert cli.main([*argv, "--queues", "g5-spot"]) == 0
    config = yaml.safe_load((pcluster / "cluster.yaml").read_text())
    assert [queue["Name"] for queue in config["Scheduling"]["SlurmQueues"]] == ["g5-spot"]
    assert config["HeadNode"]["Networking"]["SubnetId"] == "the-HeadSubnet"
    script = boto3.client("s3").get_object(Bucket=DATA, Key="code/containers.sh")["Body"].read()
    assert script == cluster.CONTAINER_SCRIPT.read_bytes()
    assert config["HeadNode"]["CustomActions"]["OnNodeConfigured"]["Script"] == f"s3://{DATA}/code/containers.sh"

    assert cli.main(["up", "--yes"]) == 0  # remembers all of it, and finds nothing to change
    assert (pcluster / "calls").read_text().count("update-cluster") == 1, "the dry run alone"
    capsys.readouterr()
    assert cli.main(["up", "--yes", "--max-nodes", "8"]) == 0
    assert "MaxCount from 4 to 8" in capsys.readouterr().out
    queue = yaml.safe_load((pcluster / "cluster.yaml").read_text())["Scheduling"]["SlurmQueues"][0]
    assert queue["Name"] == "g5-spot" and queue["ComputeResources"][0]["MaxCount"] == 8
    calls = (pcluster / "calls").read_text()
    assert calls.count("create-cluster") == 2 and calls.count("update-cluster") == 3, "a dry run before each"


def test_a_block_is_remembered_until_it_is_left_out(
    bucket: None, monkeypatch: pytest.MonkeyPatch, pcluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that has expired would be in the way of every later `up`."""
    stack_is_there(monkeypatch)
    s3 = boto3.client("s3")
    remember(s3, DATA, Choices(queues="g5", max_nodes=2, budget_usd=9, email="me@here.org", blocks=("cr-1",)))
    block = {"CapacityReservationId": "cr-1", "State": "expired", "ReservationType": "capacity-block"}

    def prepare(stubber: Stubber) -> None:
        stubber.add_response("describe_capacity_reservations", {"CapacityReservations": [block]})

    with monkeypatch.context() as patch:
        stubbed(patch, "ec2", prepare)
        assert cli.main(["up", "--yes"]) == 2
    assert "--capacity-block '' leaves it out" in capsys.readouterr().err
    assert cli.main(["up", "--yes", "--capacity-block", ""]) == 0
    assert recall(s3, DATA)["blocks"] == ()


def test_a_change_of_the_cluster_wants_a_yes(
    bucket: None, monkeypatch: pytest.MonkeyPatch, pcluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stack_is_there(monkeypatch)
    assert cli.main([word for word in UP if word != "--no-cluster"]) == 0
    before = (pcluster / "cluster.yaml").read_text()
    answers = iter(["yes", "no"])
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda _: next(answers))
    assert cli.main(["up", "--max-nodes", "8"]) == 2
    assert (pcluster / "cluster.yaml").read_text() == before
    assert recall(boto3.client("s3"), DATA)["max_nodes"] == 4, "`submit` takes no run for 8"


def test_a_cluster_that_cannot_be_made_is_remembered_for_the_next_up(
    bucket: None, monkeypatch: pytest.MonkeyPatch, pcluster: Path
) -> None:
    stack_is_there(monkeypatch)

    def refuse(*_: object) -> str:
        raise head.HeadError("no such capacity")

    monkeypatch.setattr(head, "make_cluster", refuse)
    assert cli.main([*(word for word in UP if word != "--no-cluster"), "--queues", "g5-spot"]) == 1
    assert recall(boto3.client("s3"), DATA)["queues"] == "g5-spot"


def stack_is_there(monkeypatch: pytest.MonkeyPatch, **parameters: str) -> None:
    monkeypatch.setattr(stack, "bring_up", lambda *_: "CREATE_COMPLETE")
    monkeypatch.setattr(stack, "outputs", lambda *_: {name: f"the-{name}" for name in OUTPUTS})
    made_with = {"AvailabilityZone": "us-east-1b", "FsxStorageGiB": "0"} | parameters
    monkeypatch.setattr(stack, "parameters_of", lambda *_: made_with)
    monkeypatch.setattr(check, "tools", list)


def test_an_upload_is_resumed_checked_and_ends_with_the_index(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    has_budget()
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket=DATA)
    folder = shards(tmp_path)
    s3.put_object(Bucket=DATA, Key="imagenet/train/shard.00000.mds", Body=b"train/shard.00000.mds")
    s3.put_object(Bucket=DATA, Key="imagenet/train/shard.00001.mds", Body=b"cut sho")
    assert cli.main(["upload", "--yes", str(folder)]) == 0
    assert "3 files sent, 1 were there; all 4 have the right MD5" in capsys.readouterr().out
    listed = s3.list_objects_v2(Bucket=DATA)["Contents"]
    assert [item["Key"].removeprefix("imagenet/") for item in listed] == sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()
    )
    assert cli.main(["upload", "--yes", str(folder)]) == 0
    seen = capsys.readouterr()
    assert "0 files sent, 4 were there" in seen.out and not seen.err, "there is no bar without a terminal"
    with monkeypatch.context() as on_a_terminal:
        on_a_terminal.setattr("sys.stderr", screen := Screen())
        assert cli.main(["upload", "--yes", str(folder)]) == 0
    assert "upload: 100%" in screen.getvalue() and "compare: 100%" in screen.getvalue()
    s3.put_object(Bucket=DATA, Key="imagenet/train/shard.00009.mds", Body=b"of another dataset")
    assert cli.main(["upload", "--yes", str(folder)]) == 2
    assert "also holds 1 files that are not in" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv", [["upload", "--yes", "SHARDS"], ["push-image"], ["submit", "--yes", "--no-image", "yamls/full.yaml"]]
)
def test_what_costs_money_is_refused_without_a_budget(
    argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(submit, "git", git_says())
    folder = shards(tmp_path)
    assert cli.main([str(folder) if word == "SHARDS" else word for word in argv]) == 2
    assert "there is no budget resnet-monthly" in capsys.readouterr().err


def test_push_image_builds_logs_in_and_pushes(monkeypatch: pytest.MonkeyPatch) -> None:
    has_budget()
    boto3.client("ecr").create_repository(repositoryName="resnet/resnet-streaming")
    calls: list[tuple[list[str], str | None]] = []

    def run_here(command: list[str], text: str | None = None) -> str:
        calls.append((command, text))
        return ""

    monkeypatch.setattr(submit, "git", git_says())
    monkeypatch.setattr(head, "run_here", run_here)
    monkeypatch.setattr(head, "run_in_view", run_here)
    assert cli.main(["push-image"]) == 0
    assert [command[:2] for command, _ in calls] == [["docker", "build"], ["docker", "login"], ["docker", "push"]]
    assert calls[1][1], "the password goes by standard input"
    token = boto3.client("ecr").get_authorization_token()["authorizationData"][0]["authorizationToken"]
    assert base64.b64decode(token).decode().endswith(calls[1][1])
    assert calls[2][0][-1].endswith("/resnet/resnet-streaming:0123456789ab")
    monkeypatch.setattr(submit, "git", git_says(changed=" M train/main.py\n"))
    assert cli.main(["push-image"]) == 2, "the image would not be what its name says"


def test_a_push_shows_what_docker_says_and_ends_with_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    has_budget()
    monkeypatch.setattr(submit, "git", git_says())
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cli.main(["push-image"]) == 2
    assert "docker is not installed here" in capfd.readouterr().err
    (tmp_path / "docker").write_text("#!/bin/sh\necho step 7 of 9\nexit 3\n")
    (tmp_path / "docker").chmod(0o755)
    assert cli.main(["push-image"]) == 1
    seen = capfd.readouterr()
    assert "step 7 of 9" in seen.out and "docker build ended with exit status 3" in seen.err


def invocation(status: str, out: str = "", err: str = "") -> dict[str, Any]:
    return {"Status": status, "StandardOutputContent": out, "StandardErrorContent": err}


def test_a_command_on_the_head_node_is_waited_for_and_its_failure_shown() -> None:
    ssm = boto3.client("ssm")
    with Stubber(ssm) as stubber:
        stubber.add_response("send_command", {"Command": {"CommandId": "c" * 36}})
        stubber.add_client_error("get_command_invocation", "InvocationDoesNotExist")
        stubber.add_response("get_command_invocation", invocation("InProgress"))
        stubber.add_response("get_command_invocation", invocation("Success", "hello\n"))
        assert head.on_head(ssm, "i-1", ["echo hello"]) == "hello\n"
        stubber.add_response("send_command", {"Command": {"CommandId": "c" * 36}})
        stubber.add_response("get_command_invocation", invocation("Failed", err="no such file"))
        with pytest.raises(head.HeadError, match="no such file"):
            head.on_head(ssm, "i-1", ["cat x"])


def head_node_runs() -> None:
    tags = {"parallelcluster:cluster-name": "resnet", "parallelcluster:node-type": "HeadNode", "Project": "resnet"}
    listed = [{"Key": key, "Value": value} for key, value in tags.items()]
    boto3.client("ec2").run_instances(
        ImageId="ami-12c6146b",
        MinCount=1,
        MaxCount=1,
        InstanceType="m6i.xlarge",
        TagSpecifications=[{"ResourceType": "instance", "Tags": listed}],
    )


def test_status_and_logs_ask_the_head_node(
    monkeypatch: pytest.MonkeyPatch, pcluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["status"]) == 0
    assert capsys.readouterr().out.split() == ["stack", "none", "cluster", "none"]
    assert cli.main(["logs", "--job", "3"]) == 2
    assert "no head node of cluster resnet is running" in capsys.readouterr().err
    (pcluster / "state").write_text("CREATE_COMPLETE")
    head_node_runs()
    monkeypatch.setattr(head, "on_head", lambda *_: "now=1767225600\n")
    assert cli.main(["status"]) == 0
    printed = capsys.readouterr().out
    assert "running  1 x m6i.xlarge" in printed and "no jobs" in printed
    monkeypatch.setattr(head, "on_head", lambda ssm, instance, lines: " | ".join(lines))
    assert cli.main(["logs", "--job", "3"]) == 0
    assert "slurm-3.log" in capsys.readouterr().out


def test_cost_is_this_months_by_tag(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    has_budget()
    row = {"Total": {"UnblendedCost": {"Amount": "12.345", "Unit": "USD"}}}

    def prepare(stubber: Stubber) -> None:
        stubber.add_response("get_cost_and_usage", {"ResultsByTime": [row]})

    stubbed(monkeypatch, "ce", prepare)
    stack_is_there(monkeypatch, FsxStorageGiB="1200")
    head_node_runs()
    assert cli.main(["cost"]) == 0
    printed = capsys.readouterr().out
    assert "$12.35 of $200.00" in printed.replace("$12.34 ", "$12.35 ")
    lines = [line.split() for line in printed.splitlines()[1:]]
    assert [(line[0], line[-1]) for line in lines[:3]] == [
        ("NAT", "$0.050/h"),
        ("FSx", "$0.345/h"),
        ("head", "$0.192/h"),
    ]
    assert lines[3][0] == "$0.59"


def test_the_head_node_is_of_the_type_whose_price_is_known() -> None:
    template = yaml.safe_load(cluster.TEMPLATE.read_text().replace("${", "$"))
    assert template["HeadNode"]["InstanceType"] == HEAD_NODE


@pytest.mark.parametrize(
    "states",
    [
        ["CREATE_IN_PROGRESS", "CREATE_COMPLETE"],
        ["UPDATE_ROLLBACK_IN_PROGRESS", "UPDATE_ROLLBACK_FAILED"],
        ["UPDATE_ROLLBACK_FAILED"],
        ["DELETE_IN_PROGRESS"],
        ["DELETE_FAILED"],
    ],
    ids="-".join,
)
def test_down_waits_for_what_an_interrupted_call_has_begun_and_removes_it(
    states: list[str], monkeypatch: pytest.MonkeyPatch, pcluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stack, "SECONDS_BETWEEN_LOOKS", 0.0)
    has_budget()

    def prepare(stubber: Stubber) -> None:
        looks = [state for state in states for _ in range(2 if state.endswith("_IN_PROGRESS") else 1)]
        for state in looks:
            stubber.add_response("describe_stacks", describe(state))
        if states == ["DELETE_IN_PROGRESS"]:
            gone(stubber)
            return
        for _ in range(2):
            stubber.add_response("describe_stacks", describe(states[-1]))
        stubber.add_response("delete_stack", {}, {"StackName": "resnet-foundation"})
        gone(stubber)

    stubber = stubbed(monkeypatch, "cloudformation", prepare)
    assert cli.main(["down", "--yes"]) == 0, capsys.readouterr().err
    stubber.assert_no_pending_responses()


def test_down_twice_leaves_buckets_and_lists_them(
    monkeypatch: pytest.MonkeyPatch, pcluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket=DATA)
    s3.put_object(Bucket=DATA, Key="imagenet/train/index.json", Body=b"x" * 10)
    (pcluster / "state").write_text("CREATE_COMPLETE")

    has_budget()

    def prepare(stubber: Stubber) -> None:
        for _ in range(3):
            stubber.add_response("describe_stacks", describe("CREATE_COMPLETE"))
        stubber.add_response("delete_stack", {}, {"StackName": "resnet-foundation"})
        for _ in range(2):
            gone(stubber)

    stubbed(monkeypatch, "cloudformation", prepare)
    assert cli.main(["down", "--yes"]) == 0
    first = capsys.readouterr().out
    for line in ("cluster: removed", "stack: removed", "budget: removed", f"stays: s3://{DATA}"):
        assert line in first
    assert cli.main(["down", "--yes"]) == 0
    second = capsys.readouterr().out
    assert "cluster: there was none" in second and "stack: there was none" in second and "stays" in second


def test_down_says_what_is_left_and_may_bill(
    monkeypatch: pytest.MonkeyPatch, pcluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    volume = boto3.client("ec2").create_volume(
        AvailabilityZone="us-east-1a",
        Size=10,
        TagSpecifications=[{"ResourceType": "volume", "Tags": [{"Key": "Project", "Value": "resnet"}]}],
    )["VolumeId"]

    def prepare(stubber: Stubber) -> None:
        gone(stubber)
        gone(stubber)

    stubbed(monkeypatch, "cloudformation", prepare)
    head_node_runs()
    assert cli.main(["down", "--yes"]) == 1
    said = capsys.readouterr()
    assert volume in said.err and "running now: 1 x m6i.xlarge; their jobs end" in said.out


def test_down_takes_nothing_for_left_that_is_deleted(
    monkeypatch: pytest.MonkeyPatch, pcluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tagging service goes on naming it: each `down` used to fail with the NAT gateway that it had removed."""
    ec2 = boto3.client("ec2")
    subnet = ec2.describe_subnets()["Subnets"][0]["SubnetId"]
    tags = [{"Key": "Project", "Value": "resnet"}]
    named = [{"ResourceType": "natgateway", "Tags": tags}]
    gateway = ec2.create_nat_gateway(SubnetId=subnet, ConnectivityType="private", TagSpecifications=named)
    nat = gateway["NatGateway"]["NatGatewayId"]
    arn = f"arn:aws:ec2:us-east-1:{ACCOUNT}"
    others = [f"{arn}:vpc/vpc-1", f"arn:aws:fsx:us-east-1:{ACCOUNT}:file-system/fs-0123456789abcdef0"]

    def prepare(stubber: Stubber) -> None:
        for _ in range(2):
            named = [{"ResourceARN": name, "Tags": tags} for name in (f"{arn}:natgateway/{nat}", *others)]
            stubber.add_response("get_resources", {"ResourceTagMappingList": named})

    stubbed(monkeypatch, "resourcegroupstaggingapi", prepare)
    monkeypatch.setattr(stack, "wait_for_others", lambda *_: "")
    assert cli.main(["down", "--yes"]) == 1
    assert f"1 things with tag Project=resnet are left and may bill: {arn}:natgateway/{nat}" in capsys.readouterr().err
    ec2.delete_nat_gateway(NatGatewayId=nat)
    assert cli.main(["down", "--yes"]) == 0, capsys.readouterr().err


def test_down_names_the_secrets_that_stay(
    monkeypatch: pytest.MonkeyPatch, pcluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("/resnet/WANDB_API_KEY", "/resnet-2/OTHER"):
        boto3.client("ssm").put_parameter(Name=name, Value="hush", Type="SecureString")
    monkeypatch.setattr(stack, "wait_for_others", lambda *_: "")
    assert cli.main(["down", "--yes"]) == 0
    printed = capsys.readouterr().out
    assert "stays: WANDB_API_KEY in SSM, for nothing; `aws ssm delete-parameter --name /resnet/NAME` removes" in printed
    assert "hush" not in printed and "OTHER" not in printed


def test_a_terminal_shows_what_is_waited_for_and_nothing_else_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("infra.aws.waiting.SECONDS_BEFORE_SHOWN", 0.0)

    def prepare(stubber: Stubber) -> None:
        for _ in range(2):
            stubber.add_response("describe_stacks", describe("CREATE_IN_PROGRESS"))
            stubber.add_response("describe_stacks", describe("CREATE_COMPLETE"))

    cloudformation: Any = boto3.client("cloudformation")
    with Stubber(cloudformation) as stubber:
        prepare(stubber)
        assert stack.wait(cloudformation, "resnet") == "CREATE_COMPLETE"
        assert capsys.readouterr() == ("", "")
        monkeypatch.setattr("sys.stderr", screen := Screen())
        assert stack.wait(cloudformation, "resnet") == "CREATE_COMPLETE"
    assert "stack resnet-foundation: CREATE_IN_PROGRESS  00:00" in screen.getvalue()


def test_the_stack_gives_the_cluster_what_it_wants() -> None:
    text = stack.TEMPLATE.read_text().partition("\nOutputs:\n")[2]
    given = set(re.findall(r"^  (\w+):", text, re.MULTILINE))
    from_the_command = {"Region", "Partition", "Name", "ContainerScript", *cluster.OPTIONAL}
    wanted = set(re.findall(r"\$\{(\w+)\}", cluster.TEMPLATE.read_text()))
    assert wanted - from_the_command <= given
    assert "FileSystem" in given
    with pytest.raises(cluster.ClusterError, match="HeadSubnet"):
        cluster.render({"Region": "us-east-1"}, queues_of("g5"), 4)


def test_a_bucket_that_another_owns_is_not_taken_for_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    account = Account(cli.parse(["status"]))
    stubbed(monkeypatch, "s3", lambda stubber: stubber.add_client_error("head_bucket", "403", "Forbidden"))
    with pytest.raises(ClientError):
        account.bucket_exists("x")
