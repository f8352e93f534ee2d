"""Which checkpoint of a run's folder is taken."""

import json
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from train.config.run_config import ConfigError, load_config
from train.resume.checkpoint_file import CheckpointError
from train.weights.choosing import choose_checkpoint


def a_run(folder: Path, *names: str, top1: dict[int, float] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).touch()
    if top1 is not None:
        record = {"evaluations": [{"batch": batch, "top1": value} for batch, value in top1.items()]}
        (folder / "run.json").write_text(json.dumps(record))
    return folder


NAMES = ("ep1-ba10.pt", "ep2-ba20.pt", "ep10-ba100.pt", "ep9-ba95.pt.damaged", "notes.txt")


def test_the_best_is_that_with_the_highest_top1_of_those_that_are_left(tmp_path: Path) -> None:
    run = a_run(tmp_path / "x", *NAMES, top1={5: 0.9, 10: 0.3, 20: 0.5, 100: 0.4})
    assert choose_checkpoint(str(run), "best")[1] == "ep2-ba20.pt"
    assert choose_checkpoint(str(run), "last")[1] == "ep10-ba100.pt"
    place, name = choose_checkpoint(str(run / "ep1-ba10.pt"), "best")
    assert (str(place), name) == (str(run), "ep1-ba10.pt")


def test_without_an_evaluation_the_best_is_the_newest(tmp_path: Path) -> None:
    assert choose_checkpoint(str(a_run(tmp_path / "x", *NAMES)), "best")[1] == "ep10-ba100.pt"
    assert choose_checkpoint(str(a_run(tmp_path / "y", *NAMES, top1={7: 0.5})), "best")[1] == "ep10-ba100.pt"


def test_a_folder_without_one_and_a_damaged_record_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"x holds no checkpoint .*; give a run's save folder"):
        choose_checkpoint(str(a_run(tmp_path / "x", "run.json")), "best")
    run = a_run(tmp_path / "y", *NAMES)
    for text in ("{", "[]"):
        (run / "run.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"run\.json is damaged: "):
            choose_checkpoint(str(run), "best")


@pytest.mark.parametrize(("given", "meant"), [("true", "top1"), ("false", None), ("top1", "top1"), ("null", None)])
def test_keep_best_takes_what_checkpoints_of_before_have(given: str, meant: str | None) -> None:
    overrides = ["data.local=x", f"checkpoint.keep_best={given}"]
    cfg = load_config(REPOSITORY / "yamls/tiny.yaml", overrides, check_paths=False)
    assert cfg.checkpoint.keep_best == meant


def test_keep_best_knows_no_other_figure() -> None:
    with pytest.raises(ConfigError, match="keep_best: 'top5' must be 'top1' or null"):
        load_config(REPOSITORY / "yamls/tiny.yaml", ["data.local=x", "checkpoint.keep_best=top5"], check_paths=False)
