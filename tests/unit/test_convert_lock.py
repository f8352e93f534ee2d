"""One converter at a time for an output, on a disk and in S3, and nothing is left of its lock."""

import json
import logging
from pathlib import Path

import pytest

from convert import lock
from convert.journal import FOLDER
from convert.lock import LOCK_NAME, LockedError, only_converter
from imagestream.storage.local import PART
from imagestream.storage.places import open_place
from imagestream.storage.protocol import Place


@pytest.fixture(params=["disk", pytest.param("s3", marks=pytest.mark.s3)])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return open_place(str(tmp_path / "out") if request.param == "disk" else request.getfixturevalue("s3_folder"))


def test_a_second_converter_is_refused_and_told_of_the_first(output: Place) -> None:
    with (
        only_converter(output, "OUT"),
        pytest.raises(LockedError, match=r"^process \d+ on \S+ is converting to OUT \(sign of life \d+ s ago\)"),
        only_converter(output, "OUT"),
    ):
        pass
    assert output.sizes(FOLDER) == {}


def test_a_dead_one_s_lock_is_taken_over_and_what_killed_ones_left_goes_with_it(
    output: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lock, "SETTLING_S", 0.1)
    output.write(LOCK_NAME, json.dumps(lock._identity() | {"start_ticks": "another's"}).encode())
    output.write(f"{FOLDER}/{PART}01234567-lock", b"{}")  # of one that was killed while it asked for the lock
    with caplog.at_level(logging.WARNING), only_converter(output, "OUT"):
        assert json.loads(output.read(LOCK_NAME)) == lock._identity() | {
            "since": json.loads(output.read(LOCK_NAME))["since"]
        }
    assert "took over the lock" in caplog.text
    assert output.sizes(FOLDER) == {}


@pytest.mark.parametrize("stale_after_s", [30, -1])
def test_another_host_s_lock_is_stale_after_a_while_by_the_clock_of_the_output(
    output: Place, monkeypatch: pytest.MonkeyPatch, stale_after_s: int
) -> None:
    monkeypatch.setattr(lock, "SETTLING_S", 0.1)
    monkeypatch.setattr(lock, "STALE_AFTER_S", stale_after_s)
    output.write(LOCK_NAME, json.dumps(lock._identity() | {"host": "another", "boot_id": "another"}).encode())
    if stale_after_s > 0:
        with pytest.raises(LockedError, match="on another is converting"), only_converter(output, "OUT"):
            pass
        assert output.sizes(FOLDER).keys() == {"lock"}
    else:
        with only_converter(output, "OUT"):
            pass
        assert output.sizes(FOLDER) == {}
