"""One bar for a run, that fits its terminal; and lines above it, or instead of it."""

import fcntl
import logging
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from types import SimpleNamespace
from typing import Any

import pytest
from composer.utils import dist

from tests.conftest import REPOSITORY
from train.record.price import PRICE_VARIABLE
from train.record.progress import Clock, Part, Progress, duration, fitting, parts_of

FIGURES = {"train/loss": 2.34567, "lr": 0.0983, "images_per_sec": 1234.0, "memory_gb": 12.34}
HEAD = [Part("epoch 12/90", 0), Part("step 12,345/56,250", 1)]
TAIL = [*parts_of(FIGURES, ranks=2), Part("top-1 71.23%", 4), Part("1:23:45 left", 1)]


@pytest.mark.parametrize("width", range(50, 220))
def test_the_line_is_never_wider_than_the_terminal(width: int) -> None:
    before, after = fitting(HEAD, TAIL, width)
    assert len(f"{before} || {after}") + 10 <= width
    assert "epoch 12/90" in before and "loss 2.3457" in after


def test_what_a_narrow_terminal_leaves_out_comes_back_on_a_wide_one() -> None:
    assert fitting(HEAD, TAIL, 80) == ("epoch 12/90 step 12,345/56,250", "loss 2.3457 1:23:45 left")
    assert fitting(HEAD, TAIL, 200) == (
        "epoch 12/90 step 12,345/56,250",
        "loss 2.3457 lr 0.0983 1,234 images/s 617 on each of 2 ranks 12.3 GB top-1 71.23% 1:23:45 left",
    )
    assert fitting(HEAD, TAIL, 3) == ("epoch 12/90", "")


def test_images_a_second_are_of_all_ranks_and_of_each() -> None:
    assert [part.text for part in parts_of({"images_per_sec": 1234.0}, ranks=1)] == ["1,234 images/s"]
    assert [part.text for part in parts_of({"images_per_sec": 1234.0}, ranks=4)] == [
        "1,234 images/s",
        "308 on each of 4 ranks",
    ]


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (3599, "59:59"), (90061, "25:01:01")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_time_left_counts_evaluations_and_not_the_first_step() -> None:
    now = [0.0]
    clock = Clock(lambda: now[0])
    assert clock.left(5) is None
    now[0] = 60  # compiling
    clock.step_is_done()
    assert clock.left(5) is None
    for at in (62, 64):
        now[0] = at
        clock.step_is_done()
    assert clock.left(5) == 10
    clock.evaluation_begins()
    now[0] = 72
    assert clock.evaluation_ends() == 8
    assert clock.left(5) == 5 * 12 / 2


def lines_of(caplog: pytest.LogCaptureFixture, steps: range, *, every: int | None, total: int = 25) -> list[str]:
    readers: list[Any] = []
    metrics: Any = SimpleNamespace(tell=readers.append)
    record: Any = SimpleNamespace()  # there is no evaluation
    progress = Progress(metrics, record, total_steps=total, steps_per_epoch=10, has_bar=False, line_every_steps=every)
    with caplog.at_level(logging.INFO, "train.record.progress"), progress.shown(steps.start - 1):
        for step in steps:
            readers[0](step, {"train/loss": 1.0, "lr": 0.5, "images_per_sec": 100.0})
    return caplog.messages


def test_without_a_terminal_there_is_a_line_now_and_then(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert lines_of(caplog, range(3, 26), every=10) == [
        "epoch 1/3, step 3/25, loss 1.0000, lr 0.5, 100 images/s",
        "epoch 1/3, step 10/25, loss 1.0000, lr 0.5, 100 images/s",
        "epoch 2/3, step 20/25, loss 1.0000, lr 0.5, 100 images/s",
        "epoch 3/3, step 25/25, loss 1.0000, lr 0.5, 100 images/s",
    ]
    caplog.clear()
    assert lines_of(caplog, range(1, 26), every=None) == []
    monkeypatch.setattr(dist, "get_global_rank", lambda: 1)
    assert lines_of(caplog, range(1, 26), every=1) == []


ON_A_TERMINAL = """
import logging, sys, time, warnings
from types import SimpleNamespace
from train.record.progress import Progress
logging.basicConfig(format="%(message)s", level=logging.INFO)
readers = []
record = SimpleNamespace(evaluations=[{"batch": 10, "top1": 0.5, "top5": 1.0, "loss": 1.0, "samples_evaluated": 7}])
progress = Progress(SimpleNamespace(tell=readers.append), record, total_steps=20, steps_per_epoch=10, has_bar=True,
                    line_every_steps=1)
state = SimpleNamespace(dataloader_len=5, eval_timestamp=SimpleNamespace(batch=3))
with progress.shown(0):
    for step in range(1, 21):
        readers[0](step, {"train/loss": 1 / step, "lr": 0.5, "images_per_sec": 1000.0})
        progress.batch_end(None, None)
        if step == 4:
            logging.getLogger("train").info("LOGGED")
            print("PRINTED")
            warnings.warn("WARNED")
        if step == 10:
            progress.eval_start(state, None)
            time.sleep(0.12)
            progress.eval_batch_end(state, None)
            progress.eval_end(state, None)
        time.sleep(0.03)
print("AFTER", file=sys.stderr)
"""


def shown_on_a_terminal(columns: int, columns_later: int) -> list[str]:
    """The lines of a terminal at the end, and how the last one looked whenever it was drawn.

    In the evaluation it is made wider or narrower.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-c", ON_A_TERMINAL], cwd=REPOSITORY, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    data, until = b"", time.monotonic() + 120
    waiting = select.poll()  # select() takes no descriptor from 1,024 on
    waiting.register(ours, select.POLLIN)
    while time.monotonic() < until:
        if not waiting.poll(1000):
            continue
        try:
            piece = os.read(ours, 65536)
        except OSError:  # EIO: nobody has the other end any more
            break
        data += piece
        if b"evaluating" in data:
            fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns_later, 0, 0))
    os.close(ours)
    assert process.wait(30) == 0, data.decode()
    return data.decode().replace("\r\n", "\n").split("\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("columns", "later"),
    [
        pytest.param(80, 80, marks=pytest.mark.exhaustive),
        (80, 200),
        pytest.param(200, 80, marks=pytest.mark.exhaustive),
    ],
)
def test_on_a_terminal_there_is_one_bar_with_the_lines_above_it(columns: int, later: int) -> None:
    lines = shown_on_a_terminal(columns, later)
    whole = [line.split("\r")[-1] for line in lines]  # what is left of each line
    assert [line for line in whole if line in ("LOGGED", "PRINTED", "AFTER")] == ["LOGGED", "PRINTED", "AFTER"]
    assert any("UserWarning: WARNED" in line for line in whole)
    assert any(line.startswith("evaluated after step 10: top-1 50.00%, top-5 100.00%, loss 1.0000") for line in whole)
    bars = [line for line in whole if "|" in line]
    assert len(bars) == 1 and bars[0].startswith("epoch 2/2 step 20/20 |") and whole.index(bars[0]) == len(whole) - 3
    drawn = [part for line in lines for part in line.split("\r") if "|" in part]
    assert all(len(part) <= max(columns, later) for part in drawn)
    assert len(drawn[0]) in (columns - 1, columns) and len(bars[0]) in (later - 1, later)
    assert any("epoch 1/2 evaluating 3/5 |" in part for part in drawn)
    assert ("1,000 images/s" in bars[0]) and ("top-1 50.00%" in bars[0]) == (later > 80)


@pytest.mark.parametrize(
    ("said", "shown"), [("43.92", ["43.92 USD/h"]), ("", []), ("nan", []), ("-1", []), ("free", [])]
)
def test_what_an_hour_costs_is_shown_where_it_is_known(
    said: str, shown: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PRICE_VARIABLE, said)
    metrics: Any = SimpleNamespace(tell=lambda told: None)
    record: Any = None
    made = Progress(metrics, record, total_steps=9, steps_per_epoch=3, has_bar=True, line_every_steps=None)
    assert [part.text for part in made._tail()] == shown
