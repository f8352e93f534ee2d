"""A run's id elsewhere is kept in its save folder, and a logger that cannot log is refused at the start."""

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from imagestream.storage.local import LocalPlace
from imagestream.storage.places import open_place
from tests.conftest import REPOSITORY
from train.config.run_config import ConfigError, load_config
from train.config.sections import LoggersConfig, MlflowConfig
from train.record.logger_ids import check_loggers, kept_id
from train.record.mlflow_run import MlflowRun


def test_an_id_is_made_once(tmp_path: Path) -> None:
    made = iter(["first", "second"])
    place = LocalPlace(tmp_path)
    assert [kept_id(place, "wandb.json", lambda: next(made)) for _ in range(3)] == ["first"] * 3
    (tmp_path / "wandb.json").unlink()
    assert kept_id(place, "wandb.json", lambda: next(made)) == "second"


@pytest.mark.s3
def test_an_id_is_kept_in_s3(s3_folder: str) -> None:
    assert kept_id(open_place(s3_folder), "wandb.json", lambda: "first") == "first"
    assert kept_id(open_place(s3_folder), "wandb.json", lambda: "second") == "first"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"name": "x"}'])
def test_a_file_without_an_id_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "wandb.json").write_text(text)
    with pytest.raises(ConfigError, match=r'/wandb\.json must be \{"id": \.\.\.\}, the run\'s id there; delete it'):
        kept_id(LocalPlace(tmp_path), "wandb.json", lambda: "new")


def test_mlflow_without_its_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = LoggersConfig(
        progress_bar="auto", console_interval=None, file=False, tensorboard=False, wandb=None,
        mlflow=MlflowConfig(experiment="x"),
    )  # fmt: skip
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="the package mlflow is not installed; `pip install mlflow-skinny`, or give"):
        check_loggers(cfg)


class Gone(Exception):
    error_code = "RESOURCE_DOES_NOT_EXIST"


class Away(Gone):
    error_code = "INTERNAL_ERROR"  # MLflow's, for a connection that fails


@pytest.mark.parametrize(("error", "batch", "is_spared"), [(Away, 0, False), (Away, 5, True), (Gone, 5, False)])
def test_an_mlflow_that_is_away_refuses_a_new_run_and_spares_one_that_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    error: type[Gone], batch: int, is_spared: bool,
) -> None:  # fmt: skip
    """MLflow need not be installed."""

    def fail(*_: Any, **__: Any) -> Any:
        raise error("the request failed")

    client = SimpleNamespace(update_run=fail)
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(MlflowClient=lambda **_: client))
    monkeypatch.setitem(sys.modules, "mlflow.exceptions", SimpleNamespace(MlflowException=Gone))
    (tmp_path / "mlflow.json").write_text('{"id": "1"}')
    cfg = load_config(REPOSITORY / "yamls/tiny.yaml", ["data.local=shards"], check_paths=False)
    run = MlflowRun(MlflowConfig(experiment="x"), cfg, LocalPlace(tmp_path))
    if not is_spared:
        with pytest.raises(ConfigError, match=f"^loggers.mlflow: {error.__name__}: the request failed; mend that"):
            run.begin(batch)
        return
    assert run.begin(batch) == batch
    for step in (6, 7):
        run.log(step, {"lr": 0.1})
    run.close(is_finished=True)
    assert [record.message for record in caplog.records] == [
        "MLflow cannot be reached: Away: the request failed; the run continues without it, and what MLflow lacks is "
        "sent when the run is started again"
    ]
