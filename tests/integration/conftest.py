"""Fixtures of the integration tests."""

import os
from pathlib import Path
from typing import Any

import pytest

from tests.integration.converter import save_noise
from tests.integration.problem import command, record_of
from tests.processes import run


@pytest.fixture(scope="session")
def undisturbed_folder(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The save folder of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    code, output = run(command(shards, folder), folder / "log")
    assert code == 0, output
    return folder


@pytest.fixture(scope="session")
def undisturbed(undisturbed_folder: Path) -> dict[str, Any]:
    """Its record."""
    return record_of(undisturbed_folder)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """40 training and 12 validation images of 4 classes, every fifth one grey."""
    root = tmp_path / "source"
    for split, count in (("train", 10), ("val", 3)):
        for label, name in enumerate(("n01", "n02", "n03", "n10")):
            for n in range(count):
                mode = "L" if n % 5 == 0 else "RGB"
                save_noise(root / split / name / f"{name}_{n}.JPEG", 100 * label + n, mode)
    return root


@pytest.fixture
def large_source(tmp_path: Path) -> Path:
    """One image under 3,000 names: enough work to be interrupted in."""
    root = tmp_path / "large"
    save_noise(root / "train/a/0.JPEG", 0)
    for n in range(1, 3000):
        os.link(root / "train/a/0.JPEG", root / f"train/a/{n}.JPEG")
    return root
