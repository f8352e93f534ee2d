"""Names that others chose are printed so that a terminal does nothing but show them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from imagestream.mds.names import printable, shown
from tests.conftest import REPOSITORY

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
