"""A save folder that fails while the run goes on: the run has failed, and is not called refused."""

import pytest

from tests.fault_proxy import FaultProxy, during
from tests.faults.conftest import Trial
from tests.integration.problem import command
from tests.processes import start
from train.folders import S3Folder

pytestmark = [pytest.mark.s3, pytest.mark.slow]


def test_a_checkpoint_that_cannot_be_stored_ends_the_run_which_goes_on_once_it_can(
    trial: Trial, proxy: FaultProxy
) -> None:
    folder = f"{trial.remote}-saves"
    argv = command(trial.cache, folder, f"data.remote={trial.remote}", "max_duration=4ba", "loggers.file=false")
    env = trial.server.env_through(proxy.endpoint_url)
    proxy.choose = lambda request: "403" if request.method in ("PUT", "POST") and "/ep0-ba4.pt" in request.path else ""
    started = start(argv, trial.folder / "log", env=env)
    assert started.wait(120) == 1, started.output()
    assert "the run has ended after batch 4: " in started.output()
    assert f"{folder}/ep0-ba4.pt cannot be written: " in started.output() and "Traceback" not in started.output()
    proxy.choose = lambda request: ""
    again = start(argv, trial.folder / "again", env=env)
    assert again.wait(120) == 0, again.output()
    assert f"resume: from {folder}/ep0-ba2.pt" in again.output()


def test_a_file_is_offered_to_a_store_that_fails_for_a_quarter_of_a_minute(
    trial: Trial, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in trial.server.env_through(proxy.endpoint_url).items():
        monkeypatch.setenv(name, value)
    folder, source = S3Folder(f"{trial.remote}-stored"), trial.folder / "checkpoint"
    source.write_bytes(b"weights")
    proxy.choose = during(15, "500")
    folder.put("checkpoint", source)
    assert folder.read("checkpoint") == b"weights"
    assert proxy.faults_given > 8  # what would have ended it before
