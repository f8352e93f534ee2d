"""The commands, with an image at which the decoder crashes: it is named, and --on-bad decides. Then the audit of it."""

import json
import os
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from tests.integration.converter import ROOT, SMALL_SHARDS, run, run_command, save_noise

MARK = b"this image crashes the decoder"
CRASHES = f"""
import os, signal
from PIL import Image
opened = Image.open
def open_or_crash(file, *args, **options):
    if hasattr(file, "getvalue") and {MARK!r} in file.getvalue():
        os.kill(os.getpid(), signal.SIGSEGV)
    return opened(file, *args, **options)
Image.open = open_or_crash
"""


@pytest.fixture
def crashing(tmp_path: Path) -> dict[str, str]:
    """An environment in which Pillow crashes at images with MARK in them, in all processes."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(CRASHES)
    return {"PYTHONPATH": str(tmp_path / "site")}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for number in range(8):
        save_noise(tmp_path / f"source/train/{'ab'[number % 2]}/{number}.jpg", number)
    out = BytesIO()
    Image.new("RGB", (50, 40), "red").save(out, "JPEG", comment=MARK)
    (tmp_path / "source/train/b/bad.jpg").write_bytes(out.getvalue())
    return tmp_path / "source"


def test_an_image_that_crashes_the_decoder_is_named_and_can_be_left_out(
    source: Path, tmp_path: Path, crashing: dict[str, str]
) -> None:
    command = ("--source", source, "--out", tmp_path / "out", "--workers", 1, *SMALL_SHARDS)
    stopped = run_command(*command, env=crashing)
    assert stopped.returncode == 1
    reason = "train/b/bad.jpg: it kills the process that decodes it (SIGSEGV)"
    assert reason in stopped.stderr and "--on-bad skip" in stopped.stderr
    done = run_command(*command, "--on-bad", "skip", env=crashing)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert [f"{file['path']}: {file['reason']}" for file in manifest["splits"]["train"]["refused"]] == [reason]
    assert manifest["splits"]["train"]["samples"] == 8


def test_the_audit_names_an_image_that_crashes_the_decoder_and_looks_at_all_others(
    source: Path, tmp_path: Path, crashing: dict[str, str]
) -> None:
    assert run("--source", source, "--out", tmp_path / "out", "--workers", 1, *SMALL_SHARDS).returncode == 0
    (source / "train/b/bad.jpg").unlink()
    command: list[str | Path] = [sys.executable, "convert/audit.py", tmp_path / "out", "--workers", "1"]
    command += ["--report", tmp_path / "report"]
    environment = os.environ | crashing
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    findings = [line for line in done.stdout.splitlines() if "kills the process" in line]
    assert len(findings) == 1 and "label 1): it kills the process that decodes it (SIGSEGV)" in findings[0]
    assert "9 images read, 9 decoded" in done.stdout and "1 finding, 0 warnings" in done.stdout
    assert (tmp_path / "report/index.html").exists()
