"""`infra/aws/cli.py` against moto, and against botocore's Stubber where moto lacks a call."""

import base64
import functools
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore import loaders
from botocore.exceptions import ClientError, NoCredentialsError
from botocore.stub import ANY, Stubber
from moto import mock_aws

from infra.aws import cli, cluster, head, stack

UP = ["up", "--budget-usd", "200", "--email", "me@example.com", "--no-cluster", "--yes"]
ACCOUNT = "123456789012"  # moto's
LOADERS = functools.cache(loaders.create_loader)
"""Of AWS's models, which each session would read anew for half a second a service."""
DATA = f"resnet-data-{ACCOUNT}-us-east-1"


@pytest.fixture(autouse=True)
def aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """moto's account; nothing can reach a real one."""
    for name in [name for name in os.environ if name.startswith("AWS_")] + ["S3_ENDPOINT_URL"]:
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setattr(stack, "SECONDS_BETWEEN_LOOKS", 0.0)
    monkeypatch.setattr(head, "SECONDS_BETWEEN_LOOKS", 0.0)
    monkeypatch.setenv("PCLUSTER", "/bin/false")
    monkeypatch.setattr("botocore.session.create_loader", LOADERS)
    with mock_aws():
        yield


@pytest.fixture
def pcluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A `pcluster` that keeps one cluster's state in a file, and notes how it was called."""
    program = tmp_path / "pcluster"
    program.write_text(
        f"""#!/bin/sh
echo "$@" >> {tmp_path}/calls
case $1 in
  create-cluster) echo CREATE_COMPLETE > {tmp_path}/state; while [ $# -gt 0 ]; do
    [ "$1" = --cluster-configuration ] && cp "$2" {tmp_path}/cluster.yaml; shift; done; echo '{{}}' ;;
  delete-cluster) rm {tmp_path}/state; echo '{{}}' ;;
  describe-cluster) if [ -e {tmp_path}/state ]; then printf '{{"clusterStatus": "%s"}}' "$(cat {tmp_path}/state)"
    else echo '{{"message": "Cluster does not exist"}}'; exit 1; fi ;;
esac
"""
    )
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PCLUSTER", str(program))
    return tmp_path


def stubbed(monkeypatch: pytest.MonkeyPatch, service: str, prepare: Callable[[Stubber], None]) -> None:
    """Have the command's clients of one service answer as prepared, in order."""
    client: Any = boto3.client(service, region_name="us-east-1")  # type: ignore[call-overload]  # a client of any service
    stubber = Stubber(client)
    prepare(stubber)
    stubber.activate()
    real = cli.Account.client
    monkeypatch.setattr(cli.Account, "client", lambda self, name: client if name == service else real(self, name))


def has_budget(monkeypatch: pytest.MonkeyPatch, usd: float = 200) -> None:
    budgets = boto3.client("budgets")
    budgets.create_budget(
        AccountId=ACCOUNT,
        Budget={
            "BudgetName": "resnet-monthly",
            "BudgetType": "COST",
            "TimeUnit": "MONTHLY",
            "BudgetLimit": {"Amount": str(usd), "Unit": "USD"},
        },
    )


def shards(tmp_path: Path) -> Path:
    for name in ("train/shard.00000.mds", "train/shard.00001.mds", "train/index.json", "manifest.json"):
        (tmp_path / "mds" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mds" / name).write_bytes(name.encode())
    return tmp_path / "mds"


def test_up_without_a_budget_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["up", "--yes"]) == 2
    assert "without a budget nothing is made" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv",
    [
        [*UP, "--dry-run"],
        ["push-image", "--dry-run"],
        ["submit", "--dry-run", "--nodes", "2", "yamls/full.yaml"],
        ["status", "--dry-run"],
        ["logs", "--job", "1", "--dry-run"],
        ["cost", "--dry-run"],
        ["down", "--dry-run"],
    ],
)
def test_a_dry_run_says_what_it_would_do_and_changes_nothing(
    argv: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "_run", lambda command, text=None: "" if "status" in command else "0123456789ab\n")
    assert cli.main(argv) == 0
    assert len(capsys.readouterr().out) > 30
    assert boto3.client("s3").list_buckets()["Buckets"] == []
    assert boto3.client("cloudformation").list_stacks()["StackSummaries"] == []


def test_the_price_an_hour_is_in_the_dry_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*UP, "--dry-run", "--fsx-gib", "1200"]) == 0
    printed = capsys.readouterr().out
    assert "$0.050/h" in printed and "$0.345/h" in printed and "an hour while it exists" in printed


def test_nothing_is_spent_without_a_yes(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(UP[:-1]) == 2
    assert "Nobody is here to ask" in capsys.readouterr().err
    assert boto3.client("cloudformation").list_stacks()["StackSummaries"] == []


def describe(status: str) -> dict[str, Any]:
    return {"Stacks": [{"StackName": "resnet-foundation", "CreationTime": "2026-01-01", "StackStatus": status}]}


def gone(stubber: Stubber) -> None:
    stubber.add_client_error("describe_stacks", "ValidationError", "Stack with id resnet-foundation does not exist")


def made(stubber: Stubber) -> None:
    stubber.add_response("create_stack", {"StackId": "x"}, _create())
    stubber.add_response("describe_stacks", describe("CREATE_COMPLETE"))


def _create() -> dict[str, Any]:
    names = ("StackName", "TemplateBody", "Capabilities", "Tags", "Parameters")
    return dict.fromkeys(names, ANY) | {"StackName": "resnet-foundation", "Capabilities": ["CAPABILITY_IAM"]}


def test_up_makes_the_stack(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def prepare(stubber: Stubber) -> None:
        gone(stubber)
        made(stubber)

    stubbed(monkeypatch, "cloudformation", prepare)
    assert cli.main(UP) == 0
    assert "stack: CREATE_COMPLETE" in capsys.readouterr().out


def test_up_waits_for_what_an_interrupted_up_has_begun(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def prepare(stubber: Stubber) -> None:
        for status in ("CREATE_IN_PROGRESS", "CREATE_IN_PROGRESS", "CREATE_COMPLETE"):
            stubber.add_response("describe_stacks", describe(status))
        stubber.add_client_error("update_stack", "ValidationError", "No updates are to be performed.")
        stubber.add_response("describe_stacks", describe("CREATE_COMPLETE"))

    stubbed(monkeypatch, "cloudformation", prepare)
    assert cli.main(UP) == 0
    assert "an earlier call's work is waited for" in capsys.readouterr().out


@pytest.mark.parametrize("status", ["ROLLBACK_COMPLETE", "CREATE_FAILED", "DELETE_FAILED"])
def test_a_half_created_stack_is_removed_and_made_anew(
    status: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def prepare(stubber: Stubber) -> None:
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
    def prepare(self: cli.Account, service: str) -> Any:
        raise NoCredentialsError

    monkeypatch.setattr(cli.Account, "client", prepare)
    assert cli.main(UP) == 2
    assert "no AWS credentials" in capsys.readouterr().err


def test_up_with_a_cluster_gives_pcluster_the_stacks_outputs(monkeypatch: pytest.MonkeyPatch, pcluster: Path) -> None:
    wanted = ("HeadSubnet", "PrivateSubnet", "ComputeSecurityGroup", "TrainPolicy", "ConvertPolicy")
    monkeypatch.setattr(stack, "bring_up", lambda *_: "CREATE_COMPLETE")
    monkeypatch.setattr(stack, "outputs", lambda *_: {name: f"the-{name}" for name in wanted})
    argv = [word for word in UP if word != "--no-cluster"]
    assert cli.main(argv) == 0
    config = (pcluster / "cluster.yaml").read_text()
    assert "the-PrivateSubnet" in config and "not-wanted" not in config and "p5-block" not in config
    assert cli.main(argv) == 0  # again: it is there
    assert (pcluster / "calls").read_text().count("create-cluster") == 1


def test_an_upload_is_resumed_checked_and_ends_with_the_index(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    has_budget(monkeypatch)
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
    assert "0 files sent, 4 were there" in capsys.readouterr().out
    s3.put_object(Bucket=DATA, Key="imagenet/train/shard.00009.mds", Body=b"of another dataset")
    assert cli.main(["upload", "--yes", str(folder)]) == 2
    assert "also holds 1 files that are not in" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv", [["upload", "--yes", "SHARDS"], ["push-image"], ["submit", "--yes", "yamls/full.yaml"]]
)
def test_what_costs_money_is_refused_without_a_budget(
    argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "_run", lambda command, text=None: "" if "status" in command else "0123456789ab\n")
    folder = shards(tmp_path)
    assert cli.main([str(folder) if word == "SHARDS" else word for word in argv]) == 2
    assert "there is no budget resnet-monthly" in capsys.readouterr().err


def test_push_image_builds_logs_in_and_pushes(monkeypatch: pytest.MonkeyPatch) -> None:
    has_budget(monkeypatch)
    boto3.client("ecr").create_repository(repositoryName="resnet/resnet-streaming")
    calls: list[tuple[list[str], str | None]] = []

    def run(command: list[str], text: str | None = None) -> str:
        calls.append((command, text))
        return "0123456789ab\n"

    monkeypatch.setattr(cli, "_run", run)
    assert cli.main(["push-image"]) == 0
    assert [command[:2] for command, _ in calls] == [
        *(["git", "rev-parse"], ["docker", "build"], ["docker", "login"], ["docker", "push"])
    ]
    assert calls[2][1], "the password goes by standard input"
    token = boto3.client("ecr").get_authorization_token()["authorizationData"][0]["authorizationToken"]
    assert base64.b64decode(token).decode().endswith(calls[2][1])
    assert calls[3][0][-1].endswith("/resnet/resnet-streaming:0123456789ab")


def test_submit_brings_the_commit_and_queues_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    has_budget(monkeypatch)
    boto3.client("s3").create_bucket(Bucket=DATA)
    scripts: list[str] = []

    def on_head(ssm: Any, instance: str, lines: list[str]) -> str:
        scripts.append("\n".join(lines))
        return "7\n"

    monkeypatch.setattr(cli, "_run", lambda command, text=None: "" if "status" in command else "HEAD\n")
    monkeypatch.setattr(head, "head_node", lambda *_: "i-1")
    monkeypatch.setattr(head, "on_head", on_head)
    argv = ["submit", "--yes", "--nodes", "4", "--queue", "p4d-spot", "yamls/full.yaml", "data.local=/a; rm -rf /"]
    assert cli.main(argv) == 0
    printed = capsys.readouterr().out
    assert "job 7 is queued" in printed and "$48.000/h" in printed and "4.2 hours of it" in printed
    assert f"checkpoint.save_folder=s3://{DATA}/runs/full" in scripts[0]
    assert "'data.local=/a; rm -rf /'" in scripts[0]
    stored = boto3.client("s3").get_object(Bucket=DATA, Key="runs/code/HEAD.tar.gz")["Body"].read()
    assert stored.startswith(b"\x1f\x8b")


def test_submit_leaves_a_run_that_reads_from_fsx_its_places(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["submit", "--dry-run", "yamls/full-fsx.yaml"]) == 0
    assert "yamls/full-fsx.yaml run_name=full-fsx\n" in capsys.readouterr().out


def test_submit_refuses_a_faulty_configuration_before_anything_is_spent(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["submit", "--yes", "yamls/full.yaml", "optimizer.lr=-1"]) == 2
    assert "optimizer.lr" in capsys.readouterr().err
    assert cli.main(["submit", "--yes", "yamls/absent.yaml"]) == 2


def test_submit_refuses_what_is_not_committed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "_run", lambda command, text=None: " M train/main.py\n")
    assert cli.main(["submit", "--yes", "yamls/full.yaml"]) == 2
    assert "not committed" in capsys.readouterr().err


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


def test_status_and_logs_ask_the_head_node(
    monkeypatch: pytest.MonkeyPatch, pcluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["status"]) == 0
    assert capsys.readouterr().out.split() == ["stack", "none", "cluster", "none"]
    assert cli.main(["logs", "--job", "3"]) == 2
    assert "no head node of cluster resnet is running" in capsys.readouterr().err
    (pcluster / "state").write_text("CREATE_COMPLETE")
    tags = {"parallelcluster:cluster-name": "resnet", "parallelcluster:node-type": "HeadNode", "Project": "resnet"}
    listed = [{"Key": key, "Value": value} for key, value in tags.items()]
    boto3.client("ec2").run_instances(
        ImageId="ami-12c6146b",
        MinCount=1,
        MaxCount=1,
        InstanceType="m6i.xlarge",
        TagSpecifications=[{"ResourceType": "instance", "Tags": listed}],
    )
    monkeypatch.setattr(head, "on_head", lambda ssm, instance, lines: " | ".join(lines))
    assert cli.main(["status"]) == 0
    printed = capsys.readouterr().out
    assert "running  1 x m6i.xlarge" in printed and "squeue" in printed
    assert cli.main(["logs", "--job", "3"]) == 0
    assert "slurm-3.log" in capsys.readouterr().out


def test_cost_is_this_months_by_tag(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    has_budget(monkeypatch)
    row = {"Total": {"UnblendedCost": {"Amount": "12.345", "Unit": "USD"}}}

    def prepare(stubber: Stubber) -> None:
        stubber.add_response("get_cost_and_usage", {"ResultsByTime": [row]})

    stubbed(monkeypatch, "ce", prepare)
    assert cli.main(["cost"]) == 0
    assert "$12.35 of $200.00" in capsys.readouterr().out.replace("$12.34 ", "$12.35 ")


def test_down_twice_leaves_buckets_and_lists_them(
    monkeypatch: pytest.MonkeyPatch, pcluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket=DATA)
    s3.put_object(Bucket=DATA, Key="imagenet/train/index.json", Body=b"x" * 10)
    (pcluster / "state").write_text("CREATE_COMPLETE")

    def prepare(stubber: Stubber) -> None:
        stubber.add_response("describe_stacks", describe("CREATE_COMPLETE"))
        stubber.add_response("delete_stack", {}, {"StackName": "resnet-foundation"})
        gone(stubber)
        gone(stubber)

    stubbed(monkeypatch, "cloudformation", prepare)
    assert cli.main(["down", "--yes"]) == 0
    first = capsys.readouterr().out
    assert "cluster: removed" in first and "stack: removed" in first and f"stays: s3://{DATA}" in first
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
    stubbed(monkeypatch, "cloudformation", gone)
    assert cli.main(["down", "--yes"]) == 1
    assert volume in capsys.readouterr().err


def test_the_stack_gives_the_cluster_what_it_wants() -> None:
    text = stack.TEMPLATE.read_text().partition("\nOutputs:\n")[2]
    given = set(re.findall(r"^  (\w+):", text, re.MULTILINE))
    from_the_command = {"Region", "Partition", "Name", "MaxNodes", *cluster.OPTIONAL}
    wanted = set(re.findall(r"\$\{(\w+)\}", cluster.TEMPLATE.read_text()))
    assert wanted - from_the_command <= given
    assert "FileSystem" in given
    with pytest.raises(cluster.ClusterError, match="HeadSubnet"):
        cluster.render({"Region": "us-east-1"})


def test_a_bucket_that_another_owns_is_not_taken_for_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    account = cli.Account(cli.parse(["status"]))
    stubbed(monkeypatch, "s3", lambda stubber: stubber.add_client_error("head_bucket", "403", "Forbidden"))
    with pytest.raises(ClientError):
        cli.bucket_exists(account, "x")
