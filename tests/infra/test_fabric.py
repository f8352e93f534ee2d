"""NCCL uses EFA where there is EFA, or the run ends; looked at in trees that look as AWS's installer leaves them."""

import json
import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

from infra.launch import fabric
from infra.launch.fabric import FabricError, variables
from infra.launch.node import Settings, SettingsError
from tests.conftest import REPOSITORY


def tree(root: Path, *, efa: int = 0, others: int = 0, plugin: str = "") -> dict[str, str]:
    """A machine's / with so many adapters in /sys, and NCCL's plug-in there; returns the variable that names it."""
    for driver, count in (("efa", efa), ("mlx5_core", others)):
        for number in range(count):
            device = root / f"sys/class/infiniband/{driver}{number}/device"
            device.mkdir(parents=True)
            (root / f"sys/bus/{driver}").mkdir(parents=True, exist_ok=True)
            (device / "driver").symlink_to(root / f"sys/bus/{driver}")
    if plugin:
        (root / plugin).parent.mkdir(parents=True)
        (root / plugin).touch()
        (root / "opt/amazon/efa/lib").mkdir(parents=True)
    return {fabric.ROOT_VARIABLE: str(root)}


def found(env: dict[str, str], *, nodes: int = 2, gpus: int = 8) -> dict[str, str]:
    return variables(env, nodes=nodes, gpus=gpus, log_dir=Path("/runs/1"))


@pytest.mark.parametrize(
    ("plugin", "more"),
    [
        ("opt/amazon/ofi-nccl/lib/x86_64-linux-gnu/libnccl-net.so", None),
        ("opt/amazon/ofi-nccl/lib/libnccl-net.so", None),
        ("opt/amazon/ofi-nccl/lib64/libnccl-net.so", None),
        ("opt/aws-ofi-nccl/lib/libnccl-net.so", None),
        ("opt/amazon/ofi-nccl/lib/x86_64-linux-gnu/libnccl-net-ofi.so", "ofi"),
    ],
)
def test_between_machines_with_efa_nccl_is_told_to_use_it_alone(tmp_path: Path, plugin: str, more: str | None) -> None:
    got = found(tree(tmp_path, efa=4, plugin=plugin) | {"LD_LIBRARY_PATH": "/usr/local/lib"})
    assert (got["NCCL_NET"], got["FI_PROVIDER"]) == ("AWS Libfabric", "efa")
    assert got.get("NCCL_NET_PLUGIN") == more
    folders = [str((tmp_path / plugin).parent), f"{tmp_path}/opt/amazon/efa/lib", "/usr/local/lib"]
    assert got["LD_LIBRARY_PATH"] == ":".join(folders)


@pytest.mark.parametrize(
    ("env", "nodes", "gpus"),
    [({"REQUIRE_EFA": "0"}, 2, 8), ({}, 1, 8), ({}, 2, 0)],
    ids=["switched off", "one machine", "no GPUs"],
)
def test_nccl_is_left_alone_where_it_need_not_use_efa(
    tmp_path: Path, env: dict[str, str], nodes: int, gpus: int
) -> None:
    got = found(tree(tmp_path, efa=1) | env, nodes=nodes, gpus=gpus)
    assert "NCCL_NET" not in got and got["FI_PROVIDER"] == "efa"


def test_a_machine_with_efa_but_without_nccls_plugin_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        FabricError, match=r"is in none of /opt/amazon/ofi-nccl/lib/\*-linux-gnu, .* NCCL would take TCP"
    ):
        found(tree(tmp_path, efa=1))
    elsewhere = tmp_path / "own"
    elsewhere.mkdir()
    (elsewhere / "libnccl-net.so").touch()
    for known in ({"LD_LIBRARY_PATH": str(elsewhere)}, {"NCCL_NET_PLUGIN": "own"}):
        assert found({fabric.ROOT_VARIABLE: str(tmp_path), **known})["NCCL_NET"] == "AWS Libfabric"


@pytest.mark.parametrize("others", [0, 2])
def test_without_efa_devices_only_who_asks_for_efa_is_refused(tmp_path: Path, others: int) -> None:
    root = tree(tmp_path, others=others)
    got = found(root)
    assert not {"NCCL_NET", "FI_PROVIDER"} & got.keys()
    assert got["NCCL_SOCKET_IFNAME"] == "^lo,docker0,veth"
    with pytest.raises(FabricError, match="no EFA device in /sys/class/infiniband"):
        found(root | {"REQUIRE_EFA": "1"})
    with pytest.raises(SettingsError, match="REQUIRE_EFA=yes must be 0 or 1"):
        Settings.of({"REQUIRE_EFA": "yes"})


def test_what_is_set_already_stays(tmp_path: Path) -> None:
    mine = {"NCCL_NET": "Socket", "NCCL_DEBUG": "INFO", "FI_PROVIDER": "tcp"}
    got = found(tree(tmp_path, efa=1, plugin="opt/amazon/ofi-nccl/lib/libnccl-net.so") | mine)
    assert not got.keys() & mine.keys()


def test_the_flight_recorder_writes_into_the_runs_folder_by_the_names_that_each_torch_knows() -> None:
    new, old = (fabric.flight_recorder(Path("/runs/1"), version) for version in ("2.15.0", "2.7.0"))
    assert new["TORCH_FR_DUMP_TEMP_FILE"] == old["TORCH_NCCL_DEBUG_INFO_TEMP_FILE"] == "/runs/1/flight-recorder-rank"
    assert new["TORCH_FR_BUFFER_SIZE"] == old["TORCH_NCCL_TRACE_BUFFER_SIZE"] == "2000"
    assert new["TORCH_FR_DUMP_ON_TIMEOUT"] == old["TORCH_NCCL_DUMP_ON_TIMEOUT"] == "1"


def test_the_names_are_in_the_torch_that_is_installed() -> None:
    import torch

    libraries = [Path(torch.__file__).with_name("lib") / f"libtorch_{part}.so" for part in ("cpu", "cuda")]
    missing = set(fabric.flight_recorder(Path("/runs/1")))
    for library in (path for path in libraries if path.exists()):
        with open(library, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            missing -= {name for name in missing if content.find(name.encode()) >= 0}
    assert not missing


@pytest.fixture
def one_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An nvidia-smi that lists one."""
    smi = tmp_path / "bin/nvidia-smi"
    smi.parent.mkdir()
    smi.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-1)'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{smi.parent}:{os.environ['PATH']}")


@pytest.mark.usefixtures("one_gpu")
def test_the_ranks_of_each_machine_get_the_variables_however_it_was_started(tmp_path: Path) -> None:
    """node.py itself, with a launcher that writes down its environment."""
    program = (
        "import os, sys; from infra.launch.node import Node, Settings\n"
        "Settings.launcher = lambda self, argv: [sys.executable, '-c', 'import json, os; "
        'json.dump(dict(os.environ), open(os.environ["LOG_DIR"] + "/env", "w"))\']\n'
        "raise SystemExit(Node(Settings.of(os.environ)).run([]))"
    )
    env = os.environ | tree(tmp_path / "root", efa=1, plugin="opt/amazon/ofi-nccl/lib/libnccl-net.so")
    env |= {"LOG_DIR": str(tmp_path), "NODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "n1", "PREFLIGHT": "0"}
    subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, env=env, check=True, timeout=60)
    got = json.loads((tmp_path / "env").read_text())
    assert (got["NCCL_NET"], got["FI_PROVIDER"]) == ("AWS Libfabric", "efa")
    recorder = fabric.flight_recorder(tmp_path)
    assert f"{tmp_path}/flight-recorder-rank" in recorder.values() and recorder.items() <= got.items()
    assert got["LD_LIBRARY_PATH"].startswith(f"{tmp_path}/root/opt/amazon/ofi-nccl/lib:")


@pytest.mark.usefixtures("one_gpu")
def test_a_node_that_would_take_tcp_is_refused_before_its_ranks_start(tmp_path: Path) -> None:
    env = os.environ | tree(tmp_path, efa=1) | {"NODES": "2", "NODE_RANK": "0", "MASTER_ADDR": "n1"}
    done = subprocess.run(
        [sys.executable, "infra/launch/node.py", "yamls/full.yaml"],
        cwd=REPOSITORY,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2 and "NCCL would take TCP" in done.stderr


def part(**env: str) -> str:
    """What launch_hosts.sh sends to the first of two machines, before an ssh that only notes it."""
    hosts = Path(env["TMP"], "hosts")
    hosts.write_text("n1\nn2\n")
    ssh = Path(env["TMP"], "ssh")
    ssh.write_text(f'#!/bin/sh\nfor last; do :; done; echo "$last" >> {env["TMP"]}/sent\n')
    ssh.chmod(0o755)
    subprocess.run(
        ["infra/launch/launch_hosts.sh", str(hosts), "yamls/full.yaml"],
        cwd=REPOSITORY,
        env=os.environ | {"SSH": str(ssh)} | env,
        check=True,
        timeout=60,
        capture_output=True,
    )
    return min(Path(env["TMP"], "sent").read_text().splitlines(), key=lambda line: "NODE_RANK=1" in line)


def test_launch_hosts_hands_the_settings_on(tmp_path: Path) -> None:
    sent = part(TMP=str(tmp_path), REQUIRE_EFA="1", NCCL_DEBUG="INFO")
    assert "REQUIRE_EFA=1 NCCL_DEBUG=INFO .venv/bin/python infra/launch/node.py yamls/full.yaml" in sent


def test_a_container_by_ssh_gets_the_efa_devices_of_a_machine_that_has_some(tmp_path: Path) -> None:
    sent = part(TMP=str(tmp_path), REQUIRE_EFA="1", IMAGE="resnet:efa", MOUNTS="none")
    assert "$(test ! -d /dev/infiniband || echo --device=/dev/infiniband)" in sent
    words = subprocess.run(
        ["bash", "-c", f"docker() {{ printf '%s\\n' \"$@\"; }}; {sent.replace('exec docker', 'docker')}"],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    ).stdout.split("\n")
    assert words[0] == "run" and ("--device=/dev/infiniband" in words) == Path("/dev/infiniband").is_dir()
    assert words[words.index("resnet:efa") :][:3] == ["resnet:efa", "python", "infra/launch/node.py"]
    assert "--env=REQUIRE_EFA=1" in words


@pytest.mark.parametrize(
    ("wrong", "words"),
    [("0" * 64, "nothing of it was run"), ("latest", "is not a SHA-256 of 64 hexadecimal digits")],
)
def test_efas_installer_runs_only_with_the_checksum_that_is_expected(tmp_path: Path, wrong: str, words: str) -> None:
    installer = tmp_path / "aws-efa-installer/efa_installer.sh"
    installer.parent.mkdir()
    installer.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/ran\n')
    installer.chmod(0o755)
    archive = tmp_path / "aws-efa-installer-1.2.3.tar.gz"
    subprocess.run(["tar", "-czf", archive, "aws-efa-installer"], cwd=tmp_path, check=True)
    env = os.environ | {"EFA_SOURCE": tmp_path.as_uri()}

    def install(checksum: str) -> subprocess.CompletedProcess[str]:
        command = ["bash", str(REPOSITORY / "docker/efa.sh"), "1.2.3", checksum]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)

    refused = install(wrong)
    assert refused.returncode != 0 and words in refused.stderr and not (tmp_path / "ran").exists()
    right = subprocess.run(["sha256sum", archive], capture_output=True, text=True, check=True).stdout.split()[0]
    assert install(right).returncode == 0
    assert "--skip-kmod" in (tmp_path / "ran").read_text()
