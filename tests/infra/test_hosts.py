"""`launch_hosts.sh` over two hosts with a real sshd each, whose link can be cut."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY
from tests.infra.hosts import Host, running_hosts
from tests.integration.problem import command, record_of, what_must_match

pytestmark = pytest.mark.machine

PEER_LIMIT_S = 6
SECONDS_TO_STOP = 3 * PEER_LIMIT_S
"""Of silence, then of the other's grace, then some for the ranks to be killed."""


class Machines:
    """Two hosts with sshd, and what the launcher needs to reach them."""

    def __init__(self, folder: Path, hosts: list[Host]) -> None:
        self.folder, self.hosts = folder, hosts
        self.private = folder / "node-local"
        self.private.mkdir()
        self.logs = REPOSITORY / "runs/hosts"
        self.daemons: list[subprocess.Popen[bytes]] = []
        for name in ("host_key", "id"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
        shutil.copy(folder / "id.pub", folder / "authorized_keys")
        self._write(
            "sshd_config",
            f"HostKey {folder}/host_key\nAuthorizedKeysFile {folder}/authorized_keys\nStrictModes no\nUsePAM no\n"
            f"PidFile none\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n",
        )
        self._write(
            "ssh_config",
            f"IdentityFile {folder}/id\nStrictHostKeyChecking no\nUserKnownHostsFile /dev/null\nUser root\n",
        )
        self._write("hosts", "# the first one is asked to be the meeting place\nn1\nroot@n2\n")
        self._write("env", f"export TMPDIR={self.private} CUDA_VISIBLE_DEVICES= S3_ENDPOINT_URL=\n")
        Path("/run/sshd").mkdir(exist_ok=True)

    def start(self) -> None:
        for host in self.hosts:
            sshd = ["/usr/sbin/sshd", "-D", "-e", "-f", f"{self.folder}/sshd_config"]
            with open(self.folder / "sshd.log", "ab") as log:
                self.daemons.append(subprocess.Popen(host.command(sshd, self.private), stdout=log, stderr=log))
        time.sleep(1)

    def launch(self, argv: list[str], **more: str) -> subprocess.Popen[str]:
        """The launcher, on the first host."""
        env = os.environ | {
            "SSH": f"ssh -q -F {self.folder}/ssh_config",
            "VENV": sys.prefix,
            "ENV_FILE": f"{self.folder}/env",
            "RANKS": "1",
            "PEER_LIMIT_S": str(PEER_LIMIT_S),
            **more,
        }
        line = self.hosts[0].command(["infra/launch/launch_hosts.sh", f"{self.folder}/hosts", *argv], self.private)
        output: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(line, cwd=REPOSITORY, env=env, process_group=0, preexec_fn=_hear_ctrl_c, **output)

    def run(self, argv: list[str], **more: str) -> str:
        """To the end."""
        output, _ = (started := self.launch(argv, **more)).communicate(timeout=240)
        assert started.returncode == 0, output
        return output

    def ranks(self, host: Host) -> list[int]:
        return [pid for pid in host.pids() if b"train/main.py" in _cmdline(pid)]

    def _write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)


def _hear_ctrl_c() -> None:
    """A test that runs in the background has Ctrl-C ignored, and a shell cannot trap what is."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    if not Path("/usr/sbin/sshd").exists():
        pytest.fail("sshd: not found; apt-get install openssh-server")
    with tempfile.TemporaryDirectory(prefix="hosts-") as folder, running_hosts(["n1", "n2"]) as (hosts, _):
        found = Machines(Path(folder), hosts)
        found.start()
        yield found


@pytest.fixture(scope="module")
def undisturbed(machines: Machines, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("undisturbed")
    output = machines.run(command(shards, folder))
    assert "[n1] " in output
    record = record_of(folder)
    assert record["hardware"]["world_size"] == 2
    return what_must_match(record)


def wait_for_checkpoint(started: subprocess.Popen[str], folder: Path) -> None:
    deadline = time.monotonic() + 120
    while not list(folder.glob("ep*.pt")):
        assert time.monotonic() < deadline and started.poll() is None, started.communicate(timeout=30)
        time.sleep(0.05)


def test_a_link_that_is_cut_stops_both_ends_with_the_peers_name_and_the_run_goes_on_exactly(
    machines: Machines, shards: Path, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    one, two = machines.hosts
    started = machines.launch(command(shards, tmp_path))
    wait_for_checkpoint(started, tmp_path)
    assert machines.ranks(one) and machines.ranks(two)
    said_before = len((machines.logs / "node-1.log").read_text()) if (machines.logs / "node-1.log").exists() else 0
    two.set_link(up=False)
    cut_at = time.monotonic()
    try:
        output, _ = started.communicate(timeout=120)
        deadline = cut_at + SECONDS_TO_STOP
        while machines.ranks(one) or machines.ranks(two):
            assert time.monotonic() < deadline, "ranks are left"
            time.sleep(0.1)
        assert time.monotonic() - cut_at < SECONDS_TO_STOP
    finally:
        two.set_link(up=True)
    assert started.returncode == 1, output
    assert f"n2 has not answered for {PEER_LIMIT_S} s" in output
    other_end = (machines.logs / "node-1.log").read_text()[said_before:]
    assert f"nothing was heard from n1 for {PEER_LIMIT_S} s" in other_end
    again = machines.run(command(shards, tmp_path))
    assert "resume: from" in again
    assert what_must_match(record_of(tmp_path)) == undisturbed


def to_the_launcher(machines: Machines, started: subprocess.Popen[str], number: signal.Signals) -> None:
    started.send_signal(number)


def to_its_group(machines: Machines, started: subprocess.Popen[str], number: signal.Signals) -> None:
    os.killpg(started.pid, number)


def to_one_machines_group(machines: Machines, started: subprocess.Popen[str], number: signal.Signals) -> None:
    part = next(pid for pid in machines.hosts[1].pids() if b"infra/launch/node.py" in _cmdline(pid).split(b"\0"))
    os.killpg(os.getpgid(part), number)


@pytest.mark.parametrize(
    ("send", "number"),
    [
        (to_the_launcher, signal.SIGUSR1),
        (to_its_group, signal.SIGTERM),
        (to_its_group, signal.SIGINT),
        (to_its_group, signal.SIGUSR1),
        (to_one_machines_group, signal.SIGTERM),
    ],
)
def test_a_signal_saves_first_on_all_machines(
    machines: Machines,
    shards: Path,
    undisturbed: dict[str, Any],
    tmp_path: Path,
    send: Callable[[Machines, subprocess.Popen[str], signal.Signals], None],
    number: signal.Signals,
) -> None:
    argv = command(shards, tmp_path, "checkpoint.save_interval=2ba", "data.num_workers=2")
    started = machines.launch(argv)  # 12 batches: time enough to pass the signal on
    wait_for_checkpoint(started, tmp_path)
    send(machines, started, number)
    output, _ = started.communicate(timeout=120)
    assert started.returncode == 75, output
    assert "the checkpoint is saved" in output
    assert not any(machines.ranks(host) for host in machines.hosts)
    assert "resume: from" in machines.run(argv)
    assert what_must_match(record_of(tmp_path)) == undisturbed


def test_one_machines_failure_stops_the_others(machines: Machines, shards: Path, tmp_path: Path) -> None:
    started = machines.launch(command(shards, tmp_path))
    wait_for_checkpoint(started, tmp_path)
    for pid in machines.ranks(machines.hosts[1]):
        os.kill(pid, 9)
    output, _ = started.communicate(timeout=120)
    assert started.returncode == 1, output
    assert "ended with status" in output
    deadline = time.monotonic() + SECONDS_TO_STOP
    while any(machines.ranks(host) for host in machines.hosts):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_save_folders_of_each_hosts_own_work(machines: Machines, shards: Path, undisturbed: dict[str, Any]) -> None:
    """The first host has the checkpoints, the second gets them from it."""
    folder = machines.private / "run"  # a tmpfs of each host
    first, second = (Path(f"/proc/{daemon.pid}/root{folder}") for daemon in machines.daemons)
    argv = command(shards, folder, "checkpoint.save_interval=2ba")
    started = machines.launch(argv)
    wait_for_checkpoint(started, first)
    for pid in machines.ranks(machines.hosts[0]):
        os.kill(pid, 9)
    started.communicate(timeout=120)
    assert not list(second.glob("ep*.pt"))
    assert "resume: from" in machines.run(argv)
    assert what_must_match(record_of(first)) == undisturbed


def test_each_part_runs_in_an_image(
    machines: Machines, undisturbed: dict[str, Any], shards: Path, tmp_path: Path
) -> None:
    """With a stand-in for docker: what it gets of folders and credentials, and that the run is the same."""
    programs, runs = tmp_path / "programs", tmp_path / "runs"
    programs.mkdir()
    runs.mkdir()
    (programs / "docker").symlink_to(REPOSITORY / "tests/infra/container_stand_in.py")
    env_file = tmp_path / "env"
    path = f"{programs}:{Path(sys.executable).parent}:$PATH"
    variables = f"TMPDIR={machines.private} CUDA_VISIBLE_DEVICES= S3_ENDPOINT_URL= WANDB_API_KEY=of-the-machine"
    env_file.write_text(f"export PATH={path} {variables}\n")
    image = {"IMAGE": "resnet-streaming", "ENV_FILE": str(env_file), "VENV": "/not/there"}
    refused = machines.launch(command(shards, runs), **image)
    assert "IMAGE needs MOUNTS" in refused.communicate(timeout=60)[0]
    assert refused.returncode == 2
    output = machines.run(command(shards, runs), MOUNTS=f"{shards} {runs}", **image)
    assert what_must_match(record_of(runs)) == undisturbed
    assert f"[n1] stand-in: {runs}, {shards}" in output and "[n2] stand-in: " in output
    assert "WANDB_API_KEY" in output and "of-the-machine" not in output
