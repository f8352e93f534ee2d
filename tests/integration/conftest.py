"""Fixtures of the integration tests."""

from pathlib import Path
from typing import Any

import pytest

from tests.integration.problem import command, record_of
from tests.processes import run


@pytest.fixture(scope="session")
def undisturbed(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The record of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    code, output = run(command(shards, folder), folder / "log")
    assert code == 0, output
    return record_of(folder)
