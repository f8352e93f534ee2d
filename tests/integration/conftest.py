"""Fixtures of the integration tests."""

from pathlib import Path
from typing import Any

import pytest

from tests.integration.converter import convert, save_large_source, save_source, tree
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
    """40 training and 12 validation images of 4 classes."""
    return save_source(tmp_path / "source")


@pytest.fixture
def large_source(tmp_path: Path) -> Path:
    """One image under 3,000 names: enough work to be interrupted in."""
    return save_large_source(tmp_path / "large")


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What becomes of `source` without options; to be read only."""
    folder = tmp_path_factory.mktemp("converted")
    convert(save_source(folder / "source"), folder / "out")
    return folder / "out"


@pytest.fixture(scope="session")
def converted_large(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files that become of `large_source` without options."""
    folder = tmp_path_factory.mktemp("converted")
    convert(save_large_source(folder / "large"), folder / "out")
    return tree(folder / "out")
