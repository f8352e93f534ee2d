"""`make test-corpus` names what is at fault and continues."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import corpus
from tests.conftest import REPOSITORY
from tests.jpegs import jpeg, lossless_jpeg, written_by_hand


def test_each_file_is_judged_and_one_that_kills_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "1.jpg").write_bytes(jpeg(90, 60))
    (tmp_path / "2.jpg").write_bytes(lossless_jpeg(64, 48))
    (tmp_path / "3.jpg").write_bytes(written_by_hand(45, 39, ((3, 1), (2, 1), (1, 1))))
    assert corpus.main([str(tmp_path)]) == 0
    (tmp_path / "below/deadly").write_bytes(b"deadly")
    judge = corpus.judge
    monkeypatch.setattr(
        corpus, "judge", lambda data: os.kill(os.getpid(), signal.SIGSEGV) if data == b"deadly" else judge(data)
    )
    assert corpus.main([str(tmp_path)]) == 1
    lines = capfd.readouterr().out.splitlines()[-5:]
    assert lines[0] == "1.jpg: kept"
    assert lines[1].startswith("2.jpg: mended: lossless (SOF3) JPEG")
    assert lines[2].startswith("3.jpg: refused: JPEG with the chroma sampling 3x1")
    assert lines[3] == "below/deadly: FAULT: kills its process (SIGSEGV)"
    assert lines[4] == "1 FAULT, 1 kept, 1 mended, 1 refused"


@pytest.mark.slow
def test_the_command_runs_by_itself(tmp_path: Path) -> None:
    """As `make test-corpus` has it, with nothing but tests/ on Python's path."""
    (tmp_path / "1.jpg").write_bytes(jpeg(90, 60))
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "tests/corpus.py", str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "1.jpg: kept\n1 kept\n"), done.stderr


def test_an_image_that_the_decoders_see_otherwise_is_a_fault() -> None:
    data = jpeg(90, 60)
    assert corpus.disagreement(data, (90, 60)) is None
    assert corpus.disagreement(data, (60, 90)) == "stored as 60 x 90 px, pillow sees 90 x 60"
    assert "refuses it" in (corpus.disagreement(data[: len(data) // 2], (90, 60)) or "")
