"""Is everything there that a run wants? One line for each thing looked at.

    docker run --gpus all --ipc host IMAGE doctor [s3://BUCKET/PATH ...]
    python docker/doctor.py [s3://BUCKET/PATH ...] [--gpus N] [--efa]

Exit status 1 if something is amiss. A machine without GPUs or EFA is only told so, unless --gpus or --efa ask for them.
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

# Started as a script, Python puts this file's own folder on the path; the packages are in the one above.
_HERE = Path(__file__).resolve().parent
if Path(sys.path[0] or ".").resolve() == _HERE:
    sys.path[0] = str(_HERE.parent)

OK, NOTE, AMISS = "ok", "note", "AMISS"
# One GPU: as many workers as cores, 12 at most, with 6 blocks each (imagestream/data/buffers.py) for the training and
# as many for the evaluation. A batch of 256 images of 224 px is 38.5 MB.
SHARED_MEMORY_BYTES = min(12, os.cpu_count() or 1) * 2 * 6 * 256 * 224 * 224 * 3


@dataclass(frozen=True)
class Finding:
    """What was looked at, and what was seen; `level` is OK, NOTE or AMISS."""

    level: str
    what: str
    seen: str


def main(argv: Sequence[str]) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="doctor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("places", nargs="*", metavar="s3://BUCKET/PATH", help="folders that have to be readable")
    parser.add_argument("--gpus", type=int, default=0, help="how many there have to be")
    parser.add_argument("--efa", action="store_true", help="EFA has to be usable")
    args = parser.parse_args(argv)
    looks: list[Callable[[], Finding]] = [
        torch_and_composer,
        lambda: gpus(args.gpus),
        nccl,
        lambda: efa(wanted=args.efa),
        decoder,
        shared_memory,
        locked_memory,
        *(lambda place=place: s3(place) for place in args.places),
    ]
    findings = [_safely(look) for look in looks]
    for finding in findings:
        print(f"{finding.level:<6} {finding.what:<14} {finding.seen}")
    return int(any(finding.level == AMISS for finding in findings))


def torch_and_composer() -> Finding:
    """Whether what a run imports can be imported."""
    from importlib.metadata import version

    import composer
    import streaming
    import torch

    del composer, streaming
    names = ("torch", "torchvision", "mosaicml", "mosaicml-streaming")
    cuda = torch.version.cuda or "none"
    return Finding(OK, "software", ", ".join(f"{name} {version(name)}" for name in names) + f", CUDA {cuda}")


def gpus(wanted: int) -> Finding:
    """GPUs that torch can use."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count < max(wanted, 1):
        there = "nvidia-smi is there, so the driver is too old or --gpus all was not given" if _has_nvidia_smi() else ""
        return Finding(AMISS if wanted else NOTE, "GPUs", f"{count}, {wanted} wanted {there}".rstrip())
    free = [torch.cuda.mem_get_info(index) for index in range(count)]
    memory = min(total for _, total in free) / 1e9
    if without := [problem for index in range(count) if (problem := code_problem(index))]:
        return Finding(AMISS, "GPUs", without[0])
    return Finding(OK, "GPUs", f"{count} x {torch.cuda.get_device_name(0)}, {memory:.0f} GB")


def code_problem(index: int) -> str:
    """Why this torch cannot compute on a GPU, or ''."""
    import torch

    from infra.plan.torch_code import has_code_for

    built_for = torch.cuda.get_arch_list()
    capability = ".".join(map(str, torch.cuda.get_device_capability(index)))
    if has_code_for(capability, built_for):
        return ""
    return (
        f"GPU {index} ({torch.cuda.get_device_name(index)}) has compute capability {capability}, and torch "
        f"{torch.__version__} has code for {', '.join(built_for)} alone; take other versions: docs/local-development.md"
    )


def nccl() -> Finding:
    """NCCL's version; gloo takes its place without GPUs."""
    import torch

    if not torch.distributed.is_nccl_available():
        return Finding(AMISS, "NCCL", "this torch is built without it")
    return Finding(OK, "NCCL", ".".join(map(str, torch.cuda.nccl.version())))


def efa(*, wanted: bool) -> Finding:
    """libfabric's EFA provider and NCCL's plug-in."""
    from infra.launch import fabric

    amiss = AMISS if wanted else NOTE
    fi_info = shutil.which("fi_info") or "/opt/amazon/efa/bin/fi_info"
    if not Path(fi_info).exists():
        return Finding(amiss, "EFA", "not in this image; build it with --build-arg EFA=1")
    done = subprocess.run([fi_info, "-p", "efa"], capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0:
        return Finding(amiss, "EFA", "no device: an instance type without it, or --device=/dev/infiniband is missing")
    endpoints = f"{done.stdout.count('provider:')} endpoints"
    if not (found := fabric.plugins(fabric.root_of(os.environ))):
        places = ", ".join(f"/{folder}" for folder in fabric.PLUGIN_FOLDERS)
        return Finding(AMISS, "EFA", f"{endpoints}, but NCCL's plug-in libnccl-net.so is in none of {places}")
    return Finding(OK, "EFA", f"{endpoints}, NCCL plug-in {found[0]}")


def decoder() -> Finding:
    """Which decoder `data.decoder: auto` takes."""
    from imagestream.decode.backends import open_decoder

    found = open_decoder("auto")
    return Finding(OK if found.name.startswith("native") else NOTE, "decoder", found.version)


def shared_memory() -> Finding:
    """/dev/shm, through which loader workers hand batches over."""
    size = shutil.disk_usage("/dev/shm").total
    seen = f"{size / 1e9:.1f} GB in /dev/shm"
    if size < SHARED_MEMORY_BYTES:
        return Finding(
            AMISS,
            "shared memory",
            f"{seen}; start the container with --ipc host, or with the --shm-size that a run's --dry-run says",
        )
    return Finding(OK, "shared memory", seen)


def locked_memory() -> Finding:
    """EFA registers memory, which the usual limit of some MB forbids."""
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if limit == resource.RLIM_INFINITY:
        return Finding(OK, "locked memory", "unlimited")
    return Finding(NOTE, "locked memory", f"{limit / 1e6:.0f} MB; with EFA start with --ulimit memlock=-1")


def s3(place: str) -> Finding:
    """Whether a folder can be listed with the credentials there are."""
    from imagestream.storage.errors import PlaceError
    from imagestream.storage.places import open_place

    try:
        names = list(open_place(place).sizes())
    except PlaceError as error:
        return Finding(AMISS, "S3", str(error))
    endpoint = os.environ.get("S3_ENDPOINT_URL") or "AWS"
    return Finding(OK if names else NOTE, "S3", f"{place} at {endpoint}: {len(names)} files ({', '.join(names[:3])})")


def _has_nvidia_smi() -> bool:
    return shutil.which("nvidia-smi") is not None


def _safely(look: Callable[[], Finding]) -> Finding:
    try:
        return look()
    except Exception as error:  # whatever it is, the other lines are wanted as well
        return Finding(AMISS, getattr(look, "__name__", "check"), f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
