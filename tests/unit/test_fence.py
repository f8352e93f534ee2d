"""A save folder has one run at a time: who gets it, from whom it is taken, and that nothing changes without it."""

import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from imagestream import process_identity
from imagestream.storage import local
from imagestream.storage.local import LocalPlace
from imagestream.storage.places import open_place
from imagestream.storage.protocol import Place
from train.resume import fence
from train.resume.fence import OWNER_NAME, FencedFolder, HeldError, TakenOverError, claim, read_owner


@pytest.fixture(params=["disk", pytest.param("s3", marks=pytest.mark.s3)])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return LocalPlace(tmp_path / "run") if request.param == "disk" else open_place(request.getfixturevalue("s3_folder"))


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """Another process of this machine."""
    with subprocess.Popen(["sleep", "60"]) as started:
        yield started
        started.kill()


def source(tmp_path: Path, content: bytes = b"new") -> Path:
    path = tmp_path / "source"
    path.write_bytes(content)
    return path


def write_owner(folder: Place, **changes: Any) -> dict[str, Any]:
    """The file of another run: by default of a live process of this machine, this one."""
    owner = fence._identity("first") | changes
    folder.write(OWNER_NAME, json.dumps(owner).encode())
    return owner


def owner_of(folder: Place) -> dict[str, Any]:
    owner = read_owner(folder)
    assert owner is not None
    return owner


def test_two_runs_that_write_at_one_moment_have_temporary_files_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One was suspended in the middle of a write, and wakes up when another has the folder."""
    names: list[str] = []
    write = local._write_synced

    def noted(path: Path, data: bytes) -> None:
        names.append(path.name)
        write(path, data)

    monkeypatch.setattr(local, "_write_synced", noted)
    held = claim(LocalPlace(tmp_path), run_name="one")
    names.clear()
    for _ in range(2):
        held.write("run.json", b"{}")
    assert len(set(names)) == 2 and not list(tmp_path.glob(".*")), names


def test_a_free_folder_is_claimed_and_given_back(folder: Place) -> None:
    held = claim(folder, run_name="one")
    owner = owner_of(folder)
    assert (owner["run_name"], owner["pid"], owner["nonce"]) == ("one", os.getpid(), held.nonce)
    assert fence.lives_here(owner)
    held.check()
    fence.release(held)
    assert folder.names() == []


def test_a_file_is_created_by_exactly_one_of_many(folder: Place) -> None:
    start, won = threading.Barrier(8), list[int]()

    def create(number: int) -> None:
        start.wait()
        if folder.create("owner", str(number).encode() * 100):
            won.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert folder.read("owner") == str(won[0]).encode() * 100
    assert folder.names() == ["owner"]


@pytest.mark.s3
@pytest.mark.parametrize("there", [False, True])
def test_a_server_without_conditional_puts_is_written_and_read_back(
    s3_server: Any, s3_folder: str, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    from tests.fault_proxy import FaultProxy

    if there:
        open_place(s3_folder).write("owner", b"first")
    with FaultProxy(s3_server.port).running() as proxy:
        proxy.choose = lambda request: "501" if "if-none-match" in request.headers else ""
        for name, value in s3_server.env_through(proxy.endpoint_url).items():
            monkeypatch.setenv(name, value)
        assert open_place(s3_folder).create("owner", b"second") is not there
    assert open_place(s3_folder).read("owner") == (b"first" if there else b"second")


def test_a_disk_without_hard_links_has_exclusive_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    folder = LocalPlace(tmp_path)
    assert [folder.create("owner", b"first"), folder.create("owner", b"second")] == [True, False]
    assert (folder.names(), folder.read("owner")) == (["owner"], b"first")


def test_a_live_run_of_this_machine_keeps_its_folder_and_is_named(
    folder: Place, process: subprocess.Popen[bytes]
) -> None:
    owner = write_owner(folder, pid=process.pid, start_ticks=process_identity._state_and_start(process.pid)[1])
    with pytest.raises(HeldError) as refused:
        claim(folder, run_name="second", patience_s=0.5)
    assert str(refused.value).startswith(f"{folder} is in use by run first (process {process.pid} on {owner['host']}, ")
    assert owner_of(folder) == owner


def test_one_that_is_about_to_end_is_waited_for(folder: Place) -> None:
    write_owner(folder)
    threading.Timer(1.0, folder.delete, [[OWNER_NAME]]).start()
    held = claim(folder, run_name="second")
    assert owner_of(folder)["nonce"] == held.nonce


@pytest.mark.parametrize("waited_for", [False, True], ids=["zombie", "gone"])
def test_a_killed_run_s_folder_is_taken_over_at_once(
    folder: Place, process: subprocess.Popen[bytes], caplog: pytest.LogCaptureFixture, waited_for: bool
) -> None:
    write_owner(folder, pid=process.pid, start_ticks=process_identity._state_and_start(process.pid)[1])
    process.send_signal(signal.SIGKILL)
    if waited_for:
        process.wait()
    else:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, but its number is still taken
    held = claim(folder, run_name="second", patience_s=0)
    assert owner_of(folder)["nonce"] == held.nonce
    assert f"is taken over from run first (process {process.pid} on" in caplog.text and "which is dead" in caplog.text


@pytest.mark.parametrize(
    "changes",
    [
        {"boot_id": "another machine"},
        {"pid_namespace": "pid:[1]"},
        {"start_ticks": "1"},  # the number was given to another process
        {"pid": "?"},
        {"pid": 2**40},
    ],
)
def test_whoever_is_not_known_to_live_here_loses_the_folder_and_finds_out(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    folder = LocalPlace(tmp_path / "run")
    first = FencedFolder(folder, write_owner(folder, **changes)["nonce"])
    first.check()
    second = claim(folder, run_name="second", patience_s=0)
    second.check()
    with pytest.raises(TakenOverError, match=rf"taken over by run second \(process {os.getpid()} on .* UTC\)"):
        first.check()


@pytest.mark.parametrize("content", [b"", b"[1]", b"\xff", b'{"pid": 1'])
def test_an_owner_that_cannot_be_read_is_replaced(tmp_path: Path, content: bytes) -> None:
    folder = LocalPlace(tmp_path)
    folder.write(OWNER_NAME, content)
    claim(folder, run_name="second", patience_s=0).check()


CHANGES: dict[str, Callable[[FencedFolder, Path], Any]] = {
    "put": lambda held, tmp_path: held.put("file", source(tmp_path)),
    "create": lambda held, _: held.create("new", b"new"),
    "write": lambda held, _: held.write("file", b"new"),
    "rename": lambda held, _: held.rename("file", "other"),
    "delete": lambda held, _: held.delete(["file"]),
    "check_writable": lambda held, _: held.check_writable(),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("gone", [False, True], ids=["another", "gone"])
def test_nothing_changes_in_a_folder_that_another_run_has(tmp_path: Path, change: str, gone: bool) -> None:
    folder = LocalPlace(tmp_path / "run")
    held = claim(folder, run_name="first")
    folder.write("file", b"old")
    CHANGES[change](held, tmp_path)
    folder.write("file", b"old")
    folder.delete([OWNER_NAME]) if gone else write_owner(folder)
    before = {name: folder.read(name) for name in folder.names()}
    with pytest.raises(TakenOverError, match="is gone" if gone else "has been taken over by run first"):
        CHANGES[change](held, tmp_path)
    fence.release(held)
    assert {name: folder.read(name) for name in folder.names()} == before


@pytest.mark.parametrize("size", [3, pytest.param(70 << 20, id="parts")])
def test_a_file_that_was_on_its_way_while_the_folder_was_taken_over_does_not_appear(
    folder: Place, tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = claim(folder, run_name="first")
    folder.write("file", b"old")
    check, calls = held.check, list[None]()

    def late() -> None:
        calls.append(None)
        if len(calls) == 2:  # the first look finds nothing, and the upload begins
            write_owner(folder)
        check()

    monkeypatch.setattr(held, "check", late)
    with pytest.raises(TakenOverError):
        held.put("file", source(tmp_path, b"n" * size))
    assert len(calls) >= 2
    assert folder.read("file") == b"old"
    assert folder.names() == ["file", OWNER_NAME]
