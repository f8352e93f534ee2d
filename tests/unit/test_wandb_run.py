"""What W&B is told: one run by the id in the save folder, and nothing that it has already."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb

from imagestream.storage.local import LocalPlace
from tests.conftest import REPOSITORY
from train.config.run_config import Config, load_config
from train.record.wandb_run import WandbRun, last_offline_step


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
