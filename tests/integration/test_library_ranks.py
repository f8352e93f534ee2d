"""The library's loader on several ranks: the same global batches, however a loop is started, killed and resumed."""

import json
import signal
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY
from tests.processes import run

GLOBAL_BATCH, STEPS, EPOCHS = 12, 8, 2  # 100 samples


def loop(out: Path, data: Path, ranks: int, *, batch: int | None = None, workers: int = 1, **more: Any) -> int:
    """Run tests/library_loop.py to its end; return its exit status."""
    out.mkdir(exist_ok=True)
    settings = {"out": str(out), "data": str(data), "ranks": ranks, "workers": workers, "epochs": EPOCHS}
    settings |= {"batch": batch or GLOBAL_BATCH // ranks, **more}
    code, output = run([json.dumps(settings)], out / "output", program="tests.library_loop")
    (out / "log").write_text(output)
    return code


def global_batches(*folders: Path) -> tuple[list[list[str]], set[str | None]]:
    """Each step's samples over all ranks, as the last of these loops had them, and its ranks' ledgers."""
    steps: dict[int, list[str]] = {}
    for folder in folders:
        ledgers: set[str | None] = set()
        mine: dict[int, list[str]] = defaultdict(list)
        for row in (json.loads(line) for path in folder.glob("*.jsonl") for line in path.read_text().splitlines()):
            if "ledger" in row:
                ledgers.add(row["ledger"])
            else:
                mine[row["step"]] += row["samples"]
        steps |= mine
    assert sorted(steps) == list(range(EPOCHS * STEPS))
    return [sorted(steps[step]) for step in sorted(steps)], ledgers


@pytest.fixture(scope="module")
def undisturbed(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[list[str]], set[str | None]]:
    out = tmp_path_factory.mktemp("loop") / "one"
    assert loop(out, shards, 1, workers=0) == 0, (out / "log").read_text()
    return global_batches(out)


@pytest.mark.parametrize(
    ("before", "after", "reads_ledger"),
    [
        (2, 4, True),
        pytest.param(3, 1, False, marks=pytest.mark.exhaustive),
        pytest.param(2, 2, True, marks=pytest.mark.exhaustive),
    ],
)
def test_a_loop_that_is_killed_goes_on_with_the_same_global_batches_on_other_ranks(
    shards: Path,
    tmp_path: Path,
    undisturbed: tuple[list[list[str]], set[str | None]],
    before: int,
    after: int,
    reads_ledger: bool,
) -> None:
    """By torch.distributed alone, as after torch.multiprocessing.spawn; the state is what rank 0 saved by itself."""
    first, second = tmp_path / "first", tmp_path / "second"
    more: dict[str, Any] = {"cache": str(tmp_path / "cache"), "reads_ledger": reads_ledger}
    code = loop(first, shards, before, kill_at=STEPS + 3, **more)
    assert code == -signal.SIGKILL, (first / "log").read_text()
    second.mkdir()
    (first / "state.json").rename(second / "state.json")
    assert loop(second, shards, after, workers=0, **more) == 0, (second / "log").read_text()
    batches, ledgers = global_batches(first, second)
    assert batches == undisturbed[0]
    assert ledgers == (undisturbed[1] if reads_ledger else {None})


def test_an_evaluation_on_three_ranks_counts_each_sample_once(shards: Path, tmp_path: Path) -> None:
    assert loop(tmp_path, shards, 3, batch=3, split="val", epochs=1) == 0, (tmp_path / "log").read_text()
    rows = [list(map(json.loads, path.read_text().splitlines())) for path in sorted(tmp_path.glob("*.jsonl"))]
    samples = [[sample for row in mine for sample in row.get("samples", ())] for mine in rows]
    assert [len(mine) for mine in samples] == [8, 8, 8] and {len(mine) for mine in rows} == {4}  # 3, 3, 2; the ledger
    real = [sample for mine in samples for sample in mine if not sample.startswith("-100 ")]
    assert len(real) == 23 and sum(sample.startswith("-100 ") for mine in samples for sample in mine) == 1


def test_processes_without_torch_distributed_are_told_who_they_are(
    shards: Path, tmp_path: Path, undisturbed: tuple[list[list[str]], set[str | None]]
) -> None:
    """They share a cache, and nothing else."""
    code = loop(tmp_path, shards, 2, alone=True, cache=str(tmp_path / "cache"))
    assert code == 0, (tmp_path / "log").read_text()
    assert global_batches(tmp_path)[0] == undisturbed[0]


def test_ranks_that_construct_different_loaders_are_refused(shards: Path, tmp_path: Path) -> None:
    assert loop(tmp_path, shards, 2, seeds=[3, 4]) == 1
    assert "ValueError: seed: 3 on rank 0, and 4 on rank 1" in (tmp_path / "log").read_text()


def test_a_loop_that_fails_ends_at_once_and_leaves_no_worker(shards: Path) -> None:
    """Workers ignore SIGTERM, which multiprocessing sends at the end of a program, and then waits for them."""
    lines = [
        "import imagestream, multiprocessing",
        f"data, crop = {str(shards)!r}, imagestream.RandomResizedCrop(32)",
        "for _ in imagestream.Loader(data, batch_size=8, crop=crop, num_workers=2):",
        "    print(*(child.pid for child in multiprocessing.active_children()), flush=True)",
        "    raise RuntimeError('of the loop')",
    ]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], cwd=REPOSITORY, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1 and done.stderr.endswith("RuntimeError: of the loop\n"), done.stderr
    workers = list(map(int, done.stdout.split()))
    assert len(workers) == 2 and not any(Path("/proc", str(worker)).exists() for worker in workers)
