"""What EC2 says of the instance that this runs on, by IMDSv2: a token first, then the question."""

import os
import urllib.error
import urllib.request
from pathlib import Path

ADDRESS, ADDRESS_VARIABLE = "http://169.254.169.254", "AWS_EC2_METADATA_SERVICE_ENDPOINT"
TIMEOUT_S = 2.0


def metadata(path: str) -> str:
    """Return what is at a path such as instance-type, or '' where there is nothing, or no EC2."""
    base = os.environ.get(ADDRESS_VARIABLE, ADDRESS).rstrip("/")
    try:
        token = _fetch(f"{base}/latest/api/token", "PUT", {"X-aws-ec2-metadata-token-ttl-seconds": "60"}).decode()
        answer = _fetch(f"{base}/latest/meta-data/{path}", "GET", {"X-aws-ec2-metadata-token": token})
        return answer.decode()
    except (OSError, ValueError):  # 404, or nobody there; URLError is an OSError
        return ""


def is_ec2(root: Path = Path("/")) -> bool:
    """Whether this is an EC2 instance, without asking anybody: elsewhere the question would wait for its time-out."""
    if os.environ.get(ADDRESS_VARIABLE):
        return True
    try:
        return (root / "sys/class/dmi/id/sys_vendor").read_text().strip() == "Amazon EC2"
    except OSError:
        return False


def _fetch(url: str, method: str, headers: dict[str, str]) -> bytes:
    request = urllib.request.Request(url, method=method, headers=headers)
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
        body: bytes = answer.read()
    return body
