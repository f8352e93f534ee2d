"""A run's id elsewhere is kept in its save folder, and a logger that cannot log is refused at the start."""

import importlib.util
from pathlib import Path

import pytest

from imagestream.storage.local import LocalPlace
from imagestream.storage.places import open_place
from train.config.run_config import ConfigError
from train.config.sections import LoggersConfig, MlflowConfig
from train.record.logger_ids import check_loggers, kept_id


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
