"""The wheels: one is installed and decodes where there is no libjpeg; that of arm64 has the same pixels, emulated."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.jpegs import SAMPLINGS, jpeg
from tests.sanitize.run import damaged, whole_images, write_corpus
from wheels.build import MACHINES, WheelError, compiler, missing_tools, platform_tag

# In CI what is needed is installed, and nothing may be left out.
REQUIRED = os.environ.get("REQUIRE_WHEELS") == "1"
SOME_OF_EACH_DAMAGE = 600  # images

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def need(tools: list[str]) -> None:
    if tools and not REQUIRED:
        pytest.skip(f"not found: {', '.join(tools)}")


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheel of each machine."""
    need([tool for machine in MACHINES for tool in missing_tools(machine)])
    out = tmp_path_factory.mktemp("wheels")
    printed = run(sys.executable, REPOSITORY / "wheels/build.py", "--out", out, *MACHINES, cwd=out)
    return dict(zip(MACHINES, map(Path, printed.split()), strict=True))


def unpacked(wheel: Path, folder: Path) -> Path:
    """The native decoder of a wheel."""
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(folder)
    (decoder,) = folder.glob("imagestream/decode/native/*.so")
    return decoder


def test_the_wheel_of_this_machine_decodes_in_an_environment_of_its_own(
    wheels: dict[str, Path], tmp_path: Path
) -> None:
    """torch, numpy and Pillow are those of the tests; the library is nowhere but in the wheel."""
    python = tmp_path / "env/bin/python"
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "env", cwd=tmp_path)
    install = ["-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    run(sys.executable, *install, wheels[os.uname().machine], cwd=tmp_path)
    site_packages = Path(
        run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip()
    )
    (site_packages / "requirements.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (tmp_path / "photo.jpg").write_bytes(jpeg(200, 150, "4:2:0"))
    shutil.copy(Path(__file__).with_name("decode_photo.py"), tmp_path)

    found = json.loads(run(python, "-I", "decode_photo.py", "photo.jpg", cwd=tmp_path))

    assert found["pixels_are_pillows"]
    assert found["decoder"] == "native 1 (libjpeg-turbo 2.1.5)"
    assert Path(found["package"]).parents[1] == site_packages
    assert [Path(path).is_relative_to(site_packages) for path in found["decoders"]] == [True]
    assert [path for path in found["libjpegs"] if ".libs/" not in path] == []  # Pillow brings one of its own


@pytest.mark.parametrize("machine", MACHINES)
def test_a_wheel_serves_every_python_and_carries_the_licences_of_what_is_in_it(
    wheels: dict[str, Path], machine: str, tmp_path: Path
) -> None:
    decoder = unpacked(wheels[machine], tmp_path)
    assert decoder.name.startswith(f"_decode-linux-{machine}-")
    assert wheels[machine].name.split("-", 2)[2] == f"py3-none-{platform_tag(machine, decoder)}.whl"
    licenses = {path.name: path.read_text() for path in tmp_path.glob("*.dist-info/licenses/*")}
    assert sorted(licenses) == ["LICENSE", "LICENSE.libjpeg-turbo.ijg", "LICENSE.libjpeg-turbo.md"]
    assert "Independent JPEG Group" in licenses["LICENSE.libjpeg-turbo.md"]


def outcomes_by_machine(wheels: dict[str, Path], folder: Path, images: Iterable[bytes]) -> list[list[str]]:
    """What the harness says on x86_64, and on arm64, emulated: counts of images, and a hash of their pixels."""
    need([] if shutil.which("qemu-aarch64") else ["qemu-aarch64"])
    write_corpus(folder / "corpus", images)
    printed = []
    for machine, emulator in (("x86_64", []), ("aarch64", ["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu"])):
        decoder, harness = unpacked(wheels[machine], folder / machine), folder / f"harness-{machine}"
        sources = [REPOSITORY / "tests/sanitize/harness.c", decoder]
        flags = ["-O2", "-ffp-contract=off", f"-Wl,-rpath,{decoder.parent}"]  # the same boxes on both
        run(compiler(machine), *flags, *sources, "-o", harness, cwd=folder)
        printed.append(run(*emulator, harness, folder / "corpus", cwd=folder).split("; "))
    return printed


def test_arm64_has_the_pixels_of_x86_64(wheels: dict[str, Path], tmp_path: Path) -> None:
    images = [
        jpeg(211 + seed, 157 + 3 * seed, sampling, seed, quality=quality, progressive=progressive)
        for seed in range(6)  # in as many batches and more, each of another size and place to shrink
        for sampling in SAMPLINGS
        for quality in (30, 95)
        for progressive in (False, True)
    ] + whole_images()
    x86, arm = outcomes_by_machine(wheels, tmp_path, images * 3)
    assert arm == x86
    decoded = int(x86[0].split(" of them decoded")[0].split()[-1])
    assert decoded > 2.9 * len(images), x86  # a few boxes are out of bounds


def test_arm64_has_the_verdicts_of_x86_64_on_damaged_images(wheels: dict[str, Path], tmp_path: Path) -> None:
    """Pixels may differ: libjpeg-turbo's own do, where damage makes numbers overflow."""
    x86, arm = outcomes_by_machine(wheels, tmp_path, damaged(SOME_OF_EACH_DAMAGE))
    assert arm[0] == x86[0]
    assert x86[0].startswith(f"{SOME_OF_EACH_DAMAGE - 2} images")  # two pretend to be huge


def test_a_decoder_that_needs_a_library_of_the_system_gets_no_wheel(tmp_path: Path) -> None:
    need([tool for tool in ("gcc", "readelf") if not shutil.which(tool)])
    (tmp_path / "other.c").write_text("int other(void) { return 1; }\n")
    (tmp_path / "needs.c").write_text("int needs(void) { extern int other(void); return other(); }\n")
    run("gcc", "-shared", "-fPIC", "-o", "libother.so", "other.c", cwd=tmp_path)
    run("gcc", "-shared", "-fPIC", "-o", "needs.so", "needs.c", "-L.", "-lother", cwd=tmp_path)
    with pytest.raises(WheelError, match=r"the decoder for x86_64 needs libother\.so"):
        platform_tag("x86_64", tmp_path / "needs.so")
