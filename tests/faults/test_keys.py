"""Keys of S3 that are renewed while a program runs, and other answers that are right a moment later."""

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from imagestream.storage.errors import PlaceError
from imagestream.storage.places import open_place
from imagestream.storage.s3 import READ_ATTEMPTS, S3Place
from imagestream.storage.s3_client import renew_clients
from tests.fault_proxy import FaultProxy, Request
from tests.faults.conftest import SHORT
from tests.integration.problem import command
from tests.processes import start
from tests.s3_server import S3Server, running_s3_server
from train.resume.checkpoints import list_checkpoints

pytestmark = pytest.mark.s3

EXPIRED = "400:ExpiredToken"


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[S3Server]:
    """A server whose keys the test may change."""
    (tmp_path / "s3").mkdir()
    with running_s3_server(tmp_path / "s3") as server:
        yield server


@pytest.fixture
def through_proxy(s3_server: S3Server, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A prefix that this process reaches through the proxy."""
    for name, value in s3_server.env_through(proxy.endpoint_url).items():
        monkeypatch.setenv(name, value)
    renew_clients()
    yield f"{uuid.uuid4().hex}/x"
    renew_clients()


def write_keys(file: Path, server: S3Server) -> None:
    file.write_text(
        f"[default]\naws_access_key_id = {server.access_key}\naws_secret_access_key = {server.secret_key}\n"
    )


def environment(file: Path, server: S3Server) -> dict[str, str]:
    """Of a program that reads its keys from a file."""
    kept = {name: value for name, value in server.env.items() if "KEY" not in name}
    return kept | {"AWS_SHARED_CREDENTIALS_FILE": str(file)}


def first(method: str, fault: str, count: int) -> Callable[[Request], str]:
    """A fault for the first `count` requests of one method."""
    seen: list[Request] = []

    def choose(request: Request) -> str:
        if request.method != method or len(seen) == count:
            return ""
        seen.append(request)
        return fault

    return choose


@pytest.mark.parametrize(
    ("method", "fault"),
    [
        ("PUT", EXPIRED),
        pytest.param("PUT", "400:InvalidToken", marks=pytest.mark.exhaustive),
        pytest.param("PUT", "403:InvalidAccessKeyId", marks=pytest.mark.exhaustive),
        pytest.param("PUT", "403:RequestTimeTooSkewed", marks=pytest.mark.exhaustive),
        pytest.param("PUT", "307:TemporaryRedirect", marks=pytest.mark.exhaustive),
        ("PUT", "409:OperationAborted"),
        ("HEAD", "404"),  # of what has just been written
        ("HEAD", "400:BadRequest"),  # an expired token, of which an answer without a body says no more
    ],
)
def test_what_passes_by_itself_is_tried_again_when_something_is_written(
    proxy: FaultProxy, s3_server: S3Server, through_proxy: str, tmp_path: Path, method: str, fault: str
) -> None:
    place = S3Place(s3_server.bucket, through_proxy)
    place.check_writable()  # the keys are right
    source = tmp_path / "source"
    source.write_bytes(b"new")
    writes: dict[str, Callable[[], object]] = {
        "a": lambda: place.put("a", source),
        "b": lambda: place.write("b", b"new"),
    }
    for name, write in writes.items():
        before = proxy.faults_given
        proxy.choose = first(method, fault, 2)
        write()
        assert proxy.faults_given == before + 2
        assert place.read(name) == b"new"


def expired_at(count: int) -> Callable[[Request], str]:
    """A proxy's choice: that token has expired for one request, by its number."""
    return lambda request: EXPIRED if request.number == count else ""


def test_an_expired_token_is_no_reason_to_end_for_any_request(
    proxy: FaultProxy, s3_server: S3Server, through_proxy: str, tmp_path: Path
) -> None:
    place = S3Place(s3_server.bucket, through_proxy)
    place.check_writable()
    place.write("file", b"content")
    requests: dict[str, tuple[Callable[[], object], object]] = {
        "read": (lambda: place.read("file"), b"content"),
        "names": (place.names, ["file"]),
        "get": (lambda: place.get("file", tmp_path).read_bytes(), b"content"),
        "create": (lambda: place.create("file", b"other"), False),
        "rename": (lambda: place.rename("file", "renamed"), None),
        "sizes": (place.sizes, {"renamed": 7}),
        "read in part": (lambda: place.read("renamed", 1, 3), b"ont"),
        "size": (lambda: getattr(place.stat("renamed"), "size_bytes", None), 7),
        "write": (lambda: place.write("renamed", b"new")[0], 3),
        "delete": (lambda: place.delete(["renamed"]), None),
    }
    for name, (request, expected) in requests.items():
        count = len(proxy.seen)
        proxy.choose = expired_at(count)
        assert request() == expected, name
        assert [fault for _, fault in proxy.seen[count:]].count(EXPIRED) == 1, name
    assert place.names() == []


def test_an_answer_that_breaks_off_is_read_again_and_not_for_ever(
    proxy: FaultProxy, s3_server: S3Server, through_proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, data = S3Place(s3_server.bucket, through_proxy), bytes(range(256)) * 400
    place.write("file", data)
    monkeypatch.setattr("imagestream.storage.s3.random.uniform", lambda *_: 0.0)  # no pauses
    proxy.choose = first("GET", "truncate", READ_ATTEMPTS - 1)
    assert place.read("file") == data
    assert proxy.faults_given == READ_ATTEMPTS - 1
    proxy.choose = lambda request: "truncate"
    with pytest.raises(PlaceError, match=rf"^{place}/file cannot be read: "):
        place.read("file", 1000)
    assert proxy.faults_given == 2 * READ_ATTEMPTS - 1


def test_keys_that_have_never_been_right_are_told_at_once(
    s3_server: S3Server, s3_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imagestream.storage.s3_patience._worked", threading.Event())
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "wrong")
    began = time.monotonic()
    with pytest.raises(PlaceError, match="InvalidAccessKeyId"):
        open_place(s3_folder).write("file", b"content")
    assert time.monotonic() - began < 5


def test_patience_ends(
    proxy: FaultProxy, s3_server: S3Server, through_proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = S3Place(s3_server.bucket, through_proxy)
    place.check_writable()
    monkeypatch.setattr("imagestream.storage.s3_patience.PATIENCE_S", 2.0)
    proxy.choose = lambda request: EXPIRED
    began = time.monotonic()
    with pytest.raises(PlaceError, match="ExpiredToken"):
        place.create("file", b"content")
    with pytest.raises(PlaceError, match="ExpiredToken"):
        place.write("file", b"content")
    assert 1 < time.monotonic() - began < 15


@pytest.mark.exhaustive
def test_a_file_of_keys_that_is_rewritten_is_read_again(
    own_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = tmp_path / "credentials"
    write_keys(keys, own_server)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment(keys, own_server).items():
        monkeypatch.setenv(name, value)
    renew_clients()
    place = S3Place(own_server.bucket, "x")
    source = tmp_path / "source"
    for number in range(2):
        source.write_bytes(b"content")
        place.put(f"checkpoint{number}", source)
        place.write(f"shard{number}", b"content")
        if number == 0:
            own_server.change_keys()
            threading.Timer(2.0, write_keys, [keys, own_server]).start()
    assert place.names() == ["checkpoint0", "checkpoint1", "shard0", "shard1"]
    renew_clients()


@pytest.mark.exhaustive
def test_a_run_whose_keys_are_renewed_between_two_saves_goes_on(
    shards: Path, own_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = tmp_path / "credentials"
    write_keys(keys, own_server)
    location = f"s3://{own_server.bucket}/run"
    argv = command(shards, location, *SHORT, "checkpoint.save_interval=2ba")
    started = start(argv, tmp_path / "log", env=environment(keys, own_server))
    for name, value in own_server.env.items():
        monkeypatch.setenv(name, value)
    folder, until = open_place(location), time.monotonic() + 120
    while "ep0-ba2.pt" not in list_checkpoints(folder):
        assert time.monotonic() < until, started.output()
        time.sleep(0.1)
    own_server.change_keys()
    time.sleep(3)  # it has met the new server with its old keys by now
    write_keys(keys, own_server)
    assert started.wait(180) == 0, started.output()
    for name, value in own_server.env.items():
        monkeypatch.setenv(name, value)
    assert list_checkpoints(open_place(location)) == ["ep0-ba2.pt", "ep0-ba4.pt", "ep0-ba6.pt"]
