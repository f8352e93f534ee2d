"""Two runs are the same to the last bit, or it is said where they part."""

from pathlib import Path
from typing import Any

import pytest
import torch

from train.compare import differences, main
from train.resume.checkpoint_file import write


def content(
    batches: int, *, weight: float = 1.0, samples: list[int] | None = None, loss: float = 0.5
) -> dict[str, Any]:
    trail = {
        "samples": torch.tensor(samples or [*range(batches)], dtype=torch.int64),
        "loss": torch.tensor([*[0.5] * (batches - 1), loss]),
    }
    model = {"conv": torch.full((2, 3), weight), "bn": torch.tensor(float("nan"))}
    return {"rng": [batches], "state": {"model": model, "callbacks": {"ResumeGuard": {"trail": trail}}}}


def save(folder: Path, batches: int, **what: Any) -> None:
    folder.mkdir(exist_ok=True)
    write(content(batches, **what), folder / f"ep1-ba{batches}.pt")


def compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    code = main([str(tmp_path / "a"), str(tmp_path / "b")])
    captured = capsys.readouterr()
    return code, (captured.out + captured.err).splitlines()


def test_equal_runs_are_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "ab":
        save(tmp_path / name, 3)
    code, lines = compared(tmp_path, capsys)
    assert code == 0
    assert lines == [
        "ep1-ba3.pt of both, 1 of 1: 3 batches",
        "the same, up to ep1-ba3.pt, in 1 checkpoint: every sample, crop, loss, tensor and number",
    ]


def test_the_first_batch_and_tensor_that_differ_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "ab":
        save(tmp_path / name, 1)
    save(tmp_path / "a", 3)
    save(tmp_path / "b", 3, weight=1.5, samples=[0, 7, 2], loss=0.25)
    code, lines = compared(tmp_path, capsys)
    assert code == 1
    assert lines[1:3] == [
        "batch 1 is the first with other samples or crops",
        "batch 2 is the first with other loss, 0.5 and 0.25",
    ]
    assert lines[3] == "  state/model/conv: 6 of 6 values, by up to 0.5"
    assert lines[0] == "ep1-ba3.pt of both, 2 of 2: 3 batches"
    assert lines[-2:] == ["they part at ep1-ba3.pt; the checkpoints before it are the same", "not the same"]


def test_what_is_listed_is_of_the_first_checkpoint_that_differs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "ab":
        save(tmp_path / name, 1)
    save(tmp_path / "a", 2)
    save(tmp_path / "b", 2, weight=1.25)
    save(tmp_path / "a", 3)
    save(tmp_path / "b", 3, weight=9.0, loss=0.25)
    code, lines = compared(tmp_path, capsys)
    assert code == 1
    assert lines == [
        "ep1-ba2.pt of both, 2 of 3: 2 batches",
        "  state/model/conv: 6 of 6 values, by up to 0.25",
        "they part at ep1-ba2.pt; the checkpoints before it are the same",
        "not the same",
    ]


def test_runs_whose_newest_checkpoints_agree_are_not_the_same_if_an_earlier_one_differs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "ab":
        save(tmp_path / name, 3)
    save(tmp_path / "a", 2)
    save(tmp_path / "b", 2, weight=1.25)
    code, lines = compared(tmp_path, capsys)
    assert code == 1 and lines[0].startswith("ep1-ba2.pt")
    assert lines[-2:] == ["they part at or before ep1-ba2.pt, the first checkpoint that both have", "not the same"]


def test_a_checkpoint_that_is_gone_since_it_was_listed_is_said_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "ab":
        save(tmp_path / name, 3)
    monkeypatch.setattr("train.compare.list_checkpoints", lambda folder: ["ep1-ba2.pt", "ep1-ba3.pt"])
    code, lines = compared(tmp_path, capsys)
    assert code == 2 and len(lines) == 1
    assert f"ep1-ba2.pt in {tmp_path}/a was listed and cannot be loaded" in lines[0]
    assert lines[0].endswith("it may have deleted it since (checkpoint.keep): compare again")


def test_one_that_is_gone_from_s3_too(
    s3_folder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.compare.list_checkpoints", lambda folder: ["ep1-ba2.pt"])
    assert main([f"{s3_folder}/a", f"{s3_folder}/b"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"ep1-ba2.pt in {s3_folder}/a was listed and cannot be loaded" in said


def test_a_checkpoint_of_another_program_is_said_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        write({"state": {}}, tmp_path / name / "ep1-ba1.pt")
    code, lines = compared(tmp_path, capsys)
    assert code == 2 and len(lines) == 1 and "was not written by train/main.py" in lines[0]


def test_runs_without_a_common_checkpoint_cannot_be_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "a", 2)
    save(tmp_path / "b", 3)
    code, lines = compared(tmp_path, capsys)
    assert code == 2 and "a has ep1-ba2.pt" in lines[0] and "b has ep1-ba3.pt" in lines[0]
    (tmp_path / "c").mkdir()
    assert main([str(tmp_path / "a"), str(tmp_path / "c")]) == 2
    assert "holds no checkpoints" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ({"a": torch.tensor([0.0])}, {"a": torch.tensor([-0.0])}, ["a: 0 of 1 values, by up to 0"]),
        ({"a": torch.zeros(2)}, {"a": torch.zeros(3)}, ["a: torch.float32 (2,) and torch.float32 (3,)"]),
        ({"a": 1}, {"b": 1}, ["a: in one run only", "b: in one run only"]),
        ({"a": [1, float("nan")]}, {"a": [1, float("nan")]}, []),
        ({"a": {"batch_wct": 1, "repr": "x", "c": 2}}, {"a": {"batch_wct": 3, "repr": "y", "c": 2}}, []),
        ({"a": (1, 2)}, {"a": (1, 3)}, ["a/1: 2 and 3"]),
    ],
)
def test_differences_are_named_by_their_path(one: Any, other: Any, expected: list[str]) -> None:
    assert differences(one, other) == expected


def test_starts_pictures_and_memory_do_not_count_nor_does_a_checkpoint_of_before_them() -> None:
    before = {"curve": [{"batch": 1, "loss": 0.5}]}
    point = {"batch": 1, "loss": 0.5, "data_wait_fraction": 0.5, "host_memory_bytes": 7, "device_memory_bytes": None}
    now = {"curve": [point], "page": {"starts": [{"batch": 0}]}}
    again = {"curve": [{**point, "host_memory_bytes": 8}], "page": {"starts": [{"batch": 0}, {"batch": 1}]}}
    whole = [{"state": {"callbacks": {"RunRecord": record}}} for record in (before, now, again)]
    assert differences(whole[0], whole[1]) == differences(whole[1], whole[2]) == differences(whole[2], whole[0]) == []
    assert differences({"curve": [point]}, {"curve": [{**point, "loss": 0.25}]}) == ["curve/0/loss: 0.5 and 0.25"]
