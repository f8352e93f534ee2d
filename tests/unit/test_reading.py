"""A record that is damaged is named; one that is not named can be shown."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from imagestream.storage.errors import PlaceError
from imagestream.storage.local import LocalPlace
from tests.records import a_record
from train import runs
from train.record.page import run_page, runs_page
from train.record.reading import RunError, StoredRun, find_runs, stored_run
from train.record.settings import differing
from train.record.summary import state_lines
from train.record.table import as_text, figures_of, sorted_runs

MISSING = object()
WRONG: tuple[Any, ...] = (MISSING, None, "text", -1, 0, 1e300, float("nan"), True, [], {}, [None], {"a": None})


def small() -> dict[str, Any]:
    record = a_record()
    record["curve"], record["changes"] = record["curve"][-1:], [{"batch": 1, "key": "seed", "before": 1, "after": 2}]
    return record


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in items:
        yield (*path, key)
        yield from places(below, (*path, key))


def show(found: StoredRun) -> None:
    """Everything that commands make of a record."""
    runs = sorted_runs([found, StoredRun("another", a_record())], "train_s")
    settings = differing([run.record["config"] for run in runs])
    as_text(runs, settings, width=100)
    runs_page(runs, settings)
    run_page(found.record, {})
    state_lines(found.record)
    assert list(figures_of(found))


SHOWN = [place for place in places(small()) if place[0] != "config" or place[1:2] in (("run_name",), ("model",))]
"""All but the settings, which may be anything, and are shown as they are."""


def named(place: tuple[Any, ...]) -> str:
    return ".".join(map(str, place))


def shown_or_named(place: tuple[Any, ...], wrong: Any) -> None:
    record = copy.deepcopy(small())
    at: Any = record
    for key in place[:-1]:
        at = at[key]
    if wrong is MISSING:
        del at[place[-1]]
    else:
        at[place[-1]] = wrong
    found = stored_run("folder", json.dumps(record).encode())
    if isinstance(found, StoredRun):
        show(found)
    else:
        assert str(found).startswith("folder/run.json is not a run's record: ")


@pytest.mark.parametrize("at", range(len(SHOWN)), ids=lambda at: named(SHOWN[at]))
def test_what_is_wrong_anywhere_is_named_or_can_be_shown(at: int) -> None:
    """Each place with one of the wrong values; the test below takes all of them."""
    shown_or_named(SHOWN[at], WRONG[at % len(WRONG)])


@pytest.mark.exhaustive
@pytest.mark.parametrize("place", SHOWN, ids=named)
def test_whatever_is_wrong_anywhere_is_named_or_can_be_shown(place: tuple[Any, ...]) -> None:
    for wrong in WRONG:
        shown_or_named(place, wrong)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"3", b"null", b"\xff\xfe", b'{"status": "running"}'])
def test_what_is_no_record_at_all_is_named(data: bytes) -> None:
    found = stored_run("folder", data)
    assert isinstance(found, RunError) and str(found).startswith("folder/run.json is not ")


def test_a_run_that_may_not_be_read_hides_none_of_those_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps(small()))
    whole = LocalPlace.read

    def read(self: LocalPlace, name: str, *more: Any, **named: Any) -> bytes:
        if name.startswith("b/"):  # root may read everything
            raise PlaceError(f"{self.path / name} cannot be read: Permission denied")
        return whole(self, name, *more, **named)

    monkeypatch.setattr(LocalPlace, "read", read)
    one, error, other = find_runs(str(tmp_path))
    assert isinstance(one, StoredRun) and isinstance(other, StoredRun)
    assert [one.folder, other.folder] == [f"{tmp_path}/a", f"{tmp_path}/c"]
    assert str(error) == f"{tmp_path}/b: {tmp_path}/b/run.json cannot be read: Permission denied"
    assert runs.main([str(tmp_path)]) == 1
