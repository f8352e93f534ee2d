"""Checkpoints: found by listing, used only when whole, loaded only when harmless."""

import logging
import os
from pathlib import Path

import pytest
import torch

from train import checkpoints
from train.checkpoints import CheckpointError, list_checkpoints, load, newest_whole, on_every_node
from train.folders import LocalFolder


def write(path: Path, batch: int) -> Path:
    torch.save({"state": {"batch": batch, "weight": torch.arange(1000)}, "rng": []}, path)
    return path


def test_checkpoints_are_listed_by_batch_and_nothing_else_is_listed(tmp_path: Path) -> None:
    for name in ("ep9-ba90.pt", "ep10-ba100.pt", "ep1-ba10.pt", ".part-ep11-ba110.pt", "run.json", "ep2-ba20.pt.bak"):
        (tmp_path / name).touch()
    assert list_checkpoints(LocalFolder(tmp_path)) == ["ep1-ba10.pt", "ep9-ba90.pt", "ep10-ba100.pt"]


def test_the_newest_whole_checkpoint_is_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "ep1-ba10.pt", 10)
    write(tmp_path / "ep2-ba20.pt", 20)
    truncated = write(tmp_path / "ep3-ba30.pt", 30)
    os.truncate(truncated, truncated.stat().st_size // 2)
    with caplog.at_level(logging.WARNING):
        found = newest_whole(LocalFolder(tmp_path))
    assert found is not None
    name, content = found
    assert (name, content["state"]["batch"]) == ("ep2-ba20.pt", 20)
    assert "ep3-ba30.pt is not a whole checkpoint" in caplog.text
    names = ["ep1-ba10.pt", "ep2-ba20.pt", "ep3-ba30.pt.damaged"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_an_empty_folder_has_no_checkpoint(tmp_path: Path) -> None:
    assert newest_whole(LocalFolder(tmp_path / "not-yet")) is None


def test_only_damaged_checkpoints_are_an_error_rather_than_a_fresh_start(tmp_path: Path) -> None:
    (tmp_path / "ep1-ba10.pt").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match=r"none of the 1 checkpoints can be used; the newest is ep1-ba10\.pt"):
        newest_whole(LocalFolder(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["ep1-ba10.pt"]  # else the next run would start afresh


def test_a_flipped_bit_in_a_tensor_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path / "ep1-ba10.pt", 10)
    content = bytearray(path.read_bytes())
    at = content.index(torch.arange(1000).numpy().tobytes()[800:840])
    content[at] ^= 1
    path.write_bytes(content)
    torch.load(path, weights_only=True)  # torch itself reads it without complaint
    with pytest.raises(CheckpointError, match="fails its checksum"):
        load(path)


class RunsCode:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("true",)


def test_a_checkpoint_that_would_run_code_is_refused_and_named(tmp_path: Path) -> None:
    path = tmp_path / "ep1-ba10.pt"
    torch.save({"state": RunsCode()}, path)
    with pytest.raises(CheckpointError, match=r"ep1-ba10\.pt holds posix\.system; loading it could run code"):
        load(path)


def test_composer_loads_nothing_that_is_not_safe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from composer.utils.checkpoint import safe_torch_load

    monkeypatch.setenv("CHECKPOINT_VALIDATION_FUNCTION", "")
    monkeypatch.delenv("CHECKPOINT_VALIDATION_FUNCTION")
    marker = tmp_path / "ran"
    path = tmp_path / "ep1-ba10.pt"

    class Touches:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {marker}",)

    torch.save({"state": Touches()}, path)
    safe_torch_load(path)
    assert marker.exists(), "Composer has become careful by itself: the guard can go"
    marker.unlink()
    monkeypatch.setenv("CHECKPOINT_VALIDATION_FUNCTION", "")
    checkpoints.only_load_safely()
    with pytest.raises(CheckpointError):
        safe_torch_load(path)
    assert not marker.exists()


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = LocalFolder(tmp_path / "run")
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
        on_every_node(LocalFolder(tmp_path), "ep1-ba2.pt"),
    ):
        pass
