"""infra/aws/containers.sh over a folder laid out as ParallelCluster's image is."""

import subprocess
from pathlib import Path

import pytest

from infra.aws.cluster import CONTAINER_SCRIPT


def node(root: Path, kind: str, release: str = "24.04") -> Path:
    examples = root / "opt/parallelcluster/examples"
    for name in ("enroot/enroot.conf", "pyxis/pyxis.conf", "spank/plugstack.conf"):
        (examples / name).parent.mkdir(parents=True, exist_ok=True)
        (examples / name).write_text(f"of {name}\n")
    for folder in ("etc/parallelcluster", "etc/sysctl.d", "opt/slurm/bin", "run", "var"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "etc/parallelcluster/cfnconfig").write_text(f"stack_name=resnet\ncfn_node_type={kind}\n")
    (root / "etc/os-release").write_text(f'ID=ubuntu\nVERSION_ID="{release}"\n')
    scontrol = root / "opt/slurm/bin/scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {root}/scontrol.calls\n')
    scontrol.chmod(0o755)
    (root / "programs").mkdir(exist_ok=True)
    (root / "programs/sysctl").write_text(f'#!/bin/sh\necho "$@" >> {root}/sysctl.calls\n')
    (root / "programs/sysctl").chmod(0o755)
    return root


def run(root: Path) -> subprocess.CompletedProcess[str]:
    env = {"ROOT_FOLDER": str(root), "PATH": f"{root}/programs:/usr/bin:/bin"}
    return subprocess.run(["bash", str(CONTAINER_SCRIPT)], env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("kind", ["HeadNode", "ComputeFleet"])
def test_enroot_is_turned_on_on_each_node_and_pyxis_on_the_head(kind: str, tmp_path: Path) -> None:
    root = node(tmp_path, kind)
    for _ in range(2):  # a node that is started again
        done = run(root)
        assert done.returncode == 0, done.stderr
    assert (root / "etc/enroot/enroot.conf").read_text() == "of enroot/enroot.conf\n"
    for folder in ("var/enroot", "run/enroot", "run/pyxis"):
        assert (root / folder).stat().st_mode & 0o7777 == 0o1777
    assert "apparmor_restrict_unprivileged_userns = 0" in (root / "etc/sysctl.d/99-enroot.conf").read_text()
    assert (root / "sysctl.calls").read_text() == "--quiet --system\n" * 2
    plugin = root / "opt/slurm/etc/plugstack.conf.d/pyxis.conf"
    assert plugin.exists() == (kind == "HeadNode")
    assert (root / "scontrol.calls").exists() == (kind == "HeadNode")


def test_an_older_ubuntu_keeps_its_settings(tmp_path: Path) -> None:
    root = node(tmp_path, "ComputeFleet", "22.04")
    assert run(root).returncode == 0
    assert not (root / "etc/sysctl.d/99-enroot.conf").exists()


def test_an_image_without_them_is_said(tmp_path: Path) -> None:
    root = node(tmp_path, "ComputeFleet")
    (root / "opt/parallelcluster/examples/pyxis/pyxis.conf").unlink()
    done = run(root)
    assert done.returncode == 1
    assert "from 3.11.1 on" in done.stderr
