"""Build the native decoder where a C compiler and libjpeg-turbo's headers are found.

    python imagestream/decode/build.py

Nothing but the standard library is needed. The library's name carries a hash of its sources, so a change of them is
built anew and an old build is never taken for the new one. CC, CPPFLAGS and LDFLAGS are honoured. wheels/build.py
builds it for other machines too.
"""

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

SOURCE_FOLDER = Path(__file__).resolve().parent / "native"
SOURCES = (
    *(
        "affine.c",
        "affine_avx2.c",
        "augment.c",
        "blur.c",
        "colours.c",
        "decode.c",
        "huffman.c",
        "inverse_dct.c",
        "planes.c",
    ),
    *("pointwise.c", "pointwise_avx2.c", "resample.c"),
)
HEADERS = (
    "affine.h",
    "blur.h",
    "colours.h",
    "huffman.h",
    "inverse_dct.h",
    "planes.h",
    "pointwise.h",
    "pointwise_avx2.h",
    "resample.h",
)
# No fused multiply-adds: a filter's weights are to be the same on every processor.
FLAGS = ("-std=c11", "-D_POSIX_C_SOURCE=200809L", "-O3", "-ffp-contract=off", "-fPIC", "-Wall", "-Wextra")
HOW_TO = (
    "install a C compiler and libjpeg-turbo's headers (Debian, Ubuntu: apt-get install gcc libc6-dev "
    "libjpeg62-turbo-dev or libjpeg-turbo8-dev; Amazon Linux, Fedora: dnf install gcc libjpeg-turbo-devel; macOS: "
    "brew install jpeg-turbo), then run: python imagestream/decode/build.py"
)


class BuildError(RuntimeError):
    """The library could not be built; the message says why."""


def library_path(machine: str = "") -> Path:
    """Return where the library for these sources is or would be, for this machine or another, such as aarch64."""
    digest = hashlib.sha256(" ".join(FLAGS).encode())
    for name in (*SOURCES, *HEADERS):
        digest.update((SOURCE_FOLDER / name).read_bytes())
    system = f"{platform.system()}-{machine or platform.machine()}".lower()
    return SOURCE_FOLDER / f"_decode-{system}-{digest.hexdigest()[:12]}.so"


def build() -> Path:
    """Compile the library unless it is there; several processes may do so at once.

    Raises:
        BuildError: no compiler, no headers, or another library than libjpeg-turbo.
    """
    target = library_path()
    if not target.exists():
        unfinished = target.with_suffix(f".{os.getpid()}.tmp")
        try:
            compile_sources(unfinished, ("-shared",))
            os.replace(unfinished, target)
        finally:
            unfinished.unlink(missing_ok=True)
        for stale in SOURCE_FOLDER.glob(f"{target.name.rpartition('-')[0]}-*.so"):
            if stale != target:
                stale.unlink(missing_ok=True)
    return target


def compile_sources(target: Path, options: Sequence[str], environment: Mapping[str, str] = os.environ) -> None:
    """Run the compiler that `environment` names over the sources, and any more that `options` name.

    Raises:
        BuildError: with the first of its errors.
    """
    found = (
        shlex.split(environment.get("CC", "")) or [name for name in ("cc", "gcc", "clang") if shutil.which(name)][:1]
    )
    if not found:
        raise BuildError("there is no C compiler (cc, gcc, clang)")
    command = [*found, *FLAGS, *shlex.split(environment.get("CPPFLAGS", "")), *options]
    command += ["-o", str(target), *(str(SOURCE_FOLDER / name) for name in SOURCES)]
    command += [*shlex.split(environment.get("LDFLAGS", "")), "-ljpeg", "-lm", "-pthread"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise BuildError(f"{found[0]} cannot be run: {error}") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
        raise BuildError((lines or [f"{found[0]} failed"])[0])


def main() -> int:
    """Build and say where; 1 and one line of what to do where it cannot be."""
    try:
        print(f"native decoder: {build()}")
    except (BuildError, OSError) as error:
        print(f"native decoder: not built, so Pillow will decode, more slowly: {error}; {HOW_TO}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
