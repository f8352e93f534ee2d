"""infra/aws/cluster.yaml before ParallelCluster's own schema and its `create-cluster --dryrun`; run by make infra-lint.

It runs in an environment that has aws-parallelcluster and moto, which stands in for AWS.
"""

import json
import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))
for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
    os.environ[name] = "testing"
os.environ["AWS_DEFAULT_REGION"] = "us-east-1"

# moto has the images that this file lists; ParallelCluster looks for its own, by name.
IMAGE = {
    "ami_id": "ami-0123456789abcdef0",
    "name": f"aws-parallelcluster-{version('aws-parallelcluster')}-ubuntu-2404-lts-hvm-x86_64-202501010000",
    "description": "stands in for the official image",
    "owner_id": "amazon",
    "public": True,
    "architecture": "x86_64",
    "state": "available",
    "virtualization_type": "hvm",
    "hypervisor": "xen",
    "image_type": "machine",
    "image_location": "amazon/x",
    "platform": None,
    "root_device_name": "/dev/sda1",
    "root_device_type": "ebs",
    "sriov": "simple",
    "creation_date": "2025-01-01T00:00:00.000Z",
}
IMAGES = Path(tempfile.mkdtemp()) / "amis.json"
IMAGES.write_text(json.dumps([IMAGE]))
os.environ["MOTO_AMIS_PATH"] = str(IMAGES)
os.environ["MOTO_IAM_LOAD_MANAGED_POLICIES"] = "true"
# These two ask EC2 to start an instance with DryRun, which moto refuses for a block device that EC2 takes.
NOT_BY_MOTO = ["type:HeadNodeLaunchTemplateValidator", "type:ComputeResourceLaunchTemplateValidator"]

import boto3  # noqa: E402
from moto import mock_aws  # noqa: E402
from pcluster.aws.ec2 import Ec2Client  # noqa: E402
from pcluster.cli.entrypoint import run  # noqa: E402
from pcluster.cli.exceptions import APIOperationException  # noqa: E402
from pcluster.schemas.cluster_schema import ClusterSchema  # noqa: E402

from infra.aws.cluster import CONTAINER_SCRIPT, render, write  # noqa: E402
from infra.aws.queues import DEFAULT_QUEUES, Queue, kinds, queue_of, queues_of  # noqa: E402

VALUES = {
    "Region": "us-east-1",
    "Partition": "aws",
    "Name": "resnet",
    "HeadSubnet": "subnet-11111111111111111",
    "PrivateSubnet": "subnet-22222222222222222",
    "ComputeSecurityGroup": "sg-33333333333333333",
    "TrainPolicy": "arn:aws:iam::123456789012:policy/train",
    "ConvertPolicy": "arn:aws:iam::123456789012:policy/convert",
    "ContainerScript": "s3://resnet-data/code/containers.sh",
}
WITH_FSX_AND_SSH = VALUES | {"FileSystem": "fs-0123456789abcdef0", "KeyName": "me", "SshCidr": "203.0.113.7/32"}
RESERVED = [
    Queue(queue_of("p5").machine, paid, "cr-0123456789abcdef0", reserved_nodes=2) for paid in ("block", "reserved")
]
CASES: list[tuple[dict[str, str], list[Queue]]] = [
    (VALUES, queues_of(DEFAULT_QUEUES)),
    (WITH_FSX_AND_SSH, [*queues_of("p5,g6,g6-spot"), *RESERVED]),
    *((VALUES, [queue_of(kind), queue_of(f"{kind}-spot")]) for kind in kinds()),
]


def check_schema(config: dict[str, Any]) -> None:
    """Raise marshmallow's ValidationError where ParallelCluster would refuse the file."""
    # It looks up the capacity block, which moto cannot; nothing may go out from here.
    with patch.object(Ec2Client, "describe_capacity_reservations", return_value=[]):
        ClusterSchema(cluster_name="resnet").load(config)


def dry_run() -> dict[str, Any]:
    """What `pcluster create-cluster --dryrun true` answers, with moto's network in place of the names above."""
    with mock_aws(), tempfile.TemporaryDirectory() as folder:
        ec2, iam = boto3.client("ec2"), boto3.client("iam")
        vpc = ec2.create_vpc(CidrBlock="10.20.0.0/16")["Vpc"]["VpcId"]
        ec2.modify_vpc_attribute(VpcId=vpc, EnableDnsHostnames={"Value": True})
        subnets = [
            ec2.create_subnet(VpcId=vpc, CidrBlock=cidr)["Subnet"]["SubnetId"]
            for cidr in ("10.20.0.0/24", "10.20.16.0/20")
        ]
        group = ec2.create_security_group(GroupName="compute", Description="compute", VpcId=vpc)["GroupId"]
        statement = {"Effect": "Allow", "Action": "s3:GetObject", "Resource": "*"}
        document = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
        policy = iam.create_policy(PolicyName="train", PolicyDocument=document)["Policy"]["Arn"]
        values = VALUES | {
            "HeadSubnet": subnets[0],
            "PrivateSubnet": subnets[1],
            "ComputeSecurityGroup": group,
            "TrainPolicy": policy,
            "ConvertPolicy": policy,
        }
        s3 = boto3.client("s3")
        s3.create_bucket(Bucket="resnet-data")
        s3.put_object(Bucket="resnet-data", Key="code/containers.sh", Body=CONTAINER_SCRIPT.read_bytes())
        path = Path(folder) / "cluster.yaml"
        write(render(values, queues_of(DEFAULT_QUEUES), 8), path)
        # pcluster has a key pair's lack as a warning; Session Manager does without one.
        arguments = ["create-cluster", "--cluster-name", "resnet", "--cluster-configuration", str(path)]
        arguments += ["--dryrun", "true", "--region", "us-east-1", "--suppress-validators", *NOT_BY_MOTO]
        try:
            found: dict[str, Any] = run(arguments)
        except APIOperationException as error:  # a dry run that succeeds ends so as well
            found = error.data
        return found


if __name__ == "__main__":
    answer = dry_run()  # first: it keeps what it looked up
    for values, queues in CASES:
        config = render(values, queues, 8)
        check_schema(config)
        print(f"schema: queues {', '.join(queue.name for queue in queues)} are valid")
    print(json.dumps(answer, indent=1))
    errors = [entry for entry in answer.get("configurationValidationErrors", []) if entry["level"] == "ERROR"]
    raise SystemExit(0 if "DryRun flag is set" in str(answer["message"]) and not errors else 1)
