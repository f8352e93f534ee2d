"""Faults that do not pass: the run ends within its stated time, on every rank, with the cause in its last words."""

import time

import pytest

from tests.fault_proxy import FaultProxy
from tests.faults.conftest import Trial, on_shards

pytestmark = [pytest.mark.s3, pytest.mark.slow]
exhaustive = pytest.mark.exhaustive
STARTING_S = 40  # for the process, on a slow machine, before the first download
WORLDS = [
    (0, 1),
    (2, 1),
    pytest.param(0, 2, marks=exhaustive),
    pytest.param(2, 2, marks=exhaustive),
]  # workers, ranks


@pytest.mark.parametrize(("workers", "ranks"), WORLDS)
def test_a_server_that_stays_away_ends_the_run_when_patience_does(
    trial: Trial, proxy: FaultProxy, workers: int, ranks: int
) -> None:
    proxy.choose = on_shards("500")
    done = trial.run(proxy.endpoint_url, f"data.num_workers={workers}", "data.download_patience_s=6", ranks=ranks)
    assert done.code == 1
    assert 6 <= done.seconds < STARTING_S + 6
    assert "ShortEpochError: rank " in done.output
    assert ".mds could not be fetched in " in done.output and "(download_patience_s: 6)" in done.output
    assert "An error occurred (InternalError)" in done.output


def test_one_rank_that_fails_ends_the_other(trial: Trial, proxy: FaultProxy) -> None:
    """Without a launcher, which would end it at once."""
    proxy.choose = on_shards("500")
    started = trial.start(proxy.endpoint_url, "data.download_patience_s=3", ranks=2)
    until = time.monotonic() + STARTING_S + 30
    while any(rank.is_alive() for rank in started.ranks) and time.monotonic() < until:
        time.sleep(0.1)
    codes = [rank.exitcode for rank in started.ranks]
    started.kill()
    assert codes == [1, 1]


@pytest.mark.parametrize(
    ("fault", "cause"), [("403", "(AccessDenied)"), pytest.param("404", "(NoSuchKey)", marks=exhaustive)]
)
def test_what_no_patience_mends_ends_the_run_at_once(trial: Trial, proxy: FaultProxy, fault: str, cause: str) -> None:
    proxy.choose = on_shards(fault)
    done = trial.run(proxy.endpoint_url, "data.num_workers=2")
    assert done.code == 1
    assert done.seconds < STARTING_S
    assert ".mds cannot be fetched: " in done.output and cause in done.output
    assert sum(bool(fault) for _, fault in proxy.seen) <= 8  # one for each process and thread, not many


@pytest.mark.parametrize("fault", ["flip", pytest.param("truncate", marks=exhaustive)])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_that_stays_damaged_is_refused_and_named_and_not_kept(
    trial: Trial, proxy: FaultProxy, shard_names: list[str], workers: int, fault: str
) -> None:
    name = shard_names[2]
    proxy.choose = on_shards(fault, name=name)
    done = trial.run(proxy.endpoint_url, f"data.num_workers={workers}", "data.download_patience_s=3")
    assert done.code == 1
    assert done.seconds < STARTING_S + 3
    if fault == "flip":
        assert f"/train/{name} is damaged: its xxh64 is " in done.output
        assert ", index.json says " in done.output and ", in each of 3 downloads; copy or convert" in done.output
    else:
        assert f"/train/{name} could not be fetched in " in done.output and "IncompleteRead" in done.output
    assert "ShortEpochError: rank 0, worker " in done.output
    assert not (trial.cache / "train" / name).exists()
    assert list(trial.cache.rglob("*.part")) == []


def test_an_index_that_is_damaged_on_its_way_is_refused(trial: Trial, proxy: FaultProxy) -> None:
    proxy.choose = lambda request: "flip" if request.path.endswith("/train/index.json") else ""
    done = trial.run(proxy.endpoint_url)
    assert done.code == 2
    assert "index.json is not " in done.output and "Traceback" not in done.output
