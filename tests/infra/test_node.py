"""One machine's watcher: what it passes on to the ranks, and when it ends them."""

import contextlib
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from infra.launch import node
from infra.launch.node import Node, Settings, SettingsError
from tests.conftest import REPOSITORY
from tests.small_disk import needs_small_disk, small_disk

# A launcher with one rank that, like train/main.py, ends with 75 at SIGUSR1; deaf at first, as while importing torch.
RANK = """
import os, signal, sys, time
time.sleep(0.5)
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75))
time.sleep(60)
"""
LAUNCHER = f"import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', {RANK!r}]))"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    kept = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)}
    monkeypatch.setattr(node, "SECONDS_BETWEEN_LOOKS", 0.05)
    monkeypatch.setattr(node, "SECONDS_BETWEEN_NOTICE_LOOKS", 0.1)
    monkeypatch.setattr(Settings, "launcher", lambda self, argv: [sys.executable, "-c", argv[0]])
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


def settings(tmp_path: Path, **env: str) -> Settings:
    return Settings.of({"LOG_DIR": str(tmp_path), "RANKS": "1", "PREFLIGHT": "0", **env})


@needs_small_disk
def test_a_full_disk_under_its_log_does_not_end_the_watch(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", size_bytes=1 << 20) as disk:
        disk.fill()
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1)).start()  # which it notes in its log
        assert Node(settings(disk.path)).run([LAUNCHER]) == 75


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_ranks_once_they_listen(tmp_path: Path, number: signal.Signals) -> None:
    threading.Timer(0.2, os.kill, (os.getpid(), number)).start()
    assert Node(settings(tmp_path)).run([LAUNCHER]) == 75
    assert f"{number.name}: the ranks are told to save" in (tmp_path / "node-0.log").read_text()


def test_ranks_that_do_not_end_are_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "SECONDS_TO_SAVE", 0.5)
    deaf = LAUNCHER.replace("sys.exit(75)", "None")
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1)).start()
    began = time.monotonic()
    assert Node(settings(tmp_path)).run([deaf]) == 1
    assert time.monotonic() - began < 10


def test_a_second_ctrl_c_ends_the_ranks_at_once(tmp_path: Path) -> None:
    deaf = LAUNCHER.replace("sys.exit(75)", "None")
    for seconds in (1.5, 1.7):
        threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT)).start()
    began = time.monotonic()
    assert Node(settings(tmp_path)).run([deaf]) == 130
    assert time.monotonic() - began < 10
    assert "Ctrl-C again: the ranks are killed" in (tmp_path / "node-0.log").read_text()


def test_a_launcher_ends_with_its_node_that_is_killed(tmp_path: Path) -> None:
    launcher = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(f'{{os.getpid()}}.'); time.sleep(60)"
    program = (
        "import os, sys; from infra.launch.node import Node, Settings\n"
        f"Settings.launcher = lambda self, argv: [sys.executable, '-c', {launcher!r}]\n"
        "Node(Settings.of(os.environ)).run([])"
    )
    env = os.environ | {"LOG_DIR": str(tmp_path), "RANKS": "1"}
    started = subprocess.Popen([sys.executable, "-c", program], cwd=REPOSITORY, env=env)
    deadline = time.monotonic() + 30
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().endswith("."):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    pid = int((tmp_path / "pid").read_text()[:-1])
    started.kill()
    started.wait(5)
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(pid).wait(5)


def test_a_run_without_a_sign_of_life_is_ended(tmp_path: Path) -> None:
    assert Node(settings(tmp_path, STALL_S="1")).run(["import time; time.sleep(60)"]) == 1
    assert "no sign of life for 1 s (STALL_S), before its first batch" in (tmp_path / "node-0.log").read_text()


def test_a_run_with_signs_of_life_is_left_alone(tmp_path: Path) -> None:
    beats = (
        "import json, os, time\n"
        "for n in range(40):\n"
        "    beat = {'batch': n, 'epoch': 0, 'unix_time_s': time.time()}\n"
        "    path = os.environ['HEARTBEAT_FILE']\n"
        "    open(path + '.part', 'w').write(json.dumps(beat))\n"
        "    os.replace(path + '.part', path)\n"
        "    time.sleep(0.1)\n"
    )
    assert Node(settings(tmp_path, STALL_S="2")).run([beats]) == 0


def test_a_spot_interruptions_notice_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By IMDSv2, from a server that answers as EC2 does."""

    class Metadata(http.server.BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self._answer(200, b"token")

        def do_GET(self) -> None:
            if self.headers["X-aws-ec2-metadata-token"] != "token":
                self._answer(401, b"")
            elif time.monotonic() - began < 1:
                self._answer(404, b"")
            else:
                self._answer(200, json.dumps({"action": "terminate", "time": "2026-01-01T00:00:00Z"}).encode())

        def _answer(self, code: int, body: bytes) -> None:
            self.send_response(code)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    began = time.monotonic()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    try:
        assert Node(settings(tmp_path, WATCH_SPOT="1")).run([LAUNCHER]) == 75
    finally:
        server.shutdown()
    assert "spot interruption (terminate at 2026-01-01T00:00:00Z)" in (tmp_path / "node-0.log").read_text()


def test_no_notice_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:9")
    assert node.spot_notice() == ""


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"NODES": "2"}, "NODE_RANK or SLURM_NODEID is not set"),
        ({"NODES": "2", "NODE_RANK": "1"}, "MASTER_ADDR is not set"),
        ({"NODES": "2", "NODE_RANK": "2", "MASTER_ADDR": "a"}, "NODE_RANK=2 must be below NODES=2"),
        ({"NODES": "two"}, "NODES=two must be a whole number"),
        ({"STALL_S": "20min"}, "STALL_S=20min must be a number of seconds above 0"),
        ({"STALL_S": "nan"}, "STALL_S=nan must be a number of seconds above 0"),
        ({"BEATS_ON_STDIN": "1", "PEER_LIMIT_S": "0"}, "PEER_LIMIT_S=0 must be a number of seconds above 0"),
    ],
)
def test_a_variable_that_makes_no_sense_is_named(env: dict[str, str], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        Settings.of(env)


def sbatch(folder: Path, commands: dict[str, str], *argv: str, **env: str) -> int:
    """Run train.sbatch before a Slurm of these shell commands; return its exit status."""
    for name, text in commands.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    environment = {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "SLURM_SUBMIT_DIR": str(REPOSITORY),
        "SLURM_JOB_ID": "5",
        "SLURM_NNODES": "1",
        "SLURM_JOB_NODELIST": "n1",
        "LOG_ROOT": str(folder),
        **env,
    }
    script = ["bash", str(REPOSITORY / "infra/launch/slurm/train.sbatch"), *argv]
    return subprocess.run(script, env=environment, timeout=60, check=False).returncode


def test_the_container_gets_the_same_part(tmp_path: Path) -> None:
    """train.sbatch with IMAGE, before a Slurm that notes how it was called."""
    slurm = {"scontrol": "echo n1", "srun": f'printf "%s\n" "$@" > {tmp_path}/called'}
    assert sbatch(tmp_path, slurm, "yamls/full.yaml", "seed=3", IMAGE="/fsx/resnet.sqsh") == 0
    called = (tmp_path / "called").read_text().split("\n")
    assert "--container-image=/fsx/resnet.sqsh" in called
    assert called[-5:-1] == ["python", "infra/launch/node.py", "yamls/full.yaml", "seed=3"]


@pytest.mark.parametrize(
    ("beats", "starts"),
    [
        pytest.param([(0, 1), (0, 2), (0, 1)], 2, id="the_last_sign_of_life_comes_sooner_or_later"),
        pytest.param([(0, 7), (4, 6), (4, 9), (8, 9)], 3, id="a_checkpoint_was_saved_between"),
        pytest.param([(4, 6), None, (4, 7)], 2, id="one_ends_before_it_trains"),
        pytest.param([None, None, None], 2, id="none_comes_so_far"),
        pytest.param([(4, 6), (8, 9), None, (8, 9)], 3, id="one_ends_early_after_a_checkpoint"),
    ],
)
def test_a_run_that_fails_again_and_again_ends(
    tmp_path: Path, beats: list[tuple[int, int] | None], starts: int
) -> None:
    """train.sbatch with MAX_FAILURES=2; `beats`: of each start its first batch and that of its last sign of life."""
    asked = (
        f"""case "$1" in requeue) touch {tmp_path}/queued ;; --oneliner) echo JobState=RUNNING ;; *) echo n1 ;; esac"""
    )
    heartbeat, queued = tmp_path / "5" / "heartbeat-node0.json", tmp_path / "queued"
    for number, beat in enumerate(beats, start=1):
        said = beat and json.dumps({"batch": beat[1], "start_batch": beat[0]})
        srun = f"rm -f {heartbeat}; " + (f"echo '{said}' > {heartbeat}; " if said else "") + "exit 1"
        code = sbatch(tmp_path, {"scontrol": asked, "srun": srun}, "yamls/full.yaml", MAX_FAILURES="2")
        assert (code, queued.exists()) == ((0, True) if number < starts else (1, False)), f"start {number}"
        if number == starts:
            return
        queued.unlink()


def test_fsx_is_loaded_until_nothing_is_left_in_s3(tmp_path: Path) -> None:
    """fsx.sh before an `lfs` that releases a file's content at the second look."""
    data = tmp_path / "imagenet"
    data.mkdir()
    for name in ("a.mds", "b.mds"):
        (data / name).write_bytes(b"x")
    lfs = tmp_path / "lfs"
    lfs.write_text(
        f"""#!/bin/sh
echo "$@" >> {tmp_path}/calls
case $1 in hsm_state) shift; for f in "$@"; do
  if [ $(grep -c hsm_state {tmp_path}/calls) -lt 2 ]; then echo "$f: (0x0000000d) released exists archived"
  else echo "$f: (0x00000009) exists archived"; fi; done ;; esac
"""
    )
    lfs.chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SECONDS_BETWEEN_LOOKS": "0"}
    done = subprocess.run(
        [REPOSITORY / "infra/aws/fsx.sh", "hydrate", data],
        env=env,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "2 files are still in S3 alone" in done.stdout and "is in FSx" in done.stdout
    assert "hsm_restore" in (tmp_path / "calls").read_text()
