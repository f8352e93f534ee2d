"""What Streaming 0.13 does by itself; where one of these fails, a guard of ours may go."""

import json
import shutil
from pathlib import Path

import pytest

from tests.fault_proxy import FaultProxy
from tests.faults.conftest import Trial, on_shards
from tests.faults.test_cache import flip_a_byte
from tests.processes import run, start

pytestmark = [pytest.mark.s3, pytest.mark.slow]


def upstream(argv: list[str], log: Path, env: dict[str, str] | None = None) -> str:
    code, output = run(argv, log, program="tests.upstream_epoch", env=env)
    assert code == 0, output
    return output


def test_upstream_ends_an_epoch_early_when_the_server_answers_500(
    trial: Trial, proxy: FaultProxy, shard_names: list[str], tmp_path: Path
) -> None:
    # With one shard alone: if both threads of an epoch have one to fail at, its end waits for both without end.
    proxy.choose = on_shards("500", name=shard_names[0])
    env = trial.server.env_through(proxy.endpoint_url)
    output = upstream([f"{trial.remote}/train", str(tmp_path / "local")], tmp_path / "log", env)
    assert "0 of 100 samples, no exception" in output


def test_upstream_reads_a_damaged_shard_that_it_finds(shards: Path, shard_names: list[str], tmp_path: Path) -> None:
    local = tmp_path / "local"
    shutil.copytree(shards / "train", local)
    whole = upstream([str(shards / "train"), str(local)], tmp_path / "whole")
    flip_a_byte(local / shard_names[1])
    damaged = upstream([str(shards / "train"), str(local)], tmp_path / "damaged")
    assert "100 of 100 samples, no exception" in whole and "100 of 100 samples, no exception" in damaged
    assert whole.rpartition("sha256")[2] != damaged.rpartition("sha256")[2]


def test_upstream_reads_another_datasets_cache(shards: Path, tmp_path: Path) -> None:
    local = tmp_path / "local"
    shutil.copytree(shards / "val", local)
    output = upstream([str(shards / "train"), str(local)], tmp_path / "log")
    assert "23 of 23 samples, no exception" in output


def test_upstream_deletes_the_only_copy_under_a_cache_limit(shards: Path, tmp_path: Path) -> None:
    local = tmp_path / "only"
    shutil.copytree(shards / "train", local)
    before = len(list(local.glob("*.mds")))
    # One shard is missing, so that room is made for it.
    index = json.loads((local / "index.json").read_text())
    (local / index["shards"][-1]["raw_data"]["basename"]).unlink()
    largest = max(shard["raw_data"]["bytes"] for shard in index["shards"])
    argv = ["none", str(local), f"cache_limit={4 * largest + 10000}"]
    reading = start(argv, tmp_path / "log", program="tests.upstream_epoch")
    # It may also wait for the shards for ever that it has deleted.
    reading.kill_when(lambda: len(list(local.glob("*.mds"))) < before - 1, seconds=60)
