"""Killed right before or after any call that changes its save folder, a run ends as one that nothing disturbed."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagestream.storage.local import LocalPlace
from tests.integration.problem import command, metrics_of, record_of, what_must_match
from tests.processes import kill_library, run, start
from train.compare import compare
from train.resume.checkpoints import list_checkpoints

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(kill_library() is None, reason="no C compiler: kill_at.c is not built"),
]

SHORT = ("max_duration=2ep", "checkpoint.save_interval=1ep", "checkpoint.keep=1", "loggers.file=false",
         "algorithms=[{name: ema, half_life: 4ba, update_interval: 2ba}]")  # fmt: skip
MOST_CALLS = 60
"""More than a run makes; a number beyond its calls is skipped."""
IN_EVERY_RUN = [("rename ep1-ba6.pt", "before"), ("rename ep2-ba12.pt", "after")]
"""Before the first checkpoint gets its name, and after the last one has."""


@pytest.fixture(scope="module")
def undisturbed(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[str]]]:
    """A run's save folder, and the calls that it made on it, in order."""
    folder, trace = tmp_path_factory.mktemp("run") / "save", tmp_path_factory.mktemp("trace") / "calls"
    code, output = run(
        command(shards, folder, *SHORT), folder.parent / "log", env={"KILL_TRACE": str(trace), "KILL_PATH": str(folder)}
    )
    assert code == 0, output
    calls = [line.replace(f"{folder}/", "").replace(str(folder), ".") for line in trace.read_text().splitlines()]
    yield folder, [re.sub(r"\.part-[0-9a-f]{8}-", ".part-", call) for call in calls]


def test_a_checkpoint_is_on_the_disk_before_it_gets_its_name_and_the_older_one_is_deleted_last(
    undisturbed: tuple[Path, list[str]],
) -> None:
    _, calls = undisturbed
    written = calls.index("rename ep2-ba12.pt")
    assert calls[written - 1] == "fsync .part-ep2-ba12.pt"
    assert calls[written + 1] == "fsync ."
    assert calls.index("unlink ep1-ba6.pt") > written + 1


@pytest.mark.parametrize(
    ("call", "when"),
    [
        *IN_EVERY_RUN,
        *(
            pytest.param(number, when, marks=pytest.mark.exhaustive)
            for number in range(1, MOST_CALLS + 1)
            for when in ("before", "after")
        ),
    ],
)
def test_killed_at_any_call_on_its_save_folder_a_run_ends_with_identical_weights(
    shards: Path, undisturbed: tuple[Path, list[str]], tmp_path: Path, call: int | str, when: str
) -> None:
    folder, calls = undisturbed
    number = call if isinstance(call, int) else calls.index(call) + 1
    if number > len(calls):
        pytest.skip(f"the run makes {len(calls)} calls")
    print(f"killed {when} call {number}: {calls[number - 1]}")
    save = tmp_path / "save"
    argv = command(shards, save, *SHORT)
    started = start(argv, tmp_path / "killed", env={"KILL_AT": f"{number}:{when}", "KILL_PATH": str(save)})
    assert started.wait(120) == -9, started.output()
    code, output = run(argv, tmp_path / "again")
    assert code == 0, output
    assert what_must_match(record_of(save)) == what_must_match(record_of(folder))
    assert metrics_of(save) == metrics_of(folder)
    assert compare(str(folder), str(save))[-1].startswith("the same, up to ep2-ba12.pt")
    assert sorted(path.name for path in save.iterdir()) == sorted(path.name for path in folder.iterdir())
    assert list_checkpoints(LocalPlace(save)) == ["ep2-ba12.pt"]
