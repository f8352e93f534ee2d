"""Checkpoints: found by listing, used only when whole, loaded only when harmless."""

import logging
import os
from pathlib import Path

import pytest
import torch

from imagestream.storage.local import LocalPlace
from train.resume import checkpoint_file
from train.resume.checkpoint_file import CheckpointError
from train.resume.checkpoints import (
    Found,
    best_checkpoint,
    list_checkpoints,
    newest_whole,
    on_every_node,
    set_damaged_aside,
)


def write(path: Path, batch: int) -> Path:
    checkpoint_file.write({"state": {"batch": batch, "weight": torch.arange(1000)}, "rng": []}, path)
    return path


def test_checkpoints_are_listed_by_batch_and_nothing_else_is_listed(tmp_path: Path) -> None:
    for name in ("ep9-ba90.pt", "ep10-ba100.pt", "ep1-ba10.pt", ".part-ep11-ba110.pt", "run.json", "ep2-ba20.pt.bak"):
        (tmp_path / name).touch()
    assert list_checkpoints(LocalPlace(tmp_path)) == ["ep1-ba10.pt", "ep9-ba90.pt", "ep10-ba100.pt"]


def test_the_newest_whole_checkpoint_is_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "ep1-ba10.pt", 10)
    write(tmp_path / "ep2-ba20.pt", 20)
    truncated = write(tmp_path / "ep3-ba30.pt", 30)
    os.truncate(truncated, truncated.stat().st_size // 2)
    with caplog.at_level(logging.WARNING):
        found = newest_whole(LocalPlace(tmp_path))
    assert found is not None
    checkpoint, content = found
    assert (checkpoint.name, checkpoint.damaged) == ("ep2-ba20.pt", ("ep3-ba30.pt",))
    assert content["state"]["batch"] == 20
    assert "ep3-ba30.pt does not end in its hash" in caplog.text
    set_damaged_aside(LocalPlace(tmp_path), checkpoint)
    names = ["ep1-ba10.pt", "ep2-ba20.pt", "ep3-ba30.pt.damaged"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_an_empty_folder_has_no_checkpoint(tmp_path: Path) -> None:
    assert newest_whole(LocalPlace(tmp_path / "not-yet")) is None


def test_only_damaged_checkpoints_are_an_error_rather_than_a_fresh_start(tmp_path: Path) -> None:
    (tmp_path / "ep1-ba10.pt").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match=r"none of the 1 checkpoints can be used; the newest is ep1-ba10\.pt"):
        newest_whole(LocalPlace(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["ep1-ba10.pt"]  # else the next run would start afresh


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = LocalPlace(tmp_path / "run")
    for text in ("first", "second"):
        source = tmp_path / "new"
        source.write_text(text)
        folder.put("run.json", source)
    assert folder.read("run.json") == b"second"
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["run.json"]
    assert not source.exists()


def test_a_checkpoint_that_is_not_there_is_said(tmp_path: Path) -> None:
    with (
        pytest.raises(CheckpointError, match=r"ep1-ba2\.pt does not exist"),
        on_every_node(LocalPlace(tmp_path), Found("ep1-ba2.pt")),
    ):
        pass


def test_another_whole_checkpoint_under_the_name_that_was_found_is_refused(tmp_path: Path) -> None:
    """As after another run has saved to the folder between the look at the checkpoint and Composer's."""
    write(tmp_path / "ep1-ba10.pt", 10)
    newest = newest_whole(LocalPlace(tmp_path))
    assert newest is not None
    with on_every_node(LocalPlace(tmp_path), newest[0]) as path:
        assert path == str(tmp_path / "ep1-ba10.pt")
    write(tmp_path / "ep1-ba10.pt", 11)
    with (
        pytest.raises(CheckpointError, match="is not the checkpoint that was found"),
        on_every_node(LocalPlace(tmp_path), newest[0]),
    ):
        pass


def test_a_checkpoint_that_was_damaged_since_it_was_found_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "ep1-ba10.pt", 10)
    newest = newest_whole(LocalPlace(tmp_path))
    assert newest is not None
    os.truncate(path, path.stat().st_size - 1)
    with (
        pytest.raises(CheckpointError, match=r"^on .*ep1-ba10\.pt does not end in its hash"),
        on_every_node(LocalPlace(tmp_path), newest[0]),
    ):
        pass


def test_the_best_checkpoint_is_the_first_with_the_highest_score_of_its_own_batch() -> None:
    names = ["ep1-ba8.pt", "ep2-ba16.pt", "ep3-ba24.pt", "ep4-ba32.pt"]
    assert best_checkpoint(names, {8: 0.5, 16: 0.75, 20: 0.9, 24: 0.75, 32: 0.25}) == "ep2-ba16.pt"
    assert best_checkpoint(names, {12: 0.5}) is None and best_checkpoint([], {8: 0.5}) is None
