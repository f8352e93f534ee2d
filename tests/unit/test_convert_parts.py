"""Which part of a conversion a machine begins with, as given or as an array job says, and in which order it helps."""

import pytest

from convert.arguments import parse_args
from convert.parts import Part, part_of_array
from convert.plan import ShardTask

ARGV = ["--source", "S", "--out", "O"]
ARRAYS = (
    *("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_STEP"),
    *("AWS_BATCH_JOB_ARRAY_INDEX", "AWS_BATCH_JOB_ARRAY_SIZE", "SKYPILOT_NODE_RANK", "SKYPILOT_NUM_NODES"),
)


@pytest.fixture(autouse=True)
def outside_of_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ARRAYS:
        monkeypatch.delenv(name, raising=False)


def slurm(number: int, *, count: int, first: int = 0, step: int = 1) -> dict[str, str]:
    return {
        "SLURM_ARRAY_TASK_ID": str(number),
        "SLURM_ARRAY_TASK_COUNT": str(count),
        "SLURM_ARRAY_TASK_MIN": str(first),
        "SLURM_ARRAY_TASK_STEP": str(step),
    }


@pytest.mark.parametrize(
    ("environ", "part"),
    [
        (slurm(2, count=3), "2/3"),
        (slurm(1, count=16, first=1), "0/16"),
        (slurm(16, count=16, first=1), "15/16"),
        (slurm(9, count=3, first=1, step=4), "2/3"),
        (slurm(17, count=3, first=1), "1/3"),  # --array=1,5,17: some machines begin alike
        ({"AWS_BATCH_JOB_ARRAY_INDEX": "3", "AWS_BATCH_JOB_ARRAY_SIZE": "4"}, "3/4"),
        ({"SKYPILOT_NODE_RANK": "0", "SKYPILOT_NUM_NODES": "2"}, "0/2"),
    ],
)
def test_an_array_job_says_which_part(environ: dict[str, str], part: str) -> None:
    found = part_of_array(environ)
    assert str(found) == part and found and found.given_by in environ


@pytest.mark.parametrize(
    "environ",
    [{}, {"SLURM_ARRAY_TASK_ID": "3"}, {"AWS_BATCH_JOB_ARRAY_INDEX": "", "AWS_BATCH_JOB_ARRAY_SIZE": "4"}],
)
def test_outside_of_an_array_there_is_no_part(environ: dict[str, str]) -> None:
    assert part_of_array(environ) is None


def test_the_option_counts_before_the_array_and_a_single_machine_is_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_args("", ARGV).part is None
    for name, value in slurm(1, count=3).items():
        monkeypatch.setenv(name, value)
    assert str(parse_args("", ARGV).part) == "1/3"
    assert str(parse_args("", [*ARGV, "--part", "4/5"]).part) == "4/5"
    assert parse_args("", [*ARGV, "--part", "0/1"]).part is None
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "1")
    assert parse_args("", ARGV).part is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("3/3", "3/3: parts are numbered from 0, so the last of 3 is 2"),
        ("0/0", "'0/0' is not I/N, such as 0/16"),
        ("-1/3", "'-1/3' is not I/N"),
        ("1", "'1' is not I/N"),
        ("a/b", "'a/b' is not I/N"),
    ],
)
def test_a_part_that_there_is_not_is_refused(text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse_args("", [*ARGV, f"--part={text}"])
    assert message in capsys.readouterr().err


def test_parts_do_not_overwrite(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A machine that an array starts late would remove what the others have made."""
    with pytest.raises(SystemExit, match="2"):
        parse_args("", [*ARGV, "--part", "0/2", "--overwrite"])
    assert "--overwrite does not go with part 0/2 (from --part)" in capsys.readouterr().err
    for name, value in slurm(1, count=3).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match="2"):
        parse_args("", [*ARGV, "--overwrite"])
    assert "(from SLURM_ARRAY_TASK_ID)" in capsys.readouterr().err
    assert parse_args("", [*ARGV, "--overwrite", "--part", "0/1"]).overwrite


def tasks(count: int) -> list[ShardTask]:
    return [ShardTask("train", index, ()) for index in range(count)]


def test_each_task_is_one_part_s_own() -> None:
    everything = tasks(10)
    parts = [[task.index for task in Part(index, 3, "").own(everything)] for index in range(3)]
    assert parts == [[0, 3, 6, 9], [1, 4, 7], [2, 5, 8]]


def test_help_comes_from_the_end_of_each_following_part_and_reaches_every_task_that_is_left() -> None:
    everything = tasks(10)
    helped = Part(1, 3, "").in_order_of_help(everything, [task for task in everything if task.index != 5])
    assert [task.index for task in helped] == [1, 4, 7, 8, 2, 9, 6, 3, 0]
