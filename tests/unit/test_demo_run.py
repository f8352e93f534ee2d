"""The demo's own parts: where it kills, that nothing survives it, and that it does not call different things equal."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from demo import images, run
from demo.picture import draw, losses_of
from demo.processes import DemoError, Log, follow, kill_session, session_members, started
from demo.summary import Killed, differences

RECORD: dict[str, Any] = {
    "status": "finished",
    "weights_sha256": "ab12",
    "ledger": {"final": "cd34", "epochs": ["ef"]},
    "batches": 133,
    "top1": 0.7,
    "top5": 0.9,
    "loss": 1.0,
    "samples_evaluated": 251,
    "batch": {"total_steps": 133, "steps_per_epoch": 19},
    "config": {"checkpoint": {"save_interval": "8ba"}},
}


@pytest.mark.parametrize("kills", [1, 2, 3, 5])
def test_kills_are_in_mid_epoch_past_a_checkpoint_and_spread_over_the_run(kills: int) -> None:
    for seed in range(50):
        points = run.kill_points(RECORD, kills, random.Random(seed))
        assert len(points) == kills
        assert points == sorted(set(points))
        for batch in points:
            newest = batch - batch % 8
            assert 8 <= newest <= batch - 2
            assert batch % 8 < 7  # the run shows a batch while it does the next one
            assert newest % 19 and batch % 19
            assert batch < 133 - 8
        if kills == 3:
            assert points[0] < 133 / 2 < points[-1]


def test_the_same_seed_kills_at_the_same_points() -> None:
    assert run.kill_points(RECORD, 3, random.Random(1)) == run.kill_points(RECORD, 3, random.Random(1))


def test_a_run_without_a_place_to_kill_is_refused() -> None:
    short = RECORD | {"batch": {"total_steps": 9, "steps_per_epoch": 9}}
    with pytest.raises(DemoError, match="no 1 points"):
        run.kill_points(short, 1, random.Random(0))


def test_equal_records_have_no_differences_and_unequal_ones_are_named() -> None:
    assert differences(RECORD, RECORD | {"status": "whatever"}) == []
    other = RECORD | {"weights_sha256": "ff", "ledger": {"final": "cd34", "epochs": ["other"]}}
    assert [line.split(":")[0].strip() for line in differences(RECORD, other)] == ["weights_sha256", "ledger"]


def test_killing_a_session_leaves_no_grandchild_alive(tmp_path: Path) -> None:
    """Each generation ignores SIGTERM and SIGHUP, and the middle one has a process group of its own."""
    pids = tmp_path / "pids"
    code = (
        "import os, signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        f"open({str(pids)!r}, 'a').write(f'{{os.getpid()}}\\n')\n"
        "left = int(sys.argv[2])\n"
        "if left: subprocess.Popen([sys.executable, '-c', sys.argv[1], sys.argv[1], str(left - 1)],"
        " process_group=0 if left == 2 else None)\n"
        "time.sleep(600)\n"
    )
    with started([sys.executable, "-c", code, code, "2"], tmp_path / "log", cwd=tmp_path) as process:
        deadline = time.monotonic() + 60
        while not pids.exists() or len(pids.read_text().splitlines()) < 3:
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.05)
        assert kill_session(process) == 3
        assert session_members(process.pid) == []
    for pid in pids.read_text().split():
        state = Path(f"/proc/{pid}/stat")
        assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] in "ZX"


def test_a_failed_command_shows_its_last_lines_and_where_the_log_is(tmp_path: Path) -> None:
    log = tmp_path / "some.log"
    code = "import sys; print('\\n'.join(f'line {n}' for n in range(100))); sys.exit(3)"
    with started([sys.executable, "-c", code], log, cwd=tmp_path) as process, pytest.raises(DemoError) as caught:
        follow(process, Log(log), limit_s=60)
    message = str(caught.value)
    assert "exit status 3" in message and str(log) in message
    assert "line 70\n" in message and message.endswith("line 99") and "line 69\n" not in message


def test_a_command_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    log = tmp_path / "some.log"
    with (
        started([sys.executable, "-c", "import time; time.sleep(600)"], log, cwd=tmp_path) as process,
        pytest.raises(DemoError, match=r"not done after 0\.2 s|not done after 0 s"),
    ):
        follow(process, Log(log), limit_s=0.2)
    assert session_members(process.pid) == []


def test_progress_is_read_from_the_log_also_when_a_line_comes_in_two_parts(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text(
        "2026 INFO train.trainer: train: resnet18, 11,181,642 parameters; 1,250 samples, global batch 64, 1,133 steps\n"
        "2026 INFO train.record.progress: epoch 3/4, step 42/1,133, loss 1.0000, lr 0.1\n"
        "2026 INFO train.record.progress: evaluated after step 42: top-1 1.00%\n"
        "2026 INFO train.record.progress: epoch 3"
    )
    log = Log(path)
    log.read()
    assert (log.batch, log.total) == (42, 1133)
    with open(path, "a") as file:
        file.write("/4, step 1,043/1,133, loss 1.0000\n")
    log.read()
    assert log.batch == 1043


def test_the_newest_checkpoint_is_that_of_the_most_batches(tmp_path: Path) -> None:
    for name in ("ep0-ba8.pt", "ep10-ba200.pt", "ep5-ba100.pt", ".part-ep11-ba210.pt"):
        (tmp_path / name).touch()
    assert run.newest_checkpoint(tmp_path).name == "ep10-ba200.pt"
    with pytest.raises(DemoError, match="no checkpoint"):
        run.newest_checkpoint(tmp_path / "nowhere")


def test_an_unfinished_record_is_not_taken_for_a_result(tmp_path: Path) -> None:
    demo = run.Demo(tmp_path, ranks=2, on_gpu=False)
    folder = demo.runs / "some"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(RECORD | {"status": "running"}))
    with pytest.raises(DemoError, match="running"):
        demo.record("some")


def test_a_users_own_photos_shards_and_runs_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = [tmp_path / name for name in ("runs/mine/run.json", "runs/mine.log", "runs/interrupted-mine.log")]
    theirs = [
        tmp_path / "runs" / name
        for name in ("quick/run.json", "quick.log", "interrupted-1-killed.log", "evaluate.json", "two-runs.png")
    ]
    for path in (*mine, *theirs):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    run.Demo(tmp_path, ranks=2, on_gpu=False).remove_runs()
    assert all(path.exists() for path in mine) and not any(path.exists() for path in theirs)
    photo, index = tmp_path / "data/images/train/cat/cat.jpg", tmp_path / "data/mds/train/index.json"
    for path in (photo, index):
        path.parent.mkdir(parents=True)
        path.touch()
    assert run.main(["--only-data", "--out", str(tmp_path)]) == 1
    assert f"demo: {tmp_path}/data/images/train is there and was not drawn" in capsys.readouterr().err
    assert photo.exists()


@pytest.mark.slow
def test_shards_of_somebody_else_are_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(images, "SAMPLES", {"train": 10, "val": 10})
    index = tmp_path / "data/mds/train/index.json"
    index.parent.mkdir(parents=True)
    index.write_text("mine")
    assert run.main(["--only-data", "--out", str(tmp_path)]) == 1
    assert f"demo: {tmp_path}/data/mds is there and not of a demo" in capsys.readouterr().err
    assert index.read_text() == "mine"
    index.parent.rename(tmp_path / "elsewhere")
    index.parent.parent.rmdir()
    assert run.main(["--only-data", "--out", str(tmp_path)]) == 0
    assert run.main(["--only-data", "--out", str(tmp_path)]) == 0
    assert f"{tmp_path}/data/mds is complete already" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_ends_the_demo_ends_its_training_too(tmp_path: Path, number: signal.Signals) -> None:
    training = "import os, time; print('I am', os.getpid()); time.sleep(600)"
    program = (
        f"import sys; sys.path.insert(0, {str(run.ROOT)!r})\n"
        "from demo import run\n"
        f"run.run_quick = lambda demo: demo._run(['python', '-c', {training!r}], 'quick')\n"
        f"sys.exit(run.main(['--quick', '--out', {str(tmp_path)!r}]))\n"
    )
    log = tmp_path / "runs/quick.log"
    demo = subprocess.Popen([sys.executable, "-c", program], start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while not log.exists() or "\n" not in log.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        training_pid = int(log.read_text().split()[2])
        demo.send_signal(number)
        demo.send_signal(number)  # as a shell does once more
        assert demo.wait(60) == 1
        assert session_members(training_pid) == []
    finally:
        demo.kill()
        demo.wait(30)
        for pid in session_members(int(log.read_text().split()[2])):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
def test_nohup_keeps_the_demo_alive_when_the_terminal_closes(tmp_path: Path) -> None:
    program = (
        f"import os, signal, sys; sys.path.insert(0, {str(run.ROOT)!r})\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from demo import run\n"
        "run.run_quick = lambda demo: os.kill(os.getpid(), signal.SIGHUP) or 'alive'\n"
        f"sys.exit(run.main(['--quick', '--out', {str(tmp_path)!r}]))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


def test_gpus_are_counted_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def listing(*args: Any, **kwargs: Any) -> "subprocess.CompletedProcess[str]":
        return subprocess.CompletedProcess([], 0, "GPU 0: A (UUID: x)\nGPU 1: A (UUID: y)\nGPU 2: A (UUID: z)\n", "")

    monkeypatch.setattr(subprocess, "run", listing)
    assert run.gpu_count() == 2
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.undo()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run.gpu_count() == 0


def test_the_picture_has_the_losses_that_the_killed_run_had_shown(tmp_path: Path) -> None:
    shown = "2026 INFO train.record.progress: epoch 1/2, step {}/19, loss {:.4f}, lr 0.1, 9 images/s\n"
    log = tmp_path / "killed.log"
    log.write_text("a line\n" + "".join(shown.format(step, 2.6 - step / 10) for step in range(1, 5)) + "the end")
    assert losses_of(log) == [(1, 2.5), (2, 2.4), (3, 2.3), (4, 2.2)]
    record = {"curve": [{"batch": batch, "loss": 2.0} for batch in range(1, 9)], "weights_sha256": "abc"}
    picture = draw(record, record, [Killed(3, 8, "ep0-ba2.pt", 4)], [log], tmp_path / "two-runs.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
