"""The file that names the machines of launch_hosts.sh."""

import subprocess
from pathlib import Path

import pytest

from infra.launch.hosts_file import HostsError, Machine, read_machines
from tests.conftest import REPOSITORY


def machines(tmp_path: Path, text: str) -> list[Machine]:
    (tmp_path / "hosts").write_bytes(text.encode())
    return read_machines(tmp_path / "hosts")


def test_each_line_is_a_machine(tmp_path: Path) -> None:
    text = "\ufeff# the first one\r\ngpu1\r\n\n ubuntu@gpu-2.local:2222  # with a port\n"
    text += "fd00::1\nme@[fd00::2]:22\n[fd00::3]\n"
    assert machines(tmp_path, text) == [
        Machine("", "gpu1", None),
        Machine("ubuntu", "gpu-2.local", 2222),
        Machine("", "fd00::1", None),
        Machine("me", "fd00::2", 22),
        Machine("", "fd00::3", None),
    ]
    assert [machine.target for machine in machines(tmp_path, "ubuntu@a:2\nb")] == ["ubuntu@a", "b"]


@pytest.mark.parametrize(
    "line",
    [
        "gpu1 slots=8",
        "-oProxyCommand=reboot",
        "a:0",
        "a:65536",
        "a:x",
        "a:",
        "a@",
        "@a",
        "-x@a",
        "[a]:1",
        "1::2::3",
        "a/b",
        "$(x)",
    ],
)
def test_what_is_no_machine_is_named_with_its_line(line: str, tmp_path: Path) -> None:
    with pytest.raises(HostsError) as caught:
        machines(tmp_path, f"good\n\n{line}\nalso wrong\n")
    assert f"line 3: {line!r} must be [user@]name[:port], or [user@][IPv6 address]:port" in str(caught.value)
    assert "line 4: 'also wrong'" in str(caught.value)


def test_a_machine_is_there_once_under_whatever_user(tmp_path: Path) -> None:
    with pytest.raises(
        HostsError, match="line 3: 'root@GPU1' is the machine of line 1; list each once, for all its GPUs"
    ):
        machines(tmp_path, "me@gpu1\ngpu2\nroot@GPU1\n")
    assert len(machines(tmp_path, "127.0.0.1:1001\n127.0.0.1:1002\n")) == 2


def test_the_launcher_ends_with_2_before_it_reaches_for_any(tmp_path: Path) -> None:
    launcher = str(REPOSITORY / "infra/launch/launch_hosts.sh")
    (tmp_path / "hosts").write_text("gpu1 slots=8\n")
    for name, said in (("hosts", "line 1: 'gpu1 slots=8' must be"), ("nowhere", "cannot be read: No such file")):
        done = subprocess.run(
            [launcher, str(tmp_path / name), "yamls/full.yaml"], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 2 and said in done.stderr, done.stderr
    (tmp_path / "empty").write_text("# none\n")
    with pytest.raises(HostsError, match="names no machine"):
        read_machines(tmp_path / "empty")


def test_ssh_is_told_user_name_and_port(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("me@first:2222\n[fd00::2]:23\nthird\n")
    ssh = tmp_path / "ssh"
    ssh.write_text(f'#!/bin/bash\necho "$@" >> {tmp_path}/calls\n')
    ssh.chmod(0o755)
    done = subprocess.run(
        [str(REPOSITORY / "infra/launch/launch_hosts.sh"), str(tmp_path / "hosts"), "yamls/full.yaml"],
        env={"PATH": "/usr/bin:/bin", "SSH": str(ssh), "REPOSITORY": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    calls = sorted((tmp_path / "calls").read_text().splitlines())
    assert [" -p 2222 me@first cd " in call for call in calls].count(True) == 1
    assert [" -p 23 fd00::2 cd " in call for call in calls].count(True) == 1
    assert [" -p " not in call and " third cd " in call for call in calls].count(True) == 1
    assert all("MASTER_ADDR=first" in call for call in calls)
