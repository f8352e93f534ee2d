"""What NCCL and torch are told on a machine: which network they take, and what they write when they hang.

infra/launch/node.py gives these variables to its ranks, so they are the same by Slurm, by ssh and by SkyPilot. A value
that is set already stays. REQUIRE_EFA decides whether a run over several machines may do without EFA:

    not set   where the machine has EFA devices, NCCL uses them or the run ends; elsewhere NCCL takes what there is
    1         a machine without EFA devices is refused as well
    0         NCCL takes what there is, and may take TCP without a word
"""

import subprocess
from collections.abc import Mapping
from pathlib import Path

from infra.plan.torch_code import installed_torch

# A value of NCCL_NET that is not a network's name makes NCCL end, instead of taking another network
# (docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html, NCCL_NET). Up to 1.11 NCCL's plug-in for EFA calls itself
# "AWS Libfabric"; from 1.12 on "Libfabric", but by this name if NCCL_NET says so (github.com/aws/aws-ofi-nccl, pull
# request 530: nvidia_plugin_name_fixup). So this one value is right for every version.
EFA_NETWORK = "AWS Libfabric"
# NCCL says "Using network NAME" when it has started; the names by which the plug-in goes.
EFA_NETWORK_NAMES = ("AWS Libfabric", "Libfabric", "OFI")
# Where AWS's installer puts the plug-in: on Debian and Ubuntu in the first, elsewhere in the others; before its release
# 1.38 it was a package of its own, in the last.
PLUGIN_FOLDERS = (
    "opt/amazon/ofi-nccl/lib/*-linux-gnu",
    "opt/amazon/ofi-nccl/lib",
    "opt/amazon/ofi-nccl/lib64",
    "opt/aws-ofi-nccl/lib",
)
LIBFABRIC_FOLDERS = ("opt/amazon/efa/lib", "opt/amazon/efa/lib64")
ROOT_VARIABLE = "FABRIC_ROOT"  # instead of /, to look at another tree

ALWAYS = {
    # NCCL must not take the loopback or Docker's bridge to meet (same page, NCCL_SOCKET_IFNAME; "^" leaves out).
    "NCCL_SOCKET_IFNAME": "^lo,docker0,veth",
    "NCCL_DEBUG": "WARN",  # INFO says which network is used: docs/cloud.md
    # A collective that fails ends the process with an error instead of hanging.
    # (pytorch.org/docs/stable/torch_nccl_environment_variables.html; Composer's launcher sets it too.)
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
}
FLIGHT_RECORDER_ENTRIES = "2000"  # the last collectives of each rank; torch's own default from 2.9 on


class FabricError(ValueError):
    """The network that is wanted cannot be had; the message says what is missing."""


def variables(env: Mapping[str, str], *, nodes: int, gpus: int, log_dir: Path) -> dict[str, str]:
    """What the ranks of this machine get, beside what is set already.

    Args:
        env: what is set already.
        nodes: machines of the run.
        gpus: of this machine; NCCL needs them.

    Raises:
        FabricError: the run has to use EFA and cannot.
    """
    wanted = ALWAYS | flight_recorder(log_dir) | network(env, nodes=nodes, gpus=gpus)
    return {name: value for name, value in wanted.items() if name == "LD_LIBRARY_PATH" or not env.get(name)}


def flight_recorder(log_dir: Path, torch_version: str | None = None) -> dict[str, str]:
    """When a collective times out, each rank writes there which ones were under way; `python -m
    torch.distributed.flight_recorder.fr_trace` reads it.

    Today's torch has other names for these than 2.7; 2.15 takes the old ones too, and warns of them.
    """
    version = installed_torch() if torch_version is None else torch_version
    files = str(log_dir / "flight-recorder-rank")  # the rank's number is added
    if version.startswith("2.7."):
        return {
            "TORCH_NCCL_TRACE_BUFFER_SIZE": FLIGHT_RECORDER_ENTRIES,
            "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
            "TORCH_NCCL_DEBUG_INFO_TEMP_FILE": files,
        }
    return {
        "TORCH_FR_BUFFER_SIZE": FLIGHT_RECORDER_ENTRIES,
        "TORCH_FR_DUMP_ON_TIMEOUT": "1",
        "TORCH_FR_DUMP_TEMP_FILE": files,
    }


def network(env: Mapping[str, str], *, nodes: int, gpus: int) -> dict[str, str]:
    """What makes NCCL use EFA between machines, where there is EFA; else nothing.

    Raises:
        FabricError: there is no device, or no plug-in.
    """
    root, wish = root_of(env), env.get("REQUIRE_EFA", "")
    if wish not in ("", "0", "1"):
        raise FabricError(f"REQUIRE_EFA={wish} must be 0 or 1")
    devices = efa_devices(root)
    if not devices and wish == "1":
        raise FabricError(
            "REQUIRE_EFA=1, and this machine has no EFA device in /sys/class/infiniband: an instance type without, or "
            "a queue or launch template that attaches none"
        )
    if not devices:
        return {}
    # Fork safety: loader workers are forked while memory is registered with the adapter. The kernel has it since 5.13,
    # where this costs nothing. (github.com/aws/aws-ofi-nccl, README, "Fork safety".)
    found = {"FI_PROVIDER": "efa", "FI_EFA_FORK_SAFE": "1"}
    if wish == "0" or nodes == 1 or gpus == 0:
        return found
    return found | {"NCCL_NET": EFA_NETWORK} | _loading(env, root)


def _loading(env: Mapping[str, str], root: Path) -> dict[str, str]:
    """What lets NCCL find its plug-in."""
    if env.get("NCCL_NET_PLUGIN"):
        return {}
    libraries = plugins(root)
    path = [*filter(None, env.get("LD_LIBRARY_PATH", "").split(":"))]
    if not libraries:
        if _is_known_to_the_loader(path):
            return {}
        raise FabricError(
            f"this machine has EFA, but NCCL's plug-in for it (libnccl-net.so) is in none of "
            f"{', '.join('/' + folder for folder in PLUGIN_FOLDERS)}: NCCL would take TCP. Run AWS's EFA installer, "
            "take an image built with --build-arg EFA=1, or set REQUIRE_EFA=0"
        )
    folder = libraries[0].parent
    more = [str(folder), *(str(root / name) for name in LIBFABRIC_FOLDERS if (root / name).is_dir())]
    found = {"LD_LIBRARY_PATH": ":".join([*(name for name in more if name not in path), *path])}
    if libraries[0].name != "libnccl-net.so":  # by that name alone NCCL looks for it unasked
        found["NCCL_NET_PLUGIN"] = "ofi"
    return found


def root_of(env: Mapping[str, str]) -> Path:
    """The tree to look at: /, but in tests."""
    return Path(env.get(ROOT_VARIABLE) or "/")


def efa_devices(root: Path) -> list[str]:
    """Names of this machine's EFA devices. Another maker's adapters are beside them in /sys/class/infiniband."""
    folder = root / "sys/class/infiniband"
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if _driver(path) in ("efa", ""))


def _driver(device: Path) -> str:
    link = device / "device/driver"
    return link.resolve().name if link.exists() else ""


def plugins(root: Path) -> list[Path]:
    """NCCL's plug-ins for EFA in their known places, the one by NCCL's own name first."""
    folders = [folder for pattern in PLUGIN_FOLDERS for folder in sorted(root.glob(pattern))]
    names = ("libnccl-net.so", "libnccl-net-ofi.so")
    return [folder / name for name in names for folder in folders if (folder / name).exists()]


def _is_known_to_the_loader(path: list[str]) -> bool:
    """Whether libnccl-net.so is in LD_LIBRARY_PATH's folders, or in the loader's cache."""
    if any(Path(folder, "libnccl-net.so").exists() for folder in path):
        return True
    try:
        cached = subprocess.run(["ldconfig", "-p"], capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return False
    return "libnccl-net.so" in cached
