"""What several files of unit tests share."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from convert.auditing.findings import SHOWN_PER_KIND
from tests.processes import run_program


@pytest.fixture
def dataset(shards: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(shards, tmp_path / "mds"))


@pytest.fixture
def audit(dataset: Path) -> Callable[..., tuple[int, list[str]]]:
    """Audit the copy: the exit code, and the lines of findings and warnings."""

    def run(*options: str, place: Path = dataset) -> tuple[int, list[str]]:
        done = run_program("convert.audit", [place, "--workers", "1", *options])
        *lines, summary = done.stdout.splitlines()
        findings = [
            line for line in lines if "; hashes: " not in line and not line.startswith(("no manifest", "report"))
        ]
        warnings = [line for line in findings if line.startswith("warning: ")]
        if len(findings) < SHOWN_PER_KIND:
            assert f"{len(findings) - len(warnings)} finding" in summary
            assert f"{len(warnings)} warning" in summary
        assert "images/s" in summary
        return done.returncode, findings

    return run
