"""timm loads an exported ResNet and gets the same classes, and refuses one that is another function than its own."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.integration.test_export import FILES, as_others_load, export, images, runs

__all__ = ["images", "runs"]  # fixtures
LIBRARIES = REPOSITORY / "build/examples"


def test_timm_gets_the_same_classes(runs: Path, images: Path, tmp_path: Path) -> None:
    if not (LIBRARIES / "timm").exists():
        pytest.skip("timm is not there: make test-examples")
    export([str(runs / "plain"), "--to", str(tmp_path / "exported"), "--workers", "0"], tmp_path / "log")
    found = as_others_load(tmp_path / "exported", images, str(LIBRARIES))
    assert found["timm"] == found[FILES[0]] and len(found["timm"]) == 23


def test_timm_refuses_a_network_that_blurs(runs: Path, tmp_path: Path) -> None:
    if not (LIBRARIES / "timm").exists():
        pytest.skip("timm is not there: make test-examples")
    out = tmp_path / "exported"
    export([str(runs / "blurred"), "--to", str(out), "--formats", "", "--workers", "0"], tmp_path / "log")
    code = f"import sys; sys.path.insert(0, {str(LIBRARIES)!r}); import timm; "
    code += f"timm.create_model('local-dir:{out}', pretrained=True)"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "architecture" in done.stderr
