"""A save folder that fails during the run: the run has failed, and is not called refused."""

import re
from pathlib import Path

import pytest

from imagestream.storage.places import open_place
from tests.fault_proxy import FaultProxy, during
from tests.faults.conftest import SHORT, Trial
from tests.integration.problem import command
from tests.processes import run, start
from tests.small_disk import needs_small_disk, small_disk
from train.resume.checkpoint_file import load

pytestmark = pytest.mark.slow


@needs_small_disk
def test_a_save_folder_that_fills_up_ends_all_ranks_with_the_bytes_needed_and_the_run_goes_on_once_there_is_room(
    shards: Path, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", size_bytes=64 << 20) as disk:
        folder = disk.path / "run"
        argv = command(shards, folder, *SHORT, "checkpoint.save_interval=2ba", "loggers.file=true")
        code, output = run([*argv, "max_duration=2ba"], tmp_path / "first", ranks=2)
        assert code == 0, output
        size = (folder / "ep0-ba2.pt").stat().st_size
        disk.fill(leave_bytes=size // 2)
        more = [*argv, "max_duration=4ba", "--allow-changed", "max_duration"]
        full = start(more, tmp_path / "full", ranks=2)
        full.wait()
        assert [rank.exitcode for rank in full.ranks] == [1, 1], full.output()
        said = re.search(r"the run has ended after batch 4: (\S+) cannot be written: No space left on device; "
                         r"([\d,]+) bytes are free in (\S+), ([\d,]+) are needed", full.output())  # fmt: skip
        assert said, full.output()
        free, needed = (int(said[group].replace(",", "")) for group in (2, 4))
        assert (said[1], said[3]) == (f"{folder}/ep0-ba4.pt", str(folder))
        assert free <= size // 2 and size <= needed < 1.1 * size
        assert "Traceback" not in full.output() + full.output(1)
        assert not list(folder.glob(".*"))
        load(folder / "ep0-ba2.pt")

        disk.make_room()
        code, output = run(more, tmp_path / "again", ranks=2)
        assert code == 0, output
        assert f"resume: from {folder}/ep0-ba2.pt" in output


@needs_small_disk
def test_a_full_disk_under_the_log_files_and_the_heartbeat_does_not_end_the_run(shards: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "run/logs", size_bytes=1 << 20) as disk:
        heartbeat = disk.path / "heartbeat.json"
        disk.fill()
        argv = command(shards, tmp_path / "run", *SHORT, "loggers.file=true", "max_duration=3ba")
        code, output = run(argv, tmp_path / "log", env={"HEARTBEAT_FILE": str(heartbeat)})
        assert code == 0, output
        full = "cannot be written: No space left on device; the run continues"
        assert re.search(rf"the log file \S+ {full}", output) and f"{heartbeat} {full}" in output, output
        assert "Traceback" not in output and "lost sys.stderr" not in output


@pytest.mark.s3
def test_a_checkpoint_that_cannot_be_stored_ends_the_run_which_goes_on_once_it_can(
    trial: Trial, proxy: FaultProxy
) -> None:
    folder = f"{trial.remote}-saves"
    argv = command(trial.cache, folder, f"data.remote={trial.remote}", "max_duration=4ba", "loggers.file=false")
    env = trial.server.env_through(proxy.endpoint_url)
    proxy.choose = lambda request: "403" if request.method in ("PUT", "POST") and "/ep0-ba4.pt" in request.path else ""
    started = start(argv, trial.folder / "log", env=env, real_network=True)  # 64 MB at a time, as in production
    assert started.wait(120) == 1, started.output()
    assert "the run has ended after batch 4: " in started.output()
    assert f"{folder}/ep0-ba4.pt cannot be written: " in started.output() and "Traceback" not in started.output()
    proxy.choose = lambda request: ""
    again = start(argv, trial.folder / "again", env=env, real_network=True)
    assert again.wait(120) == 0, again.output()
    assert f"resume: from {folder}/ep0-ba2.pt" in again.output()


@pytest.mark.s3
@pytest.mark.exhaustive
def test_a_file_is_offered_to_a_store_that_fails_for_a_quarter_of_a_minute(
    trial: Trial, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in trial.server.env_through(proxy.endpoint_url).items():
        monkeypatch.setenv(name, value)
    folder, source = open_place(f"{trial.remote}-stored"), trial.folder / "checkpoint"
    source.write_bytes(b"weights")
    proxy.choose = during(15, "500")
    folder.put("checkpoint", source)
    assert folder.read("checkpoint") == b"weights"
    assert proxy.faults_given > 8  # what would have ended it before
    given, proxy.choose = proxy.faults_given, during(15, "500")
    assert folder.names() == ["checkpoint"]  # a save looks for the checkpoints to delete
    assert proxy.faults_given > given + 8
