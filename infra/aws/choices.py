"""What `up` was told, kept in the data bucket, so that the next `up` need not be told again."""

import dataclasses
import json
from typing import Any

from botocore.exceptions import ClientError

KEY = "infra/up.json"


@dataclasses.dataclass(frozen=True)
class Choices:
    """How a cluster is to be. (The zone and FSx's size are the stack's own parameters.)

    Attributes:
        queues: names without those of reservations, separated by commas.
        max_nodes: of each of them.
        blocks, reservations: ids of capacity blocks and reservations.
    """

    queues: str
    max_nodes: int
    key_name: str = ""
    ssh_cidr: str = ""
    blocks: tuple[str, ...] = ()
    reservations: tuple[str, ...] = ()
    budget_usd: float = 0.0
    email: str = ""


def recall(s3: Any, bucket: str) -> dict[str, Any]:
    """What the last `up` was told; empty where there was none."""
    try:
        body = s3.get_object(Bucket=bucket, Key=KEY)["Body"].read()
    except ClientError as error:
        if error.response["Error"]["Code"] in ("NoSuchKey", "NoSuchBucket", "404"):
            return {}
        raise
    stored: dict[str, Any] = json.loads(body)
    known = {field.name for field in dataclasses.fields(Choices)}
    return {key: tuple(value) if isinstance(value, list) else value for key, value in stored.items() if key in known}


def remember(s3: Any, bucket: str, choices: Choices) -> None:
    """Keep them for the next `up`."""
    body = json.dumps(dataclasses.asdict(choices), indent=1).encode()
    s3.put_object(Bucket=bucket, Key=KEY, Body=body, ContentType="application/json")


def forget(s3: Any, bucket: str) -> None:
    """Begin anew at the next `up`."""
    s3.delete_object(Bucket=bucket, Key=KEY)
