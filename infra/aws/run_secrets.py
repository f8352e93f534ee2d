"""Secrets of runs, such as WANDB_API_KEY: in SSM's Parameter Store, where nodes read them; in no file, in no log."""

import getpass
import re
import sys
from collections.abc import Sequence
from typing import Any

from infra.aws.spending import RefusedError

NAME = re.compile(r"[A-Z][A-Z0-9_]{0,99}")
MOST_BYTES = 4096  # of a standard parameter, which is free


def path_of(project: str, name: str) -> str:
    """The parameter's name; infra/aws/foundation.yaml lets the nodes read what begins so."""
    return f"/{project}/{name}"


def check_names(names: Sequence[str]) -> None:
    """Refuse what is no environment variable's name.

    Raises:
        RefusedError: naming it.
    """
    wrong = [name for name in names if not NAME.fullmatch(name)]
    if wrong:
        raise RefusedError(f"--secret {wrong[0]}: must be an environment variable's name, such as WANDB_API_KEY")


def put(ssm: Any, project: str, name: str) -> None:
    """Read a secret from the terminal, or from standard input, and keep it.

    Raises:
        RefusedError: it is empty or too long, or the name is no variable's.
    """
    check_names([name])
    value = getpass.getpass(f"{name}: ") if sys.stdin.isatty() else sys.stdin.read()
    value = value.rstrip("\r\n")
    if not 0 < len(value.encode()) <= MOST_BYTES:
        raise RefusedError(f"{name}: has {len(value.encode())} bytes; 1 to {MOST_BYTES} are allowed")
    ssm.put_parameter(Name=path_of(project, name), Value=value, Type="SecureString", Overwrite=True)


def names(ssm: Any, project: str) -> list[str]:
    """The names of the secrets that are kept. The secrets themselves are not read."""
    kept = {"Key": "Path", "Option": "Recursive", "Values": [f"/{project}"]}
    pages = ssm.get_paginator("describe_parameters").paginate(ParameterFilters=[kept])
    return sorted(entry["Name"].rpartition("/")[2] for page in pages for entry in page["Parameters"])


def check_there(ssm: Any, project: str, names: Sequence[str]) -> None:
    """Refuse to submit with a secret that nobody has put there. The secrets themselves are not read.

    Raises:
        RefusedError: naming those that lack.
    """
    if not names:
        return
    found = ssm.get_parameters(Names=[path_of(project, name) for name in names], WithDecryption=False)
    if found["InvalidParameters"]:
        lacking = ", ".join(path.rpartition("/")[2] for path in found["InvalidParameters"])
        raise RefusedError(f"no secret {lacking}; `infra/aws/cli.py secret {lacking}` puts it there")
