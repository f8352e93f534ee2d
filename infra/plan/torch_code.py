"""For which GPUs a torch has code, without importing it, which takes seconds."""

from collections.abc import Sequence
from importlib import metadata

# By torch's version: the architectures in the wheel that requirements.txt or requirements-composer.txt installs on
# x86-64. torch 2.15.0 for CUDA 13.2 and 2.7.0 for 12.6: both are in PYTORCH_RELEASES_CODE_CC of 2.15.0's
# torch/cuda/__init__.py. (2.7.0 exists for CUDA 12.8 too, with sm_100 and sm_120; the lock has PyPI's, for 12.6.)
ARCHITECTURES = {
    "2.15.0": ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"),
    "2.7.0": ("sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"),
}


def has_code_for(compute_capability: str, architectures: Sequence[str]) -> bool:
    """Whether code for these architectures runs on a GPU of this compute capability, such as "8.9".

    Code for sm_86 runs on 8.6 to 8.9, but not on 9.0 (docs.nvidia.com/cuda/cuda-c-programming-guide, "Binary
    Compatibility"); compute_90 is compiled on the machine, for 9.0 and everything later. Code with a letter, as sm_90a,
    runs on that one alone.
    """
    major, minor = (int(part) for part in compute_capability.split("."))
    for architecture in architectures:
        kind, _, number = architecture.partition("_")
        if not number.isdecimal():
            continue
        its_major, its_minor = divmod(int(number), 10)
        if kind == "compute" and (its_major, its_minor) <= (major, minor):
            return True
        if kind == "sm" and its_major == major and its_minor <= minor:
            return True
    return False


def installed_torch() -> str:
    """The version of the torch that is installed here, without "+cu132"; "" without one."""
    try:
        return metadata.version("torch").partition("+")[0]
    except metadata.PackageNotFoundError:
        return ""


def torch_problem(gpu: str, compute_capability: str, version: str) -> str:
    """Why this torch cannot use the GPU, and what to do, or ''; '' too where it is not known."""
    if version not in ARCHITECTURES or not compute_capability:
        return ""
    if has_code_for(compute_capability, ARCHITECTURES[version]):
        return ""
    others = [other for other, known in ARCHITECTURES.items() if has_code_for(compute_capability, known)]
    advice = (
        f"torch {' or '.join(others)} has (docs/local-development.md, Versions)" if others else "take another machine"
    )
    return f"torch {version}, which is installed here, has no code for the {gpu} ({compute_capability}); {advice}"
