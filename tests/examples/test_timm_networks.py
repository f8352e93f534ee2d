"""A run of one of timm's networks, killed and resumed; what does not fit it is refused before it begins."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.integration.problem import command, record_of, what_must_match

LIBRARIES = REPOSITORY / "build/examples"  # timm, by `make test-examples`
SECONDS = 300
NETWORKS = {"test_vit": ("optimizer.name=adamw", "optimizer.layer_decay=0.8"), "test_efficientnet": ()}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (LIBRARIES / "timm").is_dir(), reason="timm is not there; `make test-examples` installs it"),
]


def start(shards: Path, folder: Path, network: str, *more: str) -> "subprocess.Popen[bytes]":
    algorithms = "algorithms=[{name: ema, half_life: 2ba, update_interval: 2ba}]"
    settings = [f"model.name=timm:{network}", "model.init=torchvision", algorithms, *more]
    argv = [sys.executable, "train/main.py", *command(shards, folder, *settings)]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(LIBRARIES)]), "OMP_NUM_THREADS": "1"}
    with open(f"{folder}.log", "ab") as log:
        return subprocess.Popen(argv, cwd=REPOSITORY, env=env, stdout=log, stderr=log, start_new_session=True)


def ends(shards: Path, folder: Path, network: str, *more: str) -> tuple[int, str]:
    code = start(shards, folder, network, *more).wait(SECONDS)
    return code, Path(f"{folder}.log").read_text()


@pytest.mark.parametrize("network", NETWORKS)
def test_a_killed_run_ends_with_the_same_weights(network: str, shards: Path, tmp_path: Path) -> None:
    more: Sequence[str] = NETWORKS[network]
    code, output = ends(shards, tmp_path / "undisturbed", network, *more)
    assert code == 0, output
    process = start(shards, tmp_path / "killed", network, *more)
    deadline = time.monotonic() + SECONDS
    while not (tmp_path / "killed/ep0-ba2.pt").exists():
        assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "killed.log").read_text()
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(30)
    code, output = ends(shards, tmp_path / "killed", network, *more)
    assert code == 0 and "resume: from" in output, output
    one, other = (record_of(tmp_path / folder) for folder in ("undisturbed", "killed"))
    assert what_must_match(one) == what_must_match(other)


REFUSED = {
    ("resnet1818",): "has no resnet1818; did you mean timm:resnet18?",
    ("test_vit", "data.eval_crop_size=48", "data.eval_resize_size=48"): "timm:test_vit takes images of one size alone",
    ("test_vit", "optimizer.decay_batchnorm=false"): "does nothing in timm:test_vit, which has no BatchNorm",
    ("test_vit", "algorithms=[{name: blurpool}]"): "'blurpool' does nothing in timm:test_vit",
    ("test_vit", "algorithms=[{name: progressive_resizing}]"): "timm:test_vit, which takes images of one size alone",
}


@pytest.mark.parametrize("given", REFUSED, ids=" ".join)
def test_what_does_not_fit_it_is_refused(given: tuple[str, ...], shards: Path, tmp_path: Path) -> None:
    network, *more = given
    code, output = ends(shards, tmp_path / "run", network, *more, "--dry-run")
    assert code == 2 and REFUSED[given] in output, output
