"""Build wheels of the library for Linux on x86_64 and arm64, with the native decoder and libjpeg-turbo inside.

    python wheels/build.py [--out dist] [x86_64] [aarch64]

Needs cmake, make, binutils, and for each machine its gcc; for x86_64 nasm too. libjpeg-turbo is built from source, once
for each machine, into build/wheels/: only its position-independent objects can go into a shared library.
"""

import argparse
import hashlib
import os
import platform
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
CACHE = REPOSITORY / "build/wheels"
DECODER = runpy.run_path(str(REPOSITORY / "imagestream/decode/build.py"))

MACHINES = ("x86_64", "aarch64")
LIBJPEG = "libjpeg-turbo-2.1.5"
SOURCE_NAME = "libjpeg-turbo_2.1.5.orig.tar.gz"
SOURCE_PACKAGES = ("libjpeg62-turbo", "libjpeg-turbo8")  # what Debian and Ubuntu make of it
SOURCE_SHA256 = "254f3642b04e309fee775123133c6464181addc150499561020312ec61c1bf7c"
# The licences of libjpeg-turbo, by their names there and in the wheel's dist-info/licenses.
LICENSES = {"LICENSE.md": "LICENSE.libjpeg-turbo.md", "README.ijg": "LICENSE.libjpeg-turbo.ijg"}

PACKAGED = ("pyproject.toml", "setup.py", "README.md", "LICENSE")
# What glibc itself provides; all else that the decoder needs has to be inside.
SYSTEM_LIBRARIES = {"libc.so.6", "libm.so.6", "libpthread.so.0", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}


class WheelError(RuntimeError):
    """A wheel cannot be built; the message says why and what to do."""


def compiler(machine: str) -> str:
    return f"{machine}-linux-gnu-gcc"


def packages_to_install(machines: Sequence[str]) -> str:
    """Return the command that installs on Debian what the build of these machines' wheels needs."""
    debian = {"x86_64": ("x86-64", "amd64"), "aarch64": ("aarch64", "arm64")}
    others = [debian[machine] for machine in machines if machine != platform.machine()]
    cross = [f"gcc-{gnu}-linux-gnu libc6-dev-{name}-cross" for gnu, name in others]
    return " ".join(["apt-get install cmake make nasm binutils gcc libc6-dev", *cross])


def missing_tools(machine: str) -> list[str]:
    tools = ["cmake", "make", "readelf", compiler(machine), *["nasm"] * (machine == "x86_64")]
    return [tool for tool in tools if not shutil.which(tool)]


def run(*command: str | Path, cwd: Path | None = None, environment: dict[str, str] | None = None) -> str:
    """Run a command and return what it printed.

    Raises:
        WheelError: it failed; with the end of its output.
    """
    done = subprocess.run(
        command, cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=900
    )
    if done.returncode:
        raise WheelError(f"{Path(command[0]).name} ended with {done.returncode}:\n{done.stdout[-3000:]}")
    return done.stdout


# ---- libjpeg-turbo ---------------------------------------------------------------------------------------------------


def libjpeg_source() -> Path:
    """Return the folder of libjpeg-turbo's source, fetched unless it is there.

    Raises:
        WheelError: it cannot be fetched, or is not what it should be.
    """
    folder = CACHE / LIBJPEG
    if not folder.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as unfinished:
            archive = Path(unfinished, "source.tar.gz")
            archive.write_bytes(fetch(source_url()))
            with tarfile.open(archive) as packed:
                packed.extractall(unfinished, filter="data")
            os.replace(next(path for path in Path(unfinished).iterdir() if path.is_dir()), folder)
    return folder


def source_url() -> str:
    """Return where the source lies: beside its packages, at whatever mirror apt is set up for.

    Raises:
        WheelError: apt knows neither package.
    """
    for package in SOURCE_PACKAGES:
        told = subprocess.run(
            ["apt-get", "--print-uris", "download", package], capture_output=True, text=True, timeout=60, check=False
        )
        if told.returncode == 0 and told.stdout.startswith("'"):
            return told.stdout[1:].partition("'")[0].rpartition("/")[0] + "/" + SOURCE_NAME
    raise WheelError(
        f"apt knows neither of {', '.join(SOURCE_PACKAGES)}, beside which libjpeg-turbo's source lies; run apt-get "
        f"update, or unpack {LIBJPEG} into {CACHE / LIBJPEG}"
    )


def fetch(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            data: bytes = answer.read()
    except OSError as error:
        raise WheelError(
            f"{url} cannot be fetched: {error}; unpack {LIBJPEG} into {CACHE / LIBJPEG} instead"
        ) from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != SOURCE_SHA256:
        raise WheelError(f"{url} has the SHA-256 {digest}, and not {SOURCE_SHA256}")
    return data


def build_libjpeg(machine: str) -> Path:
    """Return the folder of libjpeg.a and jconfig.h for a machine, built unless they are there."""
    source, folder = libjpeg_source(), CACHE / f"{LIBJPEG}-{machine}"
    if not (folder / "libjpeg.a").exists():
        options = {
            "CMAKE_SYSTEM_NAME": "Linux",
            "CMAKE_SYSTEM_PROCESSOR": machine,
            "CMAKE_C_COMPILER": compiler(machine),
            "CMAKE_BUILD_TYPE": "Release",
            "CMAKE_POSITION_INDEPENDENT_CODE": "ON",
            "ENABLE_SHARED": "OFF",
            "WITH_TURBOJPEG": "OFF",
            "REQUIRE_SIMD": "ON",
        }
        run("cmake", "-S", source, "-B", folder, *(f"-D{name}={value}" for name, value in options.items()))
        run("cmake", "--build", folder, "--target", "jpeg-static", "--parallel", str(os.cpu_count()))
    return folder


# ---- the decoder and its wheel ---------------------------------------------------------------------------------------


def build_decoder(machine: str, folder: Path) -> Path:
    """Compile the decoder for a machine into a folder, under the name by which the library looks for it there."""
    libjpeg, target = build_libjpeg(machine), folder / DECODER["library_path"](machine).name
    environment = {
        "CC": compiler(machine),
        "CPPFLAGS": f"-I{libjpeg} -I{libjpeg_source()}",
        # Not exported: another libjpeg of the same process, such as Pillow's, must not be called instead.
        "LDFLAGS": f"-L{libjpeg} -Wl,--exclude-libs,ALL -Wl,-z,defs -s",
    }
    try:
        DECODER["compile_sources"](target, ("-shared",), environment)
    except DECODER["BuildError"] as error:
        raise WheelError(f"the decoder for {machine}: {error}") from error
    return target


def platform_tag(machine: str, decoder: Path) -> str:
    """Return the wheel's platform: the oldest glibc that has all that the decoder asks for.

    Raises:
        WheelError: it needs a library that not every Linux has.
    """
    needed = set(re.findall(r"\(NEEDED\).*\[(.+)\]", run("readelf", "--dynamic", "--wide", decoder)))
    if needed - SYSTEM_LIBRARIES:
        raise WheelError(f"the decoder for {machine} needs {', '.join(sorted(needed - SYSTEM_LIBRARIES))}")
    versions = re.findall(r"GLIBC_(\d+)\.(\d+)", run("readelf", "--version-info", decoder))
    major, minor = max((int(major), int(minor)) for major, minor in versions)
    return f"manylinux_{major}_{minor}_{machine}"


def build_wheel(machine: str, out: Path) -> Path:
    """Build one machine's wheel into `out` and return it.

    Raises:
        WheelError: it cannot be built.
    """
    with tempfile.TemporaryDirectory() as folder:
        stage, wheels = Path(folder, "stage"), Path(folder, "wheels")
        ignored = shutil.ignore_patterns("*.so", "*.tmp", "__pycache__")
        shutil.copytree(REPOSITORY / "imagestream", stage / "imagestream", ignore=ignored)
        for name in PACKAGED:
            shutil.copy(REPOSITORY / name, stage)
        decoder = build_decoder(machine, stage / "imagestream/decode/native")
        for name, packaged in LICENSES.items():
            shutil.copy(libjpeg_source() / name, stage / packaged)
        environment = os.environ | {"WHEEL_PLATFORM": platform_tag(machine, decoder)}
        backend = f"from setuptools import build_meta; build_meta.build_wheel({str(wheels)!r})"
        run(sys.executable, "-c", backend, cwd=stage, environment=environment)
        (built,) = wheels.glob("*.whl")
        out.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(built, out))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("machines", nargs="*", metavar="machine", help=f"of {', '.join(MACHINES)}; all by default")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "dist", help="the folder of the wheels")
    arguments = parser.parse_args()
    machines = arguments.machines or MACHINES
    if unknown := [machine for machine in machines if machine not in MACHINES]:
        parser.error(f"no wheel for {', '.join(unknown)}; give any of {', '.join(MACHINES)}")
    try:
        if missing := {tool: None for machine in machines for tool in missing_tools(machine)}:
            raise WheelError(f"{', '.join(missing)} not found; on Debian: {packages_to_install(machines)}")
        for machine in machines:
            print(build_wheel(machine, arguments.out))
    except WheelError as error:
        print(f"no wheel: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
