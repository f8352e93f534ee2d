"""Parts of a pretended AWS account, for the tests of the cloud commands."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import boto3
import pytest
from botocore.stub import Stubber

from infra.aws.account import Account

ACCOUNT = "123456789012"  # moto's
DATA = f"resnet-data-{ACCOUNT}-us-east-1"
COMMIT = "0123456789ab" + "c" * 28
OUTPUTS = ("HeadSubnet", "PrivateSubnet", "ComputeSecurityGroup", "TrainPolicy", "ConvertPolicy")


def stubbed(monkeypatch: pytest.MonkeyPatch, service: str, prepare: Callable[[Stubber], None]) -> Stubber:
    """Have the command's clients of one service answer as prepared, in order."""
    client: Any = boto3.client(service, region_name="us-east-1")  # type: ignore[call-overload]  # a client of any service
    stubber = Stubber(client)
    prepare(stubber)
    stubber.activate()
    real = Account.client
    monkeypatch.setattr(Account, "client", lambda self, name: client if name == service else real(self, name))
    return stubber


def has_budget(usd: float = 200) -> None:
    """Make the project's budget."""
    budget = {"BudgetName": "resnet-monthly", "BudgetType": "COST", "TimeUnit": "MONTHLY"}
    limit = {"BudgetLimit": {"Amount": str(usd), "Unit": "USD"}}
    boto3.client("budgets").create_budget(AccountId=ACCOUNT, Budget=budget | limit)


def has_image(tag: str) -> None:
    """Put an image of this tag into the registry."""
    ecr = boto3.client("ecr")
    ecr.create_repository(repositoryName="resnet/resnet-streaming")
    kind = "application/vnd.docker.distribution.manifest.v2+json"
    manifest = json.dumps(
        {"schemaVersion": 2, "mediaType": kind, "config": {"digest": "sha256:" + "0" * 64}, "layers": []}
    )
    ecr.put_image(repositoryName="resnet/resnet-streaming", imageTag=tag, imageManifest=manifest)


def describe(status: str, outputs: Mapping[str, str] | None = None, /, **parameters: str) -> dict[str, Any]:
    """What describe_stacks answers."""
    found: dict[str, Any] = {"StackName": "resnet-foundation", "CreationTime": "2026-01-01", "StackStatus": status}
    found["Parameters"] = [{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()]
    found["Outputs"] = [{"OutputKey": key, "OutputValue": value} for key, value in (outputs or {}).items()]
    return {"Stacks": [found]}


def gone(stubber: Stubber) -> None:
    """There is no stack."""
    stubber.add_client_error("describe_stacks", "ValidationError", "Stack with id resnet-foundation does not exist")


def git_says(commit: str = COMMIT, changed: str = "") -> Callable[..., str]:
    """git of a repository at this commit."""
    answers = {"rev-parse": commit + "\n", "status": changed, "ls-tree": "yamls/full.yaml\n"}

    def git(*arguments: str) -> str:
        return answers[arguments[0]]

    return git
