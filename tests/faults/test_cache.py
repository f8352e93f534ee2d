"""What lies in the cache is not trusted, not lost, and not fought over."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from imagestream.data.downloads import PART_AGE_S
from tests.faults.conftest import Trial
from tests.integration.problem import command
from tests.processes import run, start

pytestmark = [pytest.mark.s3, pytest.mark.slow]
Calm = Callable[[int], dict[str, Any]]


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-100] ^= 1  # in the last image
    path.write_bytes(data)


def test_damaged_shards_that_an_earlier_run_left_are_mended_before_they_are_read(
    trial: Trial, shards: Path, shard_names: list[str], calm: Calm
) -> None:
    shutil.copytree(shards, trial.cache)
    flip_a_byte(trial.cache / "train" / shard_names[1])
    cut = trial.cache / "train" / shard_names[4]
    cut.write_bytes(cut.read_bytes()[:-100])
    old, new = (trial.cache / "train" / f".{shard_names[0]}.{age}.part" for age in ("old", "new"))
    for part in (old, new):
        part.write_bytes(b"x")
    os.utime(old, (time.time() - PART_AGE_S - 10,) * 2)
    done = trial.run(trial.server.endpoint_url, "data.num_workers=2")
    assert done.code == 0, done.output
    assert done.record == calm(1)
    told = [line for line in done.output.splitlines() if ", found in the cache, is damaged: " in line]
    assert len(told) == 2
    assert any(f"{shard_names[1]}, found in the cache, is damaged: its xxh64 is " in line for line in told)
    assert any(f"{shard_names[4]}, found in the cache, is damaged: it has " in line for line in told)
    for name in shard_names:
        assert (trial.cache / "train" / name).read_bytes() == (shards / "train" / name).read_bytes()
    assert new.exists() and not old.exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_shard_that_is_read_in_place_is_refused_and_kept(
    shards: Path, shard_names: list[str], tmp_path: Path, workers: int
) -> None:
    mine = tmp_path / "mds"
    shutil.copytree(shards, mine)
    flip_a_byte(mine / "train" / shard_names[2])
    before = (mine / "train" / shard_names[2]).read_bytes()
    argv = command(mine, tmp_path / "run", f"data.num_workers={workers}")
    code, output = run(argv, tmp_path / "log")
    assert code == 1
    assert f"{mine}/train/{shard_names[2]} is damaged: its xxh64 is " in output
    assert (mine / "train" / shard_names[2]).read_bytes() == before


def test_the_cache_of_another_dataset_is_refused(trial: Trial, shards: Path) -> None:
    shutil.copytree(shards / "val", trial.cache / "train")
    done = trial.run(trial.server.endpoint_url)
    assert done.code == 2
    assert f"{trial.cache}/train/index.json, in the cache, is another dataset's; give another folder" in done.output


def test_two_jobs_share_a_cache_and_both_end_right(trial: Trial, calm: Calm, tmp_path: Path) -> None:
    argv = [trial.argv("data.num_workers=1") for _ in range(2)]
    runs = [start(words, tmp_path / f"both{n}", env=trial.server.env) for n, words in enumerate(argv)]
    outcomes = []
    for number, started in enumerate(runs):
        trial._count = number + 1
        outcomes.append(trial.outcome(started, started.wait(), 0.0))
    for done, started in zip(outcomes, runs, strict=True):
        assert done.code == 0, started.output()
        assert done.record == calm(1)
    assert list(trial.cache.rglob("*.part")) == []


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.exhaustive)])
def test_a_limited_cache_stays_below_its_limit_and_changes_nothing(trial: Trial, shards: Path, workers: int) -> None:
    shutil.copytree(shards, trial.cache)  # more than is allowed
    sizes = [path.stat().st_size for path in (shards / "train").glob("*.mds")]
    limit = sum(sizes) * 2 // 3
    done = trial.run(
        trial.server.endpoint_url,
        f"data.num_workers={workers}",
        f"data.cache_limit_gb={limit / 1e9}",
        "data.shuffle_block_size=10",
    )
    assert done.code == 0, done.output
    left = sum(path.stat().st_size for path in (trial.cache / "train").iterdir())
    again = trial.run(trial.server.endpoint_url, "data.shuffle_block_size=10")
    assert done.record == again.record
    assert left <= limit < sum(sizes)


def test_a_limit_that_would_delete_the_only_copy_or_is_too_small_is_refused(
    trial: Trial, shards: Path, tmp_path: Path
) -> None:
    code, output = run(command(shards, tmp_path / "run", "data.cache_limit_gb=1.0"), tmp_path / "log")
    assert code == 2
    assert "must be null when data.remote is null: data.local holds the only copy of the shards" in output
    code, output = run(command(shards, tmp_path / "run", f"data.remote={shards}"), tmp_path / "same")
    assert code == 2
    said = f"{shards}: the cache is the same folder; to read the shards in place leave out cache= (in YAML: cache= is "
    assert f"{said}data.local, and there is none where data.remote is null)" in output
    done = trial.run(trial.server.endpoint_url, "data.num_workers=4", "data.cache_limit_gb=0.0001")
    assert done.code == 2
    assert "cache_limit_gb: 0.0001 is less than the 0.000" in done.output
    assert "GB that this run reads from at a time; raise it (the split has 0.000" in done.output
