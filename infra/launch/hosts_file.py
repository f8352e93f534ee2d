"""The machines of a hosts file: `python3 infra/launch/hosts_file.py HOSTS` prints a line for each, in their order.

A line of the file is `[user@]name[:port]`; an IPv6 address with a port stands in brackets, `[fd00::1]:2222`. What comes
after # does not count. Printed are, with tabs between them, what ssh is to be told (`user@name`), the port or -, and
the name by itself. It needs nothing but Python, for it runs where there may be no environment yet.
"""

import ipaddress
import re
import sys
from pathlib import Path
from typing import NamedTuple, Optional

WHAT = "must be [user@]name[:port], or [user@][IPv6 address]:port"
NAME = re.compile(
    r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?", re.ASCII
)  # no dash first: ssh would take it for an option
USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", re.ASCII)
LAST_PORT = 65_535


class Machine(NamedTuple):
    """A machine to reach by ssh; without a port ssh's own configuration says which."""

    user: str
    name: str
    port: Optional[int]  # noqa: UP045  # it runs by whatever python3 there is

    @property
    def target(self) -> str:
        return f"{self.user}@{self.name}" if self.user else self.name


class HostsError(ValueError):
    """The file names no machines, or not as it must; each line at fault is named."""


def read_machines(path: Path) -> "list[Machine]":
    """Return the machines of a file.

    Raises:
        HostsError: it cannot be read; a line is none; or a machine is there twice, be it under two users.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise HostsError(f"{path} cannot be read: {reason}; give a file with a machine on each line") from error
    found: dict[tuple[str, Optional[int]], int] = {}  # noqa: UP045  # as above
    machines, faults = [], []
    for number, line in enumerate(text.splitlines(), 1):
        entry = line.partition("#")[0].strip()
        if not entry:
            continue
        machine = _machine(entry)
        if machine is None:
            faults.append(f"line {number}: {entry!r} {WHAT}")
            continue
        first = found.setdefault((machine.name.lower(), machine.port), number)
        if first != number:
            faults.append(f"line {number}: {entry!r} is the machine of line {first}; list each once, for all its GPUs")
        machines.append(machine)
    if faults:
        raise HostsError(f"{path}:\n  " + "\n  ".join(faults))
    if not machines:
        raise HostsError(f"{path} names no machine; give one on each line: {WHAT}")
    return machines


def _machine(entry: str) -> "Optional[Machine]":  # noqa: UP045  # as above
    user, at, rest = entry.rpartition("@")
    if at and not USER.fullmatch(user):
        return None
    bracketed = re.fullmatch(r"\[(.+)\](?::(\d+))?", rest)
    if bracketed:
        name, port = bracketed[1], bracketed[2]
        is_sound = _is_ipv6(name)
    elif rest.count(":") > 1:
        name, port, is_sound = rest, None, _is_ipv6(rest)
    else:
        name, colon, digits = rest.partition(":")
        port = digits if colon else None
        is_sound = bool(NAME.fullmatch(name))
    if not is_sound or (port is not None and not (port.isdecimal() and 1 <= int(port) <= LAST_PORT)):
        return None
    return Machine(user, name, None if port is None else int(port))


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text.partition("%")[0])
    except ValueError:
        return False
    return True


def main() -> int:
    """Print the machines; return 0, or 2 where the file is not as it must be."""
    try:
        for machine in read_machines(Path(sys.argv[1])):
            print(machine.target, machine.port or "-", machine.name, sep="\t")
    except HostsError as error:
        print(f"infra/launch/launch_hosts.sh: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
