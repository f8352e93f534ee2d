"""What W&B is told: one run by the id in the save folder, and nothing that it has already."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb

from imagestream.storage.local import LocalPlace
from tests.conftest import REPOSITORY
from train.config.run_config import Config, ConfigError, load_config
from train.record.wandb_run import WandbRun, last_offline_step

AWAY = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "a" * 40, "WANDB_INIT_TIMEOUT": "5"}
"""A server that does not answer."""


def config(mode: str) -> Config:
    overrides = ["data.local=shards", f"loggers.wandb={{project: test, mode: {mode}, tags: [a]}}"]
    return load_config(REPOSITORY / "yamls/tiny.yaml", overrides, check_paths=False)


def opened(cfg: Config, folder: Path) -> WandbRun:
    assert cfg.loggers.wandb is not None
    return WandbRun(cfg.loggers.wandb, cfg, LocalPlace(folder), str(folder))


def test_online_the_run_is_opened_again_and_wandbs_server_says_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []

    def init(**given: Any) -> Any:
        calls.append(given)
        return SimpleNamespace(starting_step=8 if len(calls) > 1 else 0)

    monkeypatch.setattr(wandb, "init", init)
    assert [max(0, opened(config("online"), tmp_path).begin(5)) for _ in range(2)] == [0, 7]
    first, second = calls
    assert first["id"] == second["id"] == LocalPlace(tmp_path).read("wandb.json").decode().split('"')[3]
    assert {key: first[key] for key in ("project", "name", "tags", "resume", "mode", "dir")} == {
        "project": "test", "name": "tiny", "tags": ["a"], "resume": "allow", "mode": "online", "dir": str(tmp_path),
    }  # fmt: skip
    assert first["config"]["optimizer"]["lr"] == 0.03


def test_a_wandb_that_fails_is_said_once_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise wandb.errors.CommError("the service process is gone")

    there = SimpleNamespace(starting_step=0, log=fail, finish=fail)
    monkeypatch.setattr(wandb, "init", lambda **_: there)
    monkeypatch.setattr(wandb, "run", there)
    run = opened(config("online"), tmp_path)
    run.begin(0)
    for step in range(1, 4):
        run.log(step, {"train/loss": 1.0})
    run.close(is_finished=False)
    assert caplog.text.count("what goes to W&B cannot be written: the service process is gone; the run continues") == 1


def test_a_wandb_that_is_away_refuses_a_new_run_and_spares_one_that_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(**_: Any) -> None:
        raise wandb.errors.CommError("has timed out\nafter 90.0 sec")

    monkeypatch.setattr(wandb, "init", fail)
    expected = (
        r"^loggers\.wandb: CommError: has timed out after 90\.0 sec; mend that, or give loggers\.wandb\.mode=offline"
    )
    with pytest.raises(ConfigError, match=expected):
        opened(config("online"), tmp_path).begin(0)
    assert caplog.text == ""
    run = opened(config("online"), tmp_path)
    assert run.begin(5) == 5
    run.log(6, {"train/loss": 1.0})
    run.close(is_finished=False)
    assert caplog.text.count("W&B cannot be reached: CommError: has timed out after 90.0 sec; the run continues") == 1
    assert len(caplog.records) == 1


@pytest.mark.slow
def test_python_ends_though_wandbs_server_never_answered(tmp_path: Path) -> None:
    """Its own process would try again for hours, and Python would wait for that."""
    code = (
        "import sys; sys.path.insert(0, '.'); from pathlib import Path\n"
        "from tests.unit.test_wandb_run import config, opened\n"
        "run = opened(config('online'), Path(sys.argv[1])); print(run.begin(5)); run.close(is_finished=True)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=REPOSITORY, env=os.environ | AWAY, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "5\n"), done.stderr


@pytest.mark.slow
def test_offline_the_last_step_is_read_from_the_files_even_where_one_is_cut_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = opened(config("offline"), tmp_path)
    assert run.begin(0) <= 0
    for step in range(1, 101):
        run.log(step, {"train/loss": 1.0 / step})
    run.close(is_finished=True)
    (path,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    run_id = path.stem.removeprefix("run-")
    assert last_offline_step(tmp_path / "wandb", run_id) == 100
    assert last_offline_step(tmp_path / "wandb", "another") == 0
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert 10 < last_offline_step(tmp_path / "wandb", run_id) < 90
