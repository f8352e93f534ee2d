"""The image, built by buildah over a base of debootstrap's, and used: convert, audit, train, evaluate."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, make_images
from tests.integration.problem import command

pytestmark = pytest.mark.machine

# There is no registry to pull from, so a Debian with the same Python takes the official image's place.
BASE_IMAGE = "localhost/python:3.11-slim-bookworm"
PACKAGES = "python3,python3-venv,python3-pip,python-is-python3,ca-certificates"
SECONDS_TO_BUILD = 2700  # ten minutes on two idle cores, most of it copying 6 GB
# How pip reaches its packages on this machine, and whom it trusts, is the machine's own business.
HOST_FILES = ("/etc/ssl/certs", "/etc/pip.conf", "/etc/resolv.conf")
HOST_VARIABLES = [name for name in os.environ if name.startswith("PIP_") or name.endswith("_proxy")]


class Builder:
    """buildah with a store of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.container = ""

    def __call__(self, *arguments: str, seconds: float = 300) -> str:
        root = [f"--root={self.folder}/store", f"--runroot={self.folder}/run", "--storage-driver=overlay"]
        done = subprocess.run(
            ["buildah", *root, *arguments], cwd=REPOSITORY, capture_output=True, text=True, timeout=seconds, check=False
        )
        assert done.returncode == 0, f"buildah {' '.join(arguments)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    def run(self, *command: str, mount: Path) -> str:
        """The image's entry point with these arguments; `mount` is /data in it."""
        inside = ["--isolation=chroot", f"--volume={mount}:/data", "--env=CUDA_VISIBLE_DEVICES="]
        return self("run", *inside, self.container, "--", "/app/docker/entrypoint.sh", *command)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Builder]:
    missing = [name for name in ("buildah", "debootstrap") if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        pytest.fail(f"run as root, after apt-get install buildah debootstrap (missing: {missing})")
    folder = tmp_path_factory.mktemp("image")
    buildah = Builder(folder)
    try:
        started = time.monotonic()
        make_base(buildah, folder)
        made = time.monotonic()
        build(buildah)
        print(f"\nbase {made - started:.0f} s, image {time.monotonic() - made:.0f} s")
        buildah.container = buildah("from", "--pull-never", "localhost/resnet-streaming").strip()
        yield buildah
    finally:
        subprocess.run(
            ["buildah", f"--root={folder}/store", f"--runroot={folder}/run", "--storage-driver=overlay", "rm", "--all"],
            capture_output=True,
            check=False,
        )
        shutil.rmtree(folder, ignore_errors=True)


def make_base(buildah: Builder, folder: Path) -> None:
    """A minimal Debian with Python, under the name that the Dockerfile starts from."""
    tree = folder / "debian"
    bootstrap = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(tree)]
    done = subprocess.run(bootstrap, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    container = buildah("from", "scratch").strip()
    buildah("add", "--quiet", container, str(tree), "/")
    buildah("commit", "--quiet", container, BASE_IMAGE)
    buildah("rm", container)
    shutil.rmtree(tree)


def build(buildah: Builder) -> None:
    host = [f"--volume={path}:{path}:ro" for path in HOST_FILES if Path(path).exists()]
    links = os.environ.get("PIP_FIND_LINKS", "")
    host += [f"--volume={links}:{links}:ro"] if Path(links).is_dir() else []
    host += [f"--env={name}={os.environ[name]}" for name in HOST_VARIABLES]
    arguments = ["--isolation=chroot", "--pull-never", "--format=docker", f"--build-arg=BASE_IMAGE={BASE_IMAGE}", *host]
    buildah("bud", *arguments, "--tag=localhost/resnet-streaming", ".", seconds=SECONDS_TO_BUILD)


@pytest.fixture(scope="module")
def data(image: Builder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the image's user may write, with shards that the image has made in it."""
    folder = tmp_path_factory.mktemp("data")
    make_images(folder / "images", {"train": 20, "val": 4}, classes=2)
    for path in [folder, *folder.parents]:
        if path.owner() == "root" and path != Path("/") and path != Path("/tmp"):
            path.chmod(0o777)
    printed = image.run("convert", "--source", "/data/images", "--out", "/data/shards", "--workers", "1", mount=folder)
    assert "train: 40 samples" in printed
    return folder


def test_the_image_runs_as_an_ordinary_user_with_the_native_decoder(image: Builder, data: Path) -> None:
    assert image.run("id", "-u", mount=data).strip() == "1000"
    findings = image.run("doctor", mount=data)
    assert "native" in findings and "AMISS" not in findings, findings
    with pytest.raises(AssertionError):
        image.run("gcc", "--version", mount=data)


def test_shards_made_in_the_image_pass_its_audit(image: Builder, data: Path) -> None:
    assert "0 findings" in image.run("audit", "/data/shards", mount=data)


def test_the_image_trains_and_evaluates(image: Builder, data: Path) -> None:
    argv = command(Path("/data/shards"), "/data/run", "max_duration=2ba", "loggers.file=false", "algorithms=[]")
    image.run("train", *argv, mount=data)
    record = json.loads((data / "run/run.json").read_text())
    assert record["status"] == "finished" and record["batches"] == 2
    (checkpoint,) = (data / "run").glob("ep*-ba2.pt")
    printed = image.run("evaluate", f"/data/run/{checkpoint.name}", "--data", "/data/shards", mount=data)
    assert "samples_evaluated  8" in printed


def test_two_nodes_parts_start_from_the_image(image: Builder, data: Path) -> None:
    printed = image.run("python", "infra/launch/node.py", "--help", mount=data)
    assert "NODE_RANK" in printed
