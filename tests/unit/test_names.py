"""Names that others chose are printed so that a terminal does nothing but show them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from convert.arguments import parse_args
from imagestream.mds.names import printable, shown
from imagestream.storage.local import LocalPlace
from tests.conftest import REPOSITORY
from tests.records import a_record
from train import runs
from train.predicting.model import PredictingModel
from train.predicting.page import Page
from train.record.run_record import RunRecord
from train.record.serving import serving
from train.step.statistics import StepStatistics

WILD = b"a\x1b[2J\nwarning: forged\xff"
TOLD = r"a\x1b[2J\nwarning: forged\xff"


def test_a_name_stays_on_its_line_and_shows_its_bytes() -> None:
    assert printable(os.fsdecode(WILD)) == TOLD
    assert printable("plain é 日本.jpg") == "plain é 日本.jpg"
    assert printable("\ud800\u202e\x9b\t") == r"\ud800\u202e\x9b\t"


def test_a_message_keeps_its_lines_and_can_be_printed() -> None:
    text = shown("one:\n\t" + os.fsdecode(b"\xff\x1b"))
    assert text == "one:\n\t\\xff\\x1b"
    text.encode()


def test_a_dataset_in_a_folder_that_is_not_utf8_is_refused_before_it_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse_args("", ["--source", str(tmp_path), "--out", f"{tmp_path}/caf\udce9"])
    assert rf"--out: {tmp_path}/caf\xe9 has bytes that are not UTF-8" in capsys.readouterr().err


def test_a_run_in_a_folder_that_is_not_utf8_has_its_page_and_its_table(tmp_path: Path) -> None:
    """Its own page, the one of a record without a page, and those of train/runs.py."""
    folder = tmp_path / "caf\udce9"
    folder.mkdir()
    record = a_record()
    record["config"]["checkpoint"]["save_folder"] = str(folder)
    guard: Any = SimpleNamespace(ledger="ab", epoch_ledgers=[], changes=[])
    RunRecord(record, LocalPlace(folder), guard, StepStatistics()).write(page=True)
    assert r"caf\xe9" in (folder / "report.html").read_text()
    (folder / "report.html").unlink()
    (folder / "run.json").write_text(json.dumps(record))
    with serving(str(folder), 0) as server:
        assert rb"caf\xe9" in server.page()
    assert runs.main([str(folder), "--csv", f"{tmp_path}/r.csv", "--html", f"{tmp_path}/r.html"]) == 0
    assert r"caf\xe9," in (tmp_path / "r.csv").read_text() and r"caf\xe9" in (tmp_path / "r.html").read_text()


def test_predictions_by_a_model_in_a_folder_that_is_not_utf8_have_their_page(tmp_path: Path) -> None:
    Page(f"{tmp_path}/p.html", PredictingModel(nn.Identity(), {}, "caf\udce9/ep1-ba20.pt")).finish()
    assert r"caf\xe9/ep1-ba20.pt" in (tmp_path / "p.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", [WILD, b"\x1b]0;title\x07", b"caf\xe9"])
@pytest.mark.parametrize("program", ["convert/imagenet_to_mds.py", "convert/audit.py"])
def test_neither_command_prints_a_name_as_it_is(tmp_path: Path, program: str, name: bytes) -> None:
    source = tmp_path / "source"
    folder = os.fsencode(source / "train" / "c") + name
    os.makedirs(folder)
    Path(os.fsdecode(folder), "x.txt").write_text("x")
    (source / os.fsdecode(b"b" + name)).write_text("x")
    argv = ["--source", str(source), "--out", str(tmp_path / "out")] if "mds" in program else [str(source)]
    done = subprocess.run([sys.executable, program, *argv], cwd=REPOSITORY, capture_output=True, timeout=60)
    printed = done.stdout + done.stderr
    assert done.returncode in (1, 2), printed  # a bad image, or nothing to convert
    assert b"Traceback" not in printed and b"\x1b" not in printed and b"\xff" not in printed and b"\x07" not in printed
    assert printable(os.fsdecode(name)).split("\\n")[0].encode() in printed
    assert all(not line.startswith(b"warning: forged") for line in printed.splitlines())
