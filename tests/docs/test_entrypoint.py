"""The container's entrypoint, outside of a container."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

ENTRYPOINT = REPOSITORY / "docker/entrypoint.sh"


def entrypoint(*args: str, first_on_path: Path, cwd: Path = Path("/"), **env: str) -> str:
    """What it prints, with its errors at the end."""
    path = f"{first_on_path}:{os.environ['PATH']}"
    done = subprocess.run(
        [ENTRYPOINT, *args], env=os.environ | env | {"PATH": path}, cwd=cwd, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def echoes(tmp_path: Path) -> Path:
    """A folder with programs that say how they were called, on a machine of three GPUs."""
    for name in ("python", "composer"):
        (tmp_path / name).write_text(f'#!/bin/sh\necho {name} "$@"\n')
    (tmp_path / "nvidia-smi").write_text('#!/bin/sh\nprintf "GPU 0: a\\nGPU 1: a\\nGPU 2: a\\n"\n')
    for program in tmp_path.iterdir():
        program.chmod(0o755)
    return tmp_path


@pytest.mark.parametrize(
    ("command", "option"),
    [("convert", "--on-bad"), ("train", "--allow-changed"), ("audit", "--decode"), ("doctor", "--gpus")],
)
def test_the_real_commands_start(command: str, option: str) -> None:
    assert option in entrypoint(command, "--help", first_on_path=Path(sys.executable).parent)


def test_there_is_a_process_for_each_gpu(echoes: Path) -> None:
    said = entrypoint("train", "a.yaml", "b=c d", first_on_path=echoes)
    assert said == f"composer -n 3 {REPOSITORY}/train/main.py a.yaml b=c d\n"
    assert entrypoint("evaluate", "x.pt", first_on_path=echoes) == (
        f"composer -n 3 {REPOSITORY}/train/evaluate.py x.pt\n"
    )


def test_ranks_sets_another_number_and_one_needs_no_launcher(echoes: Path) -> None:
    one = f"python {REPOSITORY}/train/main.py a.yaml\n"
    assert entrypoint("train", "a.yaml", first_on_path=echoes, RANKS="8").startswith("composer -n 8 ")
    assert entrypoint("train", "a.yaml", first_on_path=echoes, RANKS="1") == one
    (echoes / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")  # there, but no GPU to be found
    assert entrypoint("train", "a.yaml", first_on_path=echoes) == one


def test_without_a_command_it_says_which_there_are(echoes: Path) -> None:
    usage = entrypoint(first_on_path=echoes)
    assert "IMAGE convert" in usage and "IMAGE train" in usage and "IMAGE evaluate" in usage


def test_anything_else_is_run_as_it_is(echoes: Path) -> None:
    assert entrypoint("echo", "a  b", first_on_path=echoes) == "a  b\n"


@pytest.mark.parametrize("command", ["convert", "train", "evaluate", "audit", "doctor", "pwd"])
def test_a_command_runs_in_the_working_directory(command: str, echoes: Path, tmp_path: Path) -> None:
    for name in ("python", "composer"):
        (echoes / name).write_text("#!/bin/sh\npwd\n")
    work = tmp_path / "work"
    work.mkdir()
    assert entrypoint(command, first_on_path=echoes, cwd=work) == f"{work}\n"


def test_a_configuration_is_the_images_where_the_working_directory_has_none(echoes: Path, tmp_path: Path) -> None:
    command, full = ("train", "--dry-run", "yamls/full.yaml", "run_name=a.yaml"), REPOSITORY / "yamls/full.yaml"
    start = f"composer -n 3 {REPOSITORY}/train/main.py --dry-run"
    assert entrypoint(*command, first_on_path=echoes, cwd=REPOSITORY) == f"{start} yamls/full.yaml run_name=a.yaml\n"
    said = entrypoint(*command, first_on_path=echoes, cwd=tmp_path).splitlines()
    assert said[0] == f"{start} {full} run_name=a.yaml"
    assert said[1:] == [f"entrypoint.sh: the configuration is the image's {full}; {tmp_path} has none of that name"]
    (tmp_path / "yamls").mkdir()
    (tmp_path / "yamls/full.yaml").touch()
    said = entrypoint(*command, first_on_path=echoes, cwd=tmp_path).splitlines()
    assert said == [
        f"{start} yamls/full.yaml run_name=a.yaml",
        f"entrypoint.sh: the configuration is {tmp_path}/yamls/full.yaml",
    ]
