"""The page of a real run, in a real browser; and the commands that show runs."""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import train.record.serving as serving_module
from imagestream.storage.errors import PlaceError
from imagestream.storage.places import open_place
from tests import chromium
from tests.chromium import Browser, running_chromium
from tests.conftest import REPOSITORY
from tests.integration.problem import command, record_of, what_must_match
from tests.processes import run, run_program, start
from tests.records import HOSTILE, a_record, the_pictures
from train.record.page import run_page, runs_page
from train.record.reading import StoredRun
from train.record.serving import serving
from train.resume.checkpoint_file import load

needs_chromium = pytest.mark.skipif(chromium.PROGRAM is None, reason="chromium is not installed")
PHONE_PX, SCREEN_PX = 420, 1280
PAINTED = """(() => {
  const style = getComputedStyle(document.documentElement);
  const colours = ['--series-1', '--series-2'].map(name => style.getPropertyValue(name).trim());
  const wanted = colours.map(hex => [1, 3, 5].map(at => parseInt(hex.slice(at, at + 2), 16)));
  const isNear = (pixels, at) =>
    wanted.some(colour => colour.every((value, part) => Math.abs(pixels[at + part] - value) < 24));
  return [...document.querySelectorAll('#charts canvas')].map(canvas => {
    const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
    let found = 0;
    for (let at = 0; at < pixels.length; at += 4)
      if (pixels[at + 3] > 100 && isNear(pixels, at)) found += 1;
    return found;
  });
})()"""
"""How many pixels of each chart have the colour of its curves."""
CURVES = "[...document.querySelectorAll('.chart')].map(chart => chart.querySelectorAll('.u-series').length - 1)"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_chromium() as found:
        yield found


@pytest.fixture(scope="module")
def killed(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The save folder of a run that was killed three times."""
    folder = tmp_path_factory.mktemp("killed")
    argv = command(shards, folder, "max_duration=4ep", "loggers.file=false")
    for at, checkpoint in enumerate(("ep0-ba2.pt", "ep1-ba8.pt", "ep2-ba16.pt")):
        started = start(argv, folder / f"log{at}")
        started.kill_when((folder / checkpoint).exists)
    code, output = run(argv, folder / "last")
    assert code == 0, output
    return folder


@pytest.mark.slow
def test_after_three_kills_the_curves_have_no_gap_and_the_page_is_the_undisturbed_runs(
    shards: Path, killed: Path, tmp_path: Path
) -> None:
    code, output = run(command(shards, tmp_path, "max_duration=4ep", "loggers.file=false"), tmp_path / "log")
    assert code == 0, output
    record, undisturbed = record_of(killed), record_of(tmp_path)
    assert what_must_match(record) == what_must_match(undisturbed)
    data = chart_data((killed / "report.html").read_text())
    by_title = {chart["title"]: chart["series"] for chart in data["charts"]}
    for title in ("Loss", "Learning rate", "Memory of the first rank's machine"):
        assert by_title[title][0]["x"] == list(range(1, 25)), title
    assert by_title["Speed"][0]["x"] == by_title["Image size"][0]["x"] == list(range(25))
    assert by_title["Accuracy"][0]["x"] == [6, 12, 18, 24]
    assert len(record["starts"]) == 4 and len(data["marks"]) == 3
    assert [start["batch"] for start in record["starts"]] == sorted(start["batch"] for start in record["starts"])
    pages = [load(folder / "ep3-ba24.pt")["state"]["callbacks"]["RunRecord"]["page"] for folder in (killed, tmp_path)]
    for page in pages:
        del page["starts"]
    assert pages[0] == pages[1]
    assert len(pages[0]["crops"]["pictures"]) == 16 and len(pages[0]["evaluated"]["first"]) == 23


@pytest.mark.slow
def test_on_any_number_of_ranks_the_page_has_the_same_pictures_and_counts(shards: Path, tmp_path: Path) -> None:
    """Each evaluates the same last checkpoint, which was saved before the evaluation."""
    more = ("max_duration=1ep", "global_batch_size=12", "checkpoint.save_interval=8ba", "data.eval_batch_size=12")
    folders = [tmp_path / f"ranks{ranks}" for ranks in (1, 2, 3)]
    code, output = run(command(shards, folders[0], *more), tmp_path / "log1")
    assert code == 0, output
    for ranks, folder in enumerate(folders[1:], start=2):
        folder.mkdir()
        shutil.copy(folders[0] / "ep0-ba8.pt", folder)
        code, output = run(command(shards, folder, *more), tmp_path / f"log{ranks}", ranks=ranks)
        assert code == 0, output
    pages = [(folder / "report.html").read_text() for folder in folders]
    found = [page.partition("<h2>Validation images")[2].partition("<h2>Configuration")[0] for page in pages]
    assert found[0].count("<figure") > 23 and "Confusion" in found[0]
    assert found[1] == found[0] and found[2] == found[0]


def chart_data(page: str) -> Any:
    return json.loads(page.partition('id="data">')[2].partition("</script>")[0])


@needs_chromium
@pytest.mark.slow
@pytest.mark.parametrize("is_dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width_px", [PHONE_PX, SCREEN_PX])
def test_a_real_runs_page_is_drawn_and_asks_for_nothing(
    browser: Browser, killed: Path, width_px: int, is_dark: bool
) -> None:
    check_page(browser, killed / "report.html", width_px, is_dark=is_dark, curves=[2, 2, 1, 1, 1, 1, 1])
    assert browser.ask("[...document.images].every(image => image.naturalWidth > 0)")
    assert browser.ask("document.images.length") >= 16 + 23


def check_page(browser: Browser, path: Path, width_px: int, *, is_dark: bool, curves: list[int]) -> None:
    browser.errors.clear()
    browser.open(path.as_uri(), width_px=width_px, is_dark=is_dark)
    assert [url for url in browser.requests if not url.startswith("data:")] == [path.as_uri()]
    assert browser.errors == []
    assert browser.ask(CURVES) == curves
    painted = browser.ask(PAINTED)
    assert len(painted) == len(curves) and min(painted) > 30, painted
    overflowing = "document.documentElement.scrollWidth > innerWidth"
    assert not browser.ask(overflowing)
    ground = browser.ask("getComputedStyle(document.documentElement).backgroundColor")
    assert ground == ("rgb(17, 21, 28)" if is_dark else "rgb(246, 247, 249)")


@needs_chromium
def test_hostile_names_do_nothing_in_a_browser(browser: Browser, tmp_path: Path) -> None:
    record = a_record(classes=[HOSTILE, "dog", "owl"], run_name=HOSTILE)
    page = tmp_path / "report.html"
    page.write_text(run_page(record, the_pictures()))
    check_page(browser, page, PHONE_PX, is_dark=False, curves=[2, 2, 1, 1, 1, 1, 1])
    assert browser.ask("document.querySelector('h1').textContent").strip().startswith(HOSTILE)
    runs = [StoredRun(f"{HOSTILE}/{name}", a_record(run_name=f"{HOSTILE}{name}")) for name in ("one", "other")]
    page.write_text(runs_page(runs, {HOSTILE: [HOSTILE, "1"]}))
    check_page(browser, page, PHONE_PX, is_dark=True, curves=[2] * 9)
    assert browser.ask("document.querySelector('.u-label:not(:empty)') !== null")


@needs_chromium
def test_axes_change_and_tables_are_sorted(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    pictures = the_pictures()
    pictures["evaluated"]["classes"] = [[10, 9, 10], [9, 3, 9], [100, 50, 90]]
    page.write_text(run_page(a_record(), pictures))
    browser.open(page.as_uri(), width_px=SCREEN_PX)
    shown = "document.querySelector('.chart .u-series').textContent"
    found = []
    for axis in ("epochs", "images", "batches"):
        browser.ask(f"document.querySelector('[data-axis={axis}]').click()")
        found.append(browser.ask(shown))
    assert found == ["epochs2", "images320", "batches40"]
    images = "[...document.querySelectorAll('table.sortable tbody tr')].map(row => row.cells[1].textContent)"
    assert browser.ask(images) == ["9", "100", "10"]  # the least accurate first
    for expected in (["9", "10", "100"], ["100", "10", "9"]):
        browser.ask("document.querySelectorAll('table.sortable th')[1].click()")
        assert browser.ask(images) == expected


@pytest.mark.slow
def test_a_run_that_saves_to_s3_has_its_page_there(shards: Path, s3_folder: str, tmp_path: Path) -> None:
    folder = f"{s3_folder}/run"
    argv = command(shards, folder, "max_duration=1ep", "loggers.file=false")
    code, output = run(argv, tmp_path / "log", env=dict(os.environ))
    assert code == 0, output
    page = open_place(folder).read("report.html").decode()
    assert "</html>" in page and chart_data(page)["charts"][0]["series"][0]["x"] == list(range(1, 7))
    listed = run_program("train.runs", [s3_folder, folder])
    assert listed.stdout.count("finished") == 2 and listed.returncode == 0, listed
    watched = run_program("train.watch", [folder, "--print"])
    assert watched.returncode == 0 and "epoch 1 of 1  step 6 of 6" in watched.stdout, watched


@pytest.mark.slow
def test_a_run_that_is_stopped_says_so(shards: Path, tmp_path: Path) -> None:
    started = start(command(shards, tmp_path, "max_duration=500ep"), tmp_path / "log", ranks=2)
    deadline = time.monotonic() + 240
    while not (tmp_path / "run.json").exists():
        assert time.monotonic() < deadline, started.output()
        time.sleep(0.05)
    for rank in started.ranks:
        assert rank.pid
        os.kill(rank.pid, signal.SIGTERM)
    assert started.wait(60) == 75, started.output()
    record = record_of(tmp_path)
    assert record["status"] == "stopped"
    checkpoints = [int(path.stem.partition("-ba")[2]) for path in tmp_path.glob("ep*.pt")]
    assert record["progress"]["batch"] == max(checkpoints)
    assert ">stopped</span>" in (tmp_path / "report.html").read_text()


def write_run(folder: Path, **changes: Any) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    record = a_record() | changes
    (folder / "run.json").write_text(json.dumps(record))
    return record


def watch(folder: Path, *more: str) -> "subprocess.Popen[str]":
    argv = [sys.executable, "train/watch.py", str(folder), *more]
    return subprocess.Popen(argv, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_watching_serves_the_page_alone_until_the_run_is_finished(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    write_run(folder, status="running")
    (tmp_path / "secret").write_text("secret")
    (folder / "ep1-ba20.pt").write_text("secret")
    process = watch(folder, "--port", "0")
    try:
        assert process.stdout
        line = process.stdout.readline()
        port = int(line.partition("127.0.0.1:")[2].partition("/")[0])

        def get(path: str, host: str = "localhost:1") -> tuple[int, str, str | None]:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.putrequest("GET", path, skip_host=True)
            connection.putheader("Host", host)
            connection.endheaders()
            answer = connection.getresponse()
            return answer.status, answer.read().decode(), answer.headers["Refresh"]

        status, page, refresh = get("/")
        assert (status, refresh) == (200, "15") and ">running</span>" in page  # of the record: there is no page yet
        (folder / "report.html").write_text("<p>the run's own")
        assert json.loads(get("/run.json")[1])["status"] == "running"
        for path in ("/ep1-ba20.pt", "/../secret", "/%2e%2e/secret", "//secret", "/report.html/../ep1-ba20.pt", "/run"):
            status, body, _ = get(path)
            assert status == 404 and "secret" not in body.replace("/secret", ""), path
        assert get("/", host="elsewhere.example")[0] == 403
        write_run(folder, status="finished")
        assert process.stdout.readline().startswith("the run is finished")
        assert get("/report.html") == (200, "<p>the run's own", None)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait(10)


def test_watching_in_a_terminal_prints_each_state_and_ends(tmp_path: Path) -> None:
    write_run(tmp_path, status="running", progress={"batch": 30, "epoch": 1})
    process = watch(tmp_path, "--print")
    try:
        assert process.stdout
        assert process.stdout.readline() == (
            "run base: running at 2023-11-14 22:13 UTC  epoch 1.5 of 2  step 30 of 40  loss 0.075  top-1 50.00%  "
            "images/s 200  left 1 h\n"
        )
        write_run(tmp_path)
        assert "finished" in process.stdout.readline()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait(10)


def test_watching_what_is_not_there_or_does_not_change_ends(tmp_path: Path) -> None:
    none = run_program("train.watch", [tmp_path, "--print", "--patience-h", "0.0002"])
    assert none.returncode == 1
    assert f"{tmp_path} has no run.json yet" in none.stderr and "no news of" in none.stderr
    write_run(tmp_path, status="running")
    still = run_program("train.watch", [tmp_path, "--print", "--patience-h", "0.0002"])
    assert still.returncode == 1 and "it may be dead" in still.stderr


def test_a_port_in_use_is_said_in_a_line(tmp_path: Path) -> None:
    write_run(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_program("train.watch", [tmp_path, "--port", port])
    assert done.returncode == 2
    assert done.stderr == f"watch: port {port} cannot be used: Address already in use; give another, 0 for any\n"
    (tmp_path / "file").write_text("")
    done = run_program("train.watch", [tmp_path / "file", "--print", "--patience-h", "0.0002"])
    assert done.returncode == 2 and f"{tmp_path}/file is a file; give a run's checkpoint.save_folder" in done.stderr


def test_a_page_is_served_again_when_its_folder_can_be_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any) -> bytes:
        raise PlaceError("the network is down")

    write_run(tmp_path, status="running")
    with serving(str(tmp_path), 0) as server:
        monkeypatch.setattr(serving_module, "read_if_there", away)
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(server.url, timeout=10)
        assert (caught.value.code, caught.value.headers["Refresh"]) == (502, "15")
        monkeypatch.undo()
        with urllib.request.urlopen(server.url, timeout=10) as answer:
            assert b">running</span>" in answer.read()


def test_a_browser_that_goes_before_it_has_its_answer_is_no_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path, status="running")
    (tmp_path / "report.html").write_bytes(b"x" * (64 << 20))  # more than the kernel takes for the browser
    ended = threading.Event()
    with serving(str(tmp_path), 0) as server:
        shutdown_request = server.shutdown_request

        def shut_down(request: Any) -> None:
            shutdown_request(request)
            ended.set()

        monkeypatch.setattr(server, "shutdown_request", shut_down)
        with socket.create_connection(("127.0.0.1", server.server_port)) as browser:
            browser.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            browser.recv(1000)
            browser.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closed by a reset
        assert ended.wait(30)
        assert capsys.readouterr().err == ""
        monkeypatch.setattr(server, "page", lambda: 1 / 0)
        with pytest.raises(http.client.RemoteDisconnected):
            urllib.request.urlopen(server.url, timeout=10)
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_whatever_page_is_in_a_save_folder_may_only_draw_itself(tmp_path: Path) -> None:
    """What it needs is what the run's own page asks of the browser, and no more."""
    write_run(tmp_path)
    with serving(str(tmp_path), 0) as server:
        for path in ("", "run.json"):
            with urllib.request.urlopen(server.url + path, timeout=10) as answer:
                policy = answer.headers["Content-Security-Policy"]
                assert policy.startswith("sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline';")
    own = re.search('http-equiv="Content-Security-Policy" content="([^"]+)"', run_page(a_record(), the_pictures()))
    assert own and set(own[1].split("; ")) == set(policy.split("; ")) - {"sandbox allow-scripts"}


@needs_chromium
def test_a_served_page_is_drawn_and_reloaded(browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path, status="running")
    (tmp_path / "report.html").write_text(run_page(a_record(), the_pictures()))
    monkeypatch.setattr(serving_module, "RELOAD_S", 1)
    with serving(str(tmp_path), 0) as server:
        browser.requests.clear()
        browser.errors.clear()
        browser.open(server.url, width_px=SCREEN_PX)
        assert min(browser.ask(PAINTED)) > 30 and browser.errors == []
        time.sleep(5)
        browser.ask("1")
        assert browser.requests.count(server.url) > 1


def test_runs_are_compared_in_a_table_a_csv_and_a_page(tmp_path: Path) -> None:
    write_run(tmp_path / "runs/one", config=a_record(run_name="one", seed=1)["config"])
    write_run(
        tmp_path / "runs/other", config=a_record(run_name="other", seed=2)["config"],
        evaluations=a_record(evaluations=1)["evaluations"],
    )  # fmt: skip
    (tmp_path / "runs/damaged").mkdir()
    (tmp_path / "runs/damaged/run.json").write_text('{"status": ')
    (tmp_path / "empty").mkdir()
    csv, page = tmp_path / "runs.csv", tmp_path / "runs.html"
    argv = [tmp_path / "runs", tmp_path / "empty", "--sort", "top1", "--csv", csv, "--html", page]
    done = run_program("train.runs", argv)
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "name   status    epochs   top-1   top-5  images/s  trained  ranks",
        "one    finished       2  50.00%  50.00%       200      2 h      2",
        "other  finished       2  25.00%  50.00%       200      2 h      2",
        "",
        "differs in  one  other",
        "seed        1    2",
    ]
    assert f"runs: {tmp_path}/runs/damaged/run.json is not JSON" in done.stderr
    assert f"runs: {tmp_path}/empty has no run.json, and no folder in it has one" in done.stderr
    assert csv.read_text().splitlines()[0].endswith("images_per_sec,train_s,world_size,seed")
    assert csv.read_text().splitlines()[1].startswith(f"{tmp_path}/runs/one,one,finished,2.0,0.5,0.5,200.0,7200.0,2,1")
    data = chart_data(page.read_text())
    accuracy = next(chart for chart in data["charts"] if chart["title"] == "Accuracy, top-1")
    assert [(one["label"], one["y"]) for one in accuracy["series"]] == [("one", [25.0, 50.0]), ("other", [25.0])]
    assert run_program("train.runs", [tmp_path / "empty"]).returncode == 2


def test_a_table_that_is_too_wide_is_cut_to_the_terminal(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_run(tmp_path / name, config=a_record(run_name="long-name-" * 12 + name, seed=ord(name))["config"])
    done = run_program("train.runs", [tmp_path], env={"COLUMNS": "72"})
    assert done.returncode == 0, done
    assert 60 < max(map(len, done.stdout.splitlines())) <= 72, done.stdout
    for name in "cdefghijkl":
        write_run(tmp_path / name, config=a_record(run_name=f"run-{name}", seed=ord(name))["config"])
    done = run_program("train.runs", [tmp_path], env={"COLUMNS": "72"})
    assert max(map(len, done.stdout.splitlines())) <= 72, done.stdout
    assert done.stdout.count("differs in") == 3 and done.stdout.count("\nseed") == 3
