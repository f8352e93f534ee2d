"""An AWS account in one region: its clients, its number, the names of this project's buckets."""

import argparse
import functools
import os
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

from infra.aws.filesystem import file_system_exists

# AWS answers "slow down" to bursts; botocore then waits and tries again, this often.
ATTEMPTS = 8
RETRIES = Config(retries={"mode": "adaptive", "max_attempts": ATTEMPTS})


class Account:
    """Clients of one region."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.name: str = args.name
        self._dry_run: bool = args.dry_run
        self._session = boto3.Session(region_name=args.region or os.environ.get("AWS_REGION") or None)
        self.region = str(self._session.region_name or "us-east-1")
        self._clients: dict[str, Any] = {}  # one takes a quarter of a second to make

    def client(self, service: str) -> Any:
        """botocore's client of a service in this region."""
        if service not in self._clients:
            session: Any = self._session  # its stubs know each service's name alone
            self._clients[service] = session.client(service, region_name=self.region, config=RETRIES)
        return self._clients[service]

    @property
    def has_credentials(self) -> bool:
        return self._session.get_credentials() is not None

    @functools.cached_property
    def number(self) -> str:
        """The account's; a word in its place where a dry run has nobody to ask."""
        if self._dry_run and not self.has_credentials:
            return "ACCOUNT"
        return str(self.client("sts").get_caller_identity()["Account"])

    @functools.cached_property
    def partition(self) -> str:
        """The first part of each ARN: "aws", "aws-cn" or "aws-us-gov"."""
        return str(self.client("sts").get_caller_identity()["Arn"]).split(":")[1]

    @property
    def registry(self) -> str:
        """The host of this account's image registry."""
        return f"{self.number}.dkr.ecr.{self.region}.amazonaws.com"

    def bucket(self, kind: str) -> str:
        """The name of the bucket for "data" or "logs"."""
        return f"{self.name}-{kind}-{self.number}-{self.region}"

    def bucket_exists(self, bucket: str) -> bool:
        """Whether it is there and ours.

        Raises:
            ClientError: it belongs to somebody else.
        """
        try:
            self.client("s3").head_bucket(Bucket=bucket)
        except ClientError as error:
            if error.response["Error"]["Code"] in ("404", "NoSuchBucket"):
                return False
            raise
        return True

    def bucket_gb(self, bucket: str) -> float:
        """What a bucket holds, with old versions, GB."""
        pages = self.client("s3").get_paginator("list_object_versions").paginate(Bucket=bucket)
        return sum(version["Size"] for page in pages for version in page.get("Versions", [])) / 1e9

    def running(self) -> dict[str, int]:
        """Running instances with this project's tag, by type."""
        filters = [
            {"Name": "tag:Project", "Values": [self.name]},
            {"Name": "instance-state-name", "Values": ["pending", "running"]},
        ]
        counts: dict[str, int] = {}
        for page in self.client("ec2").get_paginator("describe_instances").paginate(Filters=filters):
            for reservation in page["Reservations"]:
                for instance in reservation["Instances"]:
                    kind = str(instance["InstanceType"])
                    counts[kind] = counts.get(kind, 0) + 1
        return counts

    def leftovers(self) -> list[str]:
        """What still has this project's tag, buckets apart, and instances that are ending.

        The tagging service goes on naming what was deleted, for an hour and more (github.com/aws/aws-cli/issues/8197).
        So EC2 and FSx are asked what is still there of theirs.
        """
        pages = self.client("resourcegroupstaggingapi").get_paginator("get_resources")
        found = pages.paginate(TagFilters=[{"Key": "Project", "Values": [self.name]}])
        arns = [str(entry["ResourceARN"]) for page in found for entry in page["ResourceTagMappingList"]]
        ended = (":s3:::", ":instance/", ":stack/")
        there = self._ec2_resources()
        left = [
            arn
            for arn in arns
            if not any(part in arn for part in ended)
            and (":ec2:" not in arn or _id_in(arn) in there)
            and (":fsx:" not in arn or self._is_there_in_fsx(_id_in(arn)))
        ]
        return sorted(left) + [f"{count} x {kind}" for kind, count in self.running().items()]

    def _ec2_resources(self) -> set[str]:
        """The ids of what EC2 has with this project's tag; a NAT gateway keeps it for an hour after its end."""
        ec2, tag = self.client("ec2"), {"Name": "tag:Project", "Values": [self.name]}
        pages = ec2.get_paginator("describe_tags").paginate(Filters=[tag])
        ids = {str(entry["ResourceId"]) for page in pages for entry in page["Tags"]}
        ended = {"Name": "state", "Values": ["deleting", "deleted", "failed"]}
        pages = ec2.get_paginator("describe_nat_gateways").paginate(Filters=[tag, ended])
        return ids - {str(entry["NatGatewayId"]) for page in pages for entry in page["NatGateways"]}

    def _is_there_in_fsx(self, resource: str) -> bool:
        return not resource.startswith("fs-") or file_system_exists(self.client("fsx"), resource)


def _id_in(arn: str) -> str:
    return arn.rpartition("/")[2]
