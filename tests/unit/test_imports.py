"""Who imports whom: the library knows nothing of the two applications on it, and neither knows the other."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
MAY_IMPORT = {
    "imagestream.storage": {"imagestream.storage"},
    "imagestream.mds": {"imagestream.mds"},
    "imagestream.decode": {"imagestream.decode"},
    "imagestream.augment": {"imagestream.augment", "imagestream.decode", "imagestream.limits"},
    "imagestream.data": {
        *("imagestream.augment", "imagestream.data", "imagestream.decode", "imagestream.mds", "imagestream.storage"),
        "imagestream.limits",
        "imagestream.process_identity",
        "imagestream.world",
    },
    "imagestream": {"imagestream"},
    "convert": {"convert", "imagestream"},
    "train": {"train", "imagestream"},
    "infra.plan": {"infra.plan", "train", "imagestream"},
    "infra.aws": {"infra.aws", "infra.plan", "train", "imagestream"},
    "infra.launch": {"infra.launch", "infra.plan", "train", "imagestream"},
    "infra": {"infra"},
}
"""Of a package's modules, what they may import of this repository; the longest name that fits counts."""


def modules() -> dict[str, Path]:
    files = (path for top in ("imagestream", "convert", "train", "infra") for path in (REPOSITORY / top).rglob("*.py"))
    return {
        ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"): path for path in files
    }


def imports_of(path: Path, known: set[str]) -> Iterator[str]:
    """The modules of this repository that a file names in its imports, wherever in the file they are."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in known else node.module for name in names]
        else:
            continue
        yield from (name for name in names if name in known)


MODULES = modules()
GRAPH = {name: sorted(set(imports_of(path, set(MODULES))) - {name}) for name, path in MODULES.items()}


def fits(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


@pytest.mark.parametrize("name", sorted(GRAPH))
def test_imports_lead_down(name: str) -> None:
    package = max((known for known in MAY_IMPORT if fits(name, known)), key=len)
    amiss = [other for other in GRAPH[name] if not any(fits(other, allowed) for allowed in MAY_IMPORT[package])]
    assert amiss == [], f"{name} may import of {sorted(MAY_IMPORT[package])} only"


def test_no_imports_go_round_in_a_circle() -> None:
    left = {name: set(others) for name, others in GRAPH.items()}
    while leaves := {name for name, others in left.items() if not others & set(left)}:
        left = {name: others for name, others in left.items() if name not in leaves}
    assert left == {}, f"these import each other: {sorted(left)}"


def test_the_library_knows_no_trainer() -> None:
    foreign = {"composer", "torchmetrics", "wandb", "matplotlib", "yaml"}
    files = [path for name, path in MODULES.items() if fits(name, "imagestream")]
    words = {path.name: set(re.findall(r"^\s*(?:from|import) (\w+)", path.read_text(), re.M)) for path in files}
    assert {name: found & foreign for name, found in words.items() if found & foreign} == {}


def test_what_is_installed_is_the_library_and_all_of_it() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    folders = {path.parent for path in (REPOSITORY / "imagestream").rglob("*.py")}
    there = sorted(".".join(folder.relative_to(REPOSITORY).parts) for folder in folders)
    assert sorted(project["tool"]["setuptools"]["packages"]) == there
