"""Machines that share a conversion, on a disk and in S3: who may join, whose work may be taken over, what is left."""

import json
import os
import threading
import time
from pathlib import Path

import pytest

from convert import lock, machines
from convert.claims import Claims, SessionOverError
from convert.journal import FOLDER, Journal
from convert.lock import LOCK_NAME, LockedError, only_converter
from convert.machines import Machine, OtherPlanError, is_session_of, joined
from convert.parts import Part
from imagestream.mds.manifest import Identity, Options
from imagestream.storage.local import LocalPlace
from imagestream.storage.places import open_place
from imagestream.storage.protocol import Place

PART = Part(0, 2, "--part")
CLAIM = f"{FOLDER}/some.claim"
OPTIONS = Options(
    on_bad="fail",
    size_limit_bytes=1000,
    hashes=("xxh64",),
    compression=None,
    resize=None,
    quality=90,
    subsampling="4:2:0",
    classes=None,
    per_class=None,
)
TRAIN = Identity(listing="0" * 64, samples=7, seed=0, options=OPTIONS, tools={"format": "1", "pillow": "1"})
PLAN = {"train": TRAIN}


@pytest.fixture(params=["disk", pytest.param("s3", marks=pytest.mark.s3)])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return open_place(str(tmp_path / "out") if request.param == "disk" else request.getfixturevalue("s3_folder"))


@pytest.fixture(autouse=True)
def settle_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (lock, machines):
        monkeypatch.setattr(module, "SETTLING_S", 0.1)


def join(output: Place, plan: dict[str, Identity] = PLAN) -> None:
    with joined(output, "OUT", PART, plan):
        pass


def elsewhere(machine: Machine, beat: int) -> None:
    """Have a machine's file be one of another host, whose processes cannot be looked up."""
    content = {"host": "another", "pid": 1, "start_ticks": "1", "part": "1/2", "beat": beat}
    machine.output.write(machine._file, json.dumps(content).encode())


def test_machines_of_one_plan_share_a_lock_and_leave_nothing_once_it_is_complete(output: Place) -> None:
    with joined(output, "OUT", PART, PLAN) as one, joined(output, "OUT", PART, PLAN) as another:
        assert one.session == another.session == output.read(LOCK_NAME) and is_session_of(output, PLAN)
        assert one.name != another.name
        Journal(output, "train").begin(TRAIN)
        one.take(CLAIM)
        another.completed = True
    assert (output.sizes(FOLDER), output.sizes(f"{FOLDER}/train")) == ({}, {})


def test_what_one_machine_leaves_undone_stays_for_those_that_come(output: Place) -> None:
    join(output)
    assert list(output.sizes(FOLDER)) == ["lock"]
    session = output.read(LOCK_NAME)
    with joined(output, "OUT", PART, PLAN) as machine:
        assert machine.session == session


OTHERS = {
    "train: the source: 7 files there, 8 now": {"train": TRAIN.model_copy(update={"listing": "1" * 64, "samples": 8})},
    "train: the source: other names, classes or sizes": {"train": TRAIN.model_copy(update={"listing": "1" * 64})},
    "train: --seed: 0 there, 1 now": {"train": TRAIN.model_copy(update={"seed": 1})},
    "train: --on-bad: fail there, skip now": {
        "train": TRAIN.model_copy(update={"options": OPTIONS.model_copy(update={"on_bad": "skip"})})
    },
    "train: the version of pillow: 1 there, 2 now": {
        "train": TRAIN.model_copy(update={"tools": {"format": "1", "pillow": "2"}})
    },
    "train: the version of libheif: None there, 1 now": {
        "train": TRAIN.model_copy(update={"tools": TRAIN.tools | {"libheif": "1"}})
    },
    "the splits: train there, train, val now": {"train": TRAIN, "val": TRAIN},
}


@pytest.mark.parametrize("message", OTHERS)
def test_a_machine_with_another_plan_is_refused_and_told_what_differs(tmp_path: Path, message: str) -> None:
    output = open_place(str(tmp_path / "out"))
    with joined(output, "OUT", PART, PLAN), pytest.raises(OtherPlanError) as refused:
        join(output, OTHERS[message])
    assert f"part 0/2), and this one would make something else:\n  {message}\n" in str(refused.value)
    with joined(output, "OUT", PART, OTHERS[message]) as machine:  # once nobody of the first plan is there
        assert not is_session_of(output, PLAN) and is_session_of(output, OTHERS[message])
        machine.completed = True
    assert output.names() == []


def test_a_claim_is_one_machine_s_alone(output: Place) -> None:
    with joined(output, "OUT", PART, PLAN) as machine:
        claims = [Claims(output, f"machine.{n}".encode(), machine.session) for n in range(6)]
        taken: list[bool] = []
        threads = [threading.Thread(target=lambda each=each: taken.append(each.take(CLAIM))) for each in claims]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert sorted(taken) == [False] * 5 + [True]


def test_the_claim_of_a_machine_that_has_left_is_free_at_once(output: Place) -> None:
    with joined(output, "OUT", PART, PLAN) as machine:
        with joined(output, "OUT", PART, PLAN) as another:
            assert another.take(CLAIM)
            assert machine.free([CLAIM]) == {} and not machine.take(CLAIM)
        assert machine.free([CLAIM]) == {CLAIM: another.name.encode()}
        assert machine.take(CLAIM) and output.read(CLAIM) == machine.name.encode()
        assert not another.take(CLAIM)


def test_the_claim_of_a_killed_process_of_this_host_is_free_at_once(output: Place) -> None:
    with joined(output, "OUT", PART, PLAN) as machine, joined(output, "OUT", PART, PLAN) as killed:
        killed.take(CLAIM)
        output.write(killed._file, lock.sign_of_life(start_ticks="another's"))
        assert machine.take(CLAIM)


@pytest.mark.parametrize("content", [b"machine./../../lock", b"../secret", b"\xff", b"x"])
def test_a_claim_that_no_machine_has_written_is_free_and_leads_nowhere(
    tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, read, asked = LocalPlace(tmp_path / "out"), LocalPlace.read, list[str]()

    def noted(place: LocalPlace, name: str, offset_bytes: int = 0, size_bytes: int | None = None) -> bytes:
        asked.append(name)
        return read(place, name, offset_bytes, size_bytes)

    output.write(CLAIM, content)
    monkeypatch.setattr(LocalPlace, "read", noted)
    assert Machine(output, PART).free([CLAIM]) == {CLAIM: content}
    assert asked == [CLAIM]


def test_a_machine_elsewhere_is_gone_when_it_gives_no_sign_for_long_whatever_its_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    output = open_place(str(tmp_path / "out"))
    watcher, other = Machine(output, PART), Machine(output, PART)
    output.write(CLAIM, other.name.encode())
    for beat in range(3):
        elsewhere(other, beat)
        assert output.path
        os.utime(output.path / other._file, (0, 0) if beat else (2**32, 2**32))  # a clock that is far out
        assert watcher.free([CLAIM]) == {}
        now_s += machines.GONE_AFTER_S
        assert watcher.free([CLAIM]) == {}
    now_s += 1
    assert watcher.free([CLAIM]) == {CLAIM: other.name.encode()}
    elsewhere(other, 3)
    assert watcher.free([CLAIM]) == {}


def test_what_a_live_machine_holds_for_very_long_is_done_by_another_as_well(
    output: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    with joined(output, "OUT", PART, PLAN) as machine, joined(output, "OUT", PART, PLAN) as hanging:
        hanging.take(CLAIM)
        assert machine.free([CLAIM]) == {}
        monkeypatch.setattr(machines, "HELD_AT_MOST_S", -1)
        assert machine.free([CLAIM]) == {CLAIM: hanging.name.encode()}


def test_nobody_takes_anything_when_the_conversion_is_at_its_end(output: Place) -> None:
    with joined(output, "OUT", PART, PLAN) as machine:
        output.delete([LOCK_NAME])
        with pytest.raises(SessionOverError, match="come to its end"):
            machine.take(CLAIM)
        assert output.stat(CLAIM) is None


def test_one_converter_alone_and_several_machines_keep_out_of_each_other_s_way(output: Place) -> None:
    refused = pytest.raises(LockedError, match=r"^process \d+ on \S+ is converting to OUT")
    with joined(output, "OUT", PART, PLAN), refused, only_converter(output, "OUT"):
        pass
    with only_converter(output, "OUT"), refused:  # of the machine there is a lock, and no sign of life
        join(output)
    assert output.sizes(FOLDER) == {}
    output.write(LOCK_NAME, lock.sign_of_life(start_ticks="another's"))
    with joined(output, "OUT", PART, PLAN) as machine:
        assert output.read(LOCK_NAME) == machine.session


def test_what_came_too_late_is_swept_and_a_plan_with_its_records_is_not(output: Place) -> None:
    journal = Journal(output, "train")
    output.write(journal.claim_name(3), b"machine.late")
    machines.sweep(output, ["train"])
    assert output.sizes(f"{FOLDER}/train") == {} and (output.path is None or output.names() == [])
    journal.begin(TRAIN)
    output.write(journal.claim_name(3), b"machine.late")
    journal.sweep()
    assert list(output.sizes(f"{FOLDER}/train")) == ["00003.claim", "plan.json"]
    found = journal.found()
    assert found and (found.made, found.claimed) == (frozenset(), frozenset({3}))
    journal.end()
    assert journal.found() is None and output.sizes(f"{FOLDER}/train") == {}


def test_the_plan_is_gone_before_the_records_are_listed_to_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a machine that notes a shard late and still finds the plan knows that its record will be removed too."""
    output = LocalPlace(tmp_path)
    journal, plans, sizes = Journal(output, "train"), list[bool](), LocalPlace.sizes
    journal.begin(TRAIN)
    output.write(journal.claim_name(3), b"machine.x")

    def listed(place: LocalPlace, folder: str = "") -> dict[str, int]:
        plans.append(journal.is_open())
        return sizes(place, folder)

    monkeypatch.setattr(LocalPlace, "sizes", listed)
    journal.end()
    assert plans == [False] and output.path and not (output.path / FOLDER / "train").exists()
