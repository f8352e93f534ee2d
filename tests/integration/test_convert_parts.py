"""Several machines convert together, each a real process: whatever befalls them, the bytes are those of one machine."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from convert import together
from convert.arguments import parse_args
from convert.conversion import publish
from convert.imagenet_to_mds import run as run_here
from convert.journal import Journal
from convert.looking import look
from convert.machines import GONE_AFTER_S, Machine
from convert.sources import open_source
from convert.state import Conversion
from imagestream.mds.manifest import Identity
from imagestream.storage.errors import PlaceError
from imagestream.storage.local import LocalPlace
from tests.integration.converter import (
    ROOT,
    SMALL_SHARDS,
    bucket_tree,
    convert,
    listing,
    run,
    save_large_source,
    start,
    tree,
    wait_for_end_of_group,
    wait_for_first_shard,
)
from tests.s3_server import S3Server

MACHINES = 3
SECONDS = 120


@dataclass
class Output:
    """A folder or a prefix of a bucket, and what a converter needs to reach it."""

    url: str
    env: dict[str, str]
    files: Callable[[], dict[str, bytes]]

    def start(self, source: Path, part: int, *more: object) -> "subprocess.Popen[str]":
        return start(*self.args(source, part), *more, env=self.env, start_new_session=True)

    def run(self, source: Path, *more: object) -> "subprocess.CompletedProcess[str]":
        return run("--source", source, "--out", self.url, "--workers", 1, *SMALL_SHARDS, *more, env=self.env)

    def args(self, source: Path, part: int) -> list[object]:
        return [*("--source", source, "--out", self.url, "--workers", 1, *SMALL_SHARDS), "--part", f"{part}/{MACHINES}"]

    def part(self, source: Path, part: int, *more: object) -> "subprocess.CompletedProcess[str]":
        return self.run(source, "--part", f"{part}/{MACHINES}", *more)


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """One image under 1,000 names, which are 200 shards."""
    return save_large_source(tmp_path / "many", 1000)


@pytest.fixture(scope="module")
def converted_many(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files that one machine makes of `many`."""
    folder = tmp_path_factory.mktemp("converted")
    convert(save_large_source(folder / "many", 1000), folder / "out")
    return tree(folder / "out")


def local(folder: Path) -> Output:
    return Output(str(folder), {}, lambda: tree(folder))


def in_bucket(server: S3Server) -> Output:
    prefix = f"parts-{uuid.uuid4().hex}"
    return Output(f"s3://{server.bucket}/{prefix}", server.env, lambda: bucket_tree(server, prefix))


@pytest.fixture(params=["disk", pytest.param("s3", marks=pytest.mark.s3)])
def new_output(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Output]:
    if request.param == "disk":
        return lambda: local(tmp_path / uuid.uuid4().hex)
    server = request.getfixturevalue("s3_server")
    return lambda: in_bucket(server)


def kill(process: "subprocess.Popen[str]") -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended by itself
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    wait_for_end_of_group(process.pid)


def wait_for(processes: "list[subprocess.Popen[str]]") -> list[str]:
    """What each has printed, once all have come to their end as they should."""
    said = []
    for process in processes:
        stdout, stderr = process.communicate(timeout=SECONDS)
        assert process.returncode == 0 and "Traceback" not in stderr, stdout + stderr
        said.append(stdout + stderr)
    return said


def kill_at_random(source: Path, new_output: Callable[[], Output], expected: dict[str, bytes], kills: int) -> None:
    """Kill one of the machines again and again, and start it anew; once all are done, begin the whole anew."""
    seed = random.randrange(2**32)
    print("seed of the moments:", seed)
    rng, output, killed, whole = random.Random(seed), new_output(), 0, 0
    machines = [output.start(source, part) for part in range(MACHINES)]
    while killed < kills:
        time.sleep(rng.uniform(0.0, 4.0))  # to start takes a second or two
        part = rng.randrange(MACHINES)
        if machines[part].poll() is None:
            kill(machines[part])
            machines[part] = output.start(source, part)
            killed += 1
        elif all(machine.poll() is not None for machine in machines):
            wait_for(machines)
            assert output.files() == expected
            output, whole = new_output(), whole + 1
            machines = [output.start(source, part) for part in range(MACHINES)]
    wait_for(machines)
    assert output.files() == expected
    print(f"{killed} kills in {whole + 1} conversions")


def test_any_of_three_machines_killed_at_random_moments(
    many: Path, new_output: Callable[[], Output], converted_many: dict[str, bytes]
) -> None:
    kill_at_random(many, new_output, converted_many, 3)


@pytest.mark.exhaustive
def test_any_of_three_machines_killed_at_twenty_random_moments(
    many: Path, new_output: Callable[[], Output], converted_many: dict[str, bytes]
) -> None:
    kill_at_random(many, new_output, converted_many, 20)


def is_at_a_shard(output: Output) -> bool:
    """Whether a machine has taken a shard and not made it yet."""
    made, taken = (
        {name.removesuffix(ending) for name in output.files() if name.startswith(".convert/train") and ending in name}
        for ending in (".json", ".claim")
    )
    return bool(taken - made)


@pytest.mark.exhaustive
def test_a_machine_that_is_suspended_is_done_without_and_changes_nothing_when_it_wakes(
    many: Path, tmp_path: Path, new_output: Callable[[], Output], converted_many: dict[str, bytes]
) -> None:
    """In a container of its own: that its process is still there does not show elsewhere."""
    if os.geteuid() != 0:
        pytest.skip("only root can give a process a namespace of its own")
    output = new_output()
    command = [sys.executable, "convert/imagenet_to_mds.py", *map(str, output.args(many, 0))]
    suspended = subprocess.Popen(
        [
            "unshare",
            "--uts",
            "--pid",
            "--fork",
            "--mount-proc",
            "bash",
            "-c",
            'hostname suspended; "$@"',
            "bash",
            *command,
        ],
        cwd=ROOT,
        env=os.environ | output.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + SECONDS
    while not is_at_a_shard(output):
        os.killpg(suspended.pid, signal.SIGCONT)
        time.sleep(0.1)
        assert suspended.poll() is None and time.monotonic() < deadline
        os.killpg(suspended.pid, signal.SIGSTOP)
    others = [output.start(many, part) for part in (1, 2)]
    for other in others:
        _, stderr = other.communicate(timeout=2 * GONE_AFTER_S + SECONDS)
        assert other.returncode == 0, stderr
    assert output.files() == converted_many
    os.killpg(suspended.pid, signal.SIGCONT)
    (said,) = wait_for([suspended])
    assert "nothing left to do" in said
    assert output.files() == converted_many


def test_each_does_its_part_one_completes_and_a_late_one_changes_nothing(
    source: Path, converted: Path, tmp_path: Path
) -> None:
    output = local(tmp_path / "out")
    said = wait_for([output.start(source, part) for part in range(MACHINES)])
    assert output.files() == tree(converted)
    assert sum("this machine completed the dataset" in text for text in said) == 1
    assert sum(f"nothing left to do, {output.url} is complete" in text for text in said) == MACHINES - 1
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    shutil.rmtree(source / "val/n01")  # which it does not see, since it does not list the images
    late = output.part(source, 2)
    assert late.returncode == 0 and f"part 2/3: nothing left to do, {output.url} is complete" in late.stdout
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before


def test_a_split_that_is_completed_while_a_machine_looks_is_complete(
    source: Path, converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, identity = tmp_path / "out", Journal.identity

    def meanwhile(journal: Journal) -> Identity | None:
        if not out.exists():
            shutil.copytree(converted, out)
        return identity(journal)

    monkeypatch.setattr(Journal, "identity", meanwhile)
    args = parse_args("", list(map(str, local(out).args(source, 0))))
    conversion = look(args, open_source(str(source)), ["train", "val"], LocalPlace(out))
    assert [split.complete for split in conversion.splits] == [True, True]


def test_one_of_many_machines_does_the_others_parts_too(
    source: Path, converted: Path, new_output: Callable[[], Output]
) -> None:
    output = new_output()
    done = output.part(source, 1)
    assert done.returncode == 0 and "part 1/3: made 9 shards of 52 images" in done.stderr, done.stderr
    assert output.files() == tree(converted)


def test_an_array_job_says_the_part_and_that_is_printed(source: Path, converted: Path, tmp_path: Path) -> None:
    output = local(tmp_path / "out")
    output.env = {"AWS_BATCH_JOB_ARRAY_INDEX": "1", "AWS_BATCH_JOB_ARRAY_SIZE": "2"}
    done = output.run(source)
    printed = "part 1/2 of a conversion by several machines, by AWS_BATCH_JOB_ARRAY_INDEX; --part 0/1 would be one"
    assert done.returncode == 0 and printed in done.stderr
    assert output.files() == tree(converted)
    alone = output.run(source, "--part", "0/1")
    assert alone.returncode == 0 and "part" not in alone.stdout + alone.stderr


def test_a_machine_whose_source_differs_is_refused_and_the_others_go_on(
    many: Path, converted_many: dict[str, bytes], tmp_path: Path
) -> None:
    output, other = local(tmp_path / "out"), tmp_path / "other/train/a"
    other.mkdir(parents=True)
    os.link(many / "train/a/0.JPEG", other / "0.JPEG")
    machine = output.start(many, 0)
    wait_for_first_shard(tmp_path / "out", machine)
    os.kill(machine.pid, signal.SIGSTOP)  # so that it is not done before the others have come
    refused = output.part(tmp_path / "other", 1)
    assert refused.returncode == 2 and "the source: 1,000 files there, 1 now" in refused.stderr
    refused = output.part(many, 1, "--seed", 3)
    assert refused.returncode == 2 and "--seed: 0 there, 3 now" in refused.stderr
    alone = output.run(many)
    os.kill(machine.pid, signal.SIGCONT)
    assert alone.returncode == 1 and f"process {machine.pid} on " in alone.stderr
    wait_for([machine])
    assert output.files() == converted_many


@pytest.mark.parametrize("then", ["one machine", "machines"])
def test_what_machines_have_begun_one_goes_on_with_and_the_other_way_round(
    many: Path, converted_many: dict[str, bytes], tmp_path: Path, then: str
) -> None:
    output, out = local(tmp_path / "out"), tmp_path / "out"
    if then == "machines":
        args = ("--source", many, "--out", out, "--workers", 1, *SMALL_SHARDS)
        begun = [start(*args, start_new_session=True)]
    else:
        begun = [output.start(many, part) for part in range(2)]
    wait_for_first_shard(out, begun[0])
    for process in begun:
        kill(process)
    made = len(list((out / "train").glob("shard.*")))
    done = output.part(many, 2) if then == "machines" else output.run(many)
    assert done.returncode == 0 and "took over the lock of" in done.stderr, done.stderr
    assert made and (then == "machines" or " of them written before" in done.stdout)
    assert output.files() == converted_many


def test_shards_that_are_damaged_or_gone_when_a_machine_comes_are_made_anew(
    many: Path, converted_many: dict[str, bytes], tmp_path: Path
) -> None:
    """Those of its own part are compared with their hashes, of the others' the sizes."""
    for attempt in range(10):  # two quick machines may be done before they are killed
        out = tmp_path / f"out{attempt}"
        output = local(out)
        machines = [output.start(many, part) for part in range(2)]
        records = [out / f".convert/train/{number:05}.json" for number in (0, 1)]
        while not all(map(Path.exists, records)) and any(machine.poll() is None for machine in machines):
            time.sleep(0.01)
        for machine in machines:
            kill(machine)
        if not (out / "train/index.json").exists():
            break
    own, others = (out / f"train/shard.0000{number}.mds" for number in (0, 1))
    own.write_bytes(bytes([own.read_bytes()[0] ^ 1]) + own.read_bytes()[1:])
    others.unlink()
    done = output.part(many, 0)
    assert done.returncode == 0 and "warning: train: shard 1 is missing; made anew" in done.stderr, done.stderr
    assert output.files() == converted_many


def test_shards_missing_from_a_complete_dataset_are_work_for_one_machine(
    source: Path, converted: Path, tmp_path: Path
) -> None:
    output = local(tmp_path / "out")
    assert output.run(source).returncode == 0
    next((tmp_path / "out/train").glob("shard.*")).unlink()
    other = output.part(source, 0, "--seed", 1)
    assert other.returncode == 2 and "--seed: 0 there, 1 now" in other.stderr
    done = output.part(source, 0)
    assert done.returncode == 1 and "train is complete, but 1 shard is missing; the same command on one" in done.stderr
    assert output.run(source, "--part", "0/1").returncode == 0
    assert output.files() == tree(converted)


HALVES = ("train/.part-01234567-shard.00000.mds", ".part-01234567-manifest.json", ".part-files-ab12/files.parquet")


def test_a_bad_image_stops_each_machine_that_meets_it_and_skipping_goes_on(source: Path, tmp_path: Path) -> None:
    """What killed machines have left half written goes, and nothing else."""
    output, bad = local(tmp_path / "out"), listing(source)[25]
    bad.write_bytes(bad.read_bytes()[:-40])
    for part in (0, 1):
        failed = output.part(source, part)
        assert failed.returncode == 1 and bad.name in failed.stderr and "--on-bad skip" in failed.stderr
    assert not list((tmp_path / "out").rglob("index.json"))
    for name in (*HALVES, ".part-own"):
        path = tmp_path / "out" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"half")
    assert "1 refused" in output.part(source, 1, "--on-bad", "skip").stdout
    alone = local(tmp_path / "alone")
    assert alone.run(source, "--on-bad", "skip").returncode == 0
    assert output.files() == alone.files() | {".part-own": b"half"}


@pytest.mark.parametrize(
    ("new_output", "one"),
    [
        *[("disk", one) for one in ("is as quick", "is late", "has its upload ended")],
        *[
            pytest.param("s3", one, marks=[pytest.mark.s3, pytest.mark.exhaustive])
            for one in ("is as quick", "is late", "has its upload ended")
        ],
    ],
    indirect=["new_output"],
)
def test_two_that_complete_it_at_once_do_not_harm_each_other(
    source: Path,
    converted: Path,
    new_output: Callable[[], Output],
    monkeypatch: pytest.MonkeyPatch,
    one: str,
) -> None:
    """As where one takes the other for gone. Each is stopped until both are at it, or one until the other is done."""
    output, both, done, met = new_output(), threading.Barrier(2), threading.Event(), set[int]()
    for name, value in output.env.items():
        monkeypatch.setenv(name, value)
    take = Machine.take

    def at_once(conversion: Conversion, *, check: Callable[[], None]) -> None:
        is_first_time = threading.get_ident() not in met
        met.add(threading.get_ident())
        is_one = is_first_time and both.wait(SECONDS) == 0
        if is_one and one == "is late":
            assert done.wait(SECONDS)
        if is_one and one == "has its upload ended":
            raise PlaceError("NoSuchUpload")
        publish(conversion, check=check)

    monkeypatch.setattr(together, "publish", at_once)
    monkeypatch.setattr(Machine, "take", lambda self, name: name == together.TO_COMPLETE or take(self, name))
    assert failures_of_two_machines(source, output, done) == []
    assert output.files() == tree(converted)


@pytest.mark.parametrize("one", ["has counted", "is counting"])
def test_two_that_complete_it_at_once_and_one_of_them_ends_a_split_under_the_others_hands(
    source: Path, converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one: str
) -> None:
    """The quicker machine waits between its two splits until the slower one has missed the records of the first."""
    output, both = local(tmp_path / "out"), threading.Barrier(2)
    train_ended, noticed, quicker = threading.Event(), threading.Event(), set[int]()
    take, end, complete = Machine.take, Journal.end, together._write_the_end

    def end_and_wait(journal: Journal) -> None:
        end(journal)
        if journal.split == "train" and threading.get_ident() in quicker:
            train_ended.set()
            assert noticed.wait(SECONDS)

    def at_once(conversion: Conversion, machine: Machine, splits: Sequence[Any]) -> bool:
        if len(splits) == 2 and both.wait(SECONDS) == 0:
            quicker.add(threading.get_ident())
        elif one == "is counting":
            assert train_ended.wait(SECONDS)
        try:
            return complete(conversion, machine, splits)
        finally:
            if train_ended.is_set():
                noticed.set()

    def late(conversion: Conversion, *, check: Callable[[], None]) -> None:
        if threading.get_ident() not in quicker:
            assert train_ended.wait(SECONDS)
        publish(conversion, check=check)

    monkeypatch.setattr(together, "_write_the_end", at_once)
    monkeypatch.setattr(together, "publish", late)
    monkeypatch.setattr(Journal, "end", end_and_wait)
    monkeypatch.setattr(Machine, "take", lambda self, name: name == together.TO_COMPLETE or take(self, name))
    assert failures_of_two_machines(source, output, threading.Event()) == []
    assert noticed.is_set() and len(quicker) == 1
    assert output.files() == tree(converted)


def failures_of_two_machines(source: Path, output: Output, done: threading.Event) -> list[BaseException]:
    """Two machines, as threads, make a dataset; the event is set when the first of them has ended well."""
    failed: list[BaseException] = []

    def convert_part(part: int) -> None:
        try:
            run_here(parse_args("", list(map(str, output.args(source, part)))))
            done.set()
        except BaseException as error:
            failed.append(error)

    machines = [threading.Thread(target=convert_part, args=(part,)) for part in range(2)]
    for machine in machines:
        machine.start()
    for machine in machines:
        machine.join(SECONDS)
    return failed
