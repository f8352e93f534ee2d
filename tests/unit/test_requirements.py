"""The two sets of versions: what their files must hold, and that the tests run on one of them."""

import os
import re
import subprocess
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement

REPOSITORY = Path(__file__).resolve().parents[2]
TODAY, COMPOSER, DEVELOPMENT = "requirements.txt", "requirements-composer.txt", "requirements-dev.txt"
PINNED = (TODAY, COMPOSER, DEVELOPMENT, "docs/requirements.txt")
TORCHS_OWN = re.compile(r"(nvidia|cuda)-.+|triton")
"""CUDA's libraries and the like, which torch brings along on Linux."""


class Pin(NamedTuple):
    """One package of a pinned file."""

    version: str
    marker: str
    hashes: int


def pins(name: str) -> dict[str, Pin]:
    """A pinned file's packages by name; one that is listed twice, for two platforms, fails."""
    text = (REPOSITORY / name).read_text().replace("\\\n", " ")
    found: dict[str, Pin] = {}
    for line in (line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")):
        requirement = Requirement(line.partition("--hash")[0])
        (exact,) = requirement.specifier
        assert exact.operator == "==" and requirement.name not in found, line[:80]
        found[requirement.name] = Pin(exact.version, str(requirement.marker or ""), line.count("--hash=sha256:"))
    return found


def bounds(lines: list[str]) -> list[Requirement]:
    return [Requirement(text) for line in lines if (text := line.partition("#")[0].strip()) and text[0] != "-"]


@pytest.mark.parametrize("name", PINNED)
def test_every_package_is_pinned_by_hash_and_no_index_is_named(name: str) -> None:
    assert [package for package, pin in pins(name).items() if pin.hashes == 0] == []
    assert "://" not in (REPOSITORY / name).read_text()


@pytest.mark.parametrize("name", [TODAY, COMPOSER])
def test_cudas_libraries_are_for_linux_alone(name: str) -> None:
    own = {package: pin.marker for package, pin in pins(name).items() if TORCHS_OWN.fullmatch(package)}
    assert len(own) > 10
    assert [package for package, marker in own.items() if 'sys_platform == "linux"' not in marker] == []


def test_the_two_sets_differ_in_what_the_overrides_name_and_in_torchs_own_alone() -> None:
    today, composer = pins(TODAY), pins(COMPOSER)
    overridden = {
        bound.name: bound for bound in bounds((REPOSITORY / "requirements-overrides.txt").read_text().split("\n"))
    }
    other = {name for name in today.keys() | composer.keys() if today.get(name) != composer.get(name)}
    assert {name for name in other if not TORCHS_OWN.fullmatch(name)} == set(overridden)
    assert [name for name, bound in overridden.items() if not bound.specifier.contains(today[name].version)] == []


def test_the_development_tools_ask_for_no_other_version_of_anything() -> None:
    tools = pins(DEVELOPMENT)
    for name in (TODAY, COMPOSER):
        stack = pins(name)
        assert {
            package for package in tools.keys() & stack.keys() if tools[package].version != stack[package].version
        } == set()


def test_what_the_library_asks_for_admits_both_sets() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    for name in (TODAY, COMPOSER):
        stack = pins(name)
        asked = bounds(project["dependencies"])
        assert [str(bound) for bound in asked if not bound.specifier.contains(stack[bound.name].version)] == []


def test_these_tests_run_on_one_of_the_two_sets() -> None:
    stack = TODAY if installed("torch") == pins(TODAY)["torch"].version else COMPOSER
    wanted = {name: pin.version for name, pin in pins(stack).items() if not pin.marker or Marker(pin.marker).evaluate()}
    amiss = {name: installed(name) for name in wanted if installed(name) != wanted[name]}
    assert amiss == {}, f"not as in {stack}: run make setup-dev"


def installed(name: str) -> str:
    """The version without what a build adds to it, such as +cu126."""
    try:
        return version(name).partition("+")[0]
    except PackageNotFoundError:
        return "not installed"


def test_the_page_of_the_versions_has_those_that_are_pinned() -> None:
    page = (REPOSITORY / "docs/local-development.md").read_text().partition("## Versions")[2].partition("\n## ")[0]
    rows = {cells[1].strip(): cells[2:4] for line in page.splitlines() if len(cells := line.split("|")) == 5}
    for packages in (("torch", "torchvision"), ("numpy", "pillow")):
        (cells,) = (cells for row, cells in rows.items() if row.lower().startswith(", ".join(packages)))
        for cell, name in zip(cells, (TODAY, COMPOSER), strict=True):
            assert cell.strip().startswith(", ".join(pins(name)[package].version for package in packages))


def planned(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """What make would do in an empty checkout; its own settings, when it runs these tests, are left out."""
    env = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "VENV", "STACK", "PYTHON")}
    command = ["make", "--no-print-directory", "-n", "--always-make", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("arguments", "folder", "lock"),
    [((), ".venv", TODAY), (("STACK=today",), ".venv", TODAY), (("STACK=composer",), ".venv-composer", COMPOSER)],
)
def test_make_setup_installs_the_pinned_files_of_the_stack_and_nothing_else(
    arguments: tuple[str, ...], folder: str, lock: str
) -> None:
    commands = planned("setup-dev", *arguments).stdout.splitlines()
    steps = [line for line in commands if "uv pip install" in line]
    assert [line.partition(" ||")[0].split()[-1] for line in steps] == [lock, DEVELOPMENT]
    assert all(line.startswith(f"{folder}/bin/uv ") for line in steps)
    assert all(line.count("--no-deps --require-hashes") == 2 for line in steps)  # by uv, and by pip where that fails


def test_a_stack_that_is_not_known_is_refused() -> None:
    done = planned("setup", "STACK=tomorrow")
    assert done.returncode == 2 and "STACK=tomorrow is not known; give today or composer" in done.stderr
