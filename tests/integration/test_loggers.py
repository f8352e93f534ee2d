"""metrics.csv, TensorBoard and W&B have each step of a run once, however often it is killed."""

import importlib.util
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from wandb.proto import wandb_internal_pb2
from wandb.sdk.internal.datastore import DataStore

from imagestream.storage.places import open_place
from tests.conftest import REPOSITORY
from tests.integration.problem import SPEEDS, Rows, command, metrics_of
from tests.processes import run, start
from tests.s3_server import S3Server
from train.record.metrics_csv import METRICS_NAME

ALL_PLACES = ("loggers.tensorboard=true", "loggers.wandb={project: test, mode: offline}", "checkpoint.keep=9")
ENV = {"WANDB_SILENT": "true", "WANDB_INIT_TIMEOUT": "240"}  # on a busy machine its service needs more than 90 s
AWAY = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "a" * 40, "WANDB_INIT_TIMEOUT": "5"}
STEPS = list(range(1, 13))


def tensorboards(folder: Path) -> Iterator[tuple[int, str, float]]:
    """Each point of all event files, in the files' order, as it is written there: without TensorBoard's own purging."""
    for path in sorted((folder / "tensorboard").rglob("events.out.tfevents.*")):
        for event in LegacyEventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.tag not in SPEEDS:
                    yield event.step, value.tag, value.simple_value


def wandbs(folder: Path) -> Iterator[tuple[str, int, dict[str, float]]]:
    """Each row that processes have written for W&B, in their order, with the run's id."""
    for path in sorted((folder / "wandb").glob("offline-run-*/run-*.wandb")):
        rows: Any = DataStore()
        kinds: Any = wandb_internal_pb2
        rows.open_for_scan(str(path))
        run_id = path.stem.removeprefix("run-")
        while data := rows.scan_data():
            record = kinds.Record()
            record.ParseFromString(data)
            row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            if row:
                kept = {name: value for name, value in row.items() if name[0] != "_" and name not in SPEEDS}
                yield run_id, row["_step"], kept


def as_float32(values: Rows) -> list[tuple[int, str, Any]]:
    return [(step, name, pytest.approx(value, rel=1e-6)) for step, row in values.items() for name, value in row.items()]


def compare(folder: Path, undisturbed: Path) -> None:
    """Each place has all steps once, in their order, and they are those of the undisturbed run."""
    expected = metrics_of(undisturbed)
    assert list(expected) == STEPS
    assert {step for step, row in expected.items() if "val/top1" in row} == {6, 12}
    assert metrics_of(folder) == expected
    points = list(tensorboards(folder))
    assert points == list(tensorboards(undisturbed))
    assert sorted(points) == sorted(as_float32(expected))
    rows = list(wandbs(folder))
    assert len({run_id for run_id, _, _ in rows}) == 1
    assert [(step, row) for _, step, row in rows] == list(expected.items())


@pytest.fixture(scope="module")
def undisturbed(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """The save folder of a run that nothing disturbed, by the number of ranks."""
    folders: dict[int, Path] = {}

    def of(ranks: int) -> Path:
        if ranks not in folders:
            folder = folders[ranks] = tmp_path_factory.mktemp("undisturbed")
            code, output = run(command(shards, folder, *ALL_PLACES), folder / "log", ranks=ranks, env=ENV)
            assert code == 0, output
        return folders[ranks]

    return of


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.exhaustive)])
def test_a_run_killed_three_times_is_one_curve_everywhere(
    shards: Path, undisturbed: Callable[[int], Path], tmp_path: Path, ranks: int
) -> None:
    """The kills come after steps that no checkpoint has: they are taken again."""
    folder = tmp_path / "run"
    argv = command(shards, folder, *ALL_PLACES)
    for kill, step in enumerate((3, 6, 9)):
        started = start(argv, tmp_path / f"log{kill}", ranks=ranks, env=ENV)
        started.kill_when(lambda step=step: len(metrics_if_there(folder)) >= step)  # type: ignore[misc]
    code, output = run(argv, tmp_path / "last", ranks=ranks, env=ENV)
    assert code == 0, output
    compare(folder, undisturbed(ranks))


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_run_that_goes_on_from_an_older_checkpoint_drops_what_came_after_it(
    shards: Path, undisturbed: Callable[[int], Path], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(undisturbed(1), folder)
    for checkpoint in folder.glob("ep*.pt"):
        if checkpoint.name not in ("ep0-ba2.pt", "ep0-ba4.pt"):
            checkpoint.unlink()
    code, output = run(command(shards, folder, *ALL_PLACES), tmp_path / "log", env=ENV)
    assert code == 0, output
    compare(folder, undisturbed(1))


@pytest.mark.slow
def test_places_that_are_empty_on_another_machine_are_filled_from_the_table(
    shards: Path, undisturbed: Callable[[int], Path], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("ep1-ba8.pt", METRICS_NAME, "wandb.json"):
        shutil.copy(undisturbed(1) / name, folder)
    code, output = run(command(shards, folder, *ALL_PLACES), tmp_path / "log", env=ENV)
    assert code == 0, output
    compare(folder, undisturbed(1))


@pytest.mark.slow
def test_without_wandbs_server_a_new_run_is_refused_and_a_resumed_one_continues(
    shards: Path, undisturbed: Callable[[int], Path], tmp_path: Path
) -> None:
    online = ("loggers.wandb={project: test, mode: online}", *ALL_PLACES)
    argv = command(shards, tmp_path / "new", *[more for more in online if "offline" not in more])
    started = start(argv, tmp_path / "log", ranks=2, env=AWAY)
    assert started.wait() == 2, started.output()
    assert [rank.exitcode for rank in started.ranks] == [2, 2]
    output = started.output()
    assert "loggers.wandb: CommError: Run initialization has timed out" in output and "Traceback" not in output
    folder = tmp_path / "run"
    shutil.copytree(undisturbed(1), folder, ignore=shutil.ignore_patterns("wandb", "ep1-*"))
    argv[2] = f"checkpoint.save_folder={folder}"
    code, output = run(argv, tmp_path / "resumed", env=AWAY)
    assert code == 0 and output.count("W&B cannot be reached: CommError: Run initialization") == 1, output
    assert not list(wandbs(folder))
    code, output = run(command(shards, folder, *ALL_PLACES), tmp_path / "later", env=ENV)
    assert code == 0, output
    compare(folder, undisturbed(1))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="needs the package mlflow-skinny")
def test_a_killed_run_is_one_run_in_mlflow(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: Callable[[int], Path]
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # newer versions prefer a database
    uri, folder = f"file:{tmp_path}/mlruns", tmp_path / "run"
    argv = command(shards, folder, f"loggers.mlflow={{experiment: test, tracking_uri: '{uri}'}}")
    for kill, step in enumerate((3, 7)):
        started = start(argv, tmp_path / f"log{kill}", env={"MLFLOW_ALLOW_FILE_STORE": "true"})
        started.kill_when(lambda step=step: len(metrics_if_there(folder)) >= step)  # type: ignore[misc]
    code, output = run(argv, tmp_path / "last", env={"MLFLOW_ALLOW_FILE_STORE": "true"})
    assert code == 0, output
    expected = metrics_of(folder)
    assert expected == metrics_of(undisturbed(1))
    client = importlib.import_module("mlflow").MlflowClient(tracking_uri=uri)
    (found,) = client.search_runs([client.get_experiment_by_name("test").experiment_id])
    assert (found.info.status, found.data.params["optimizer.lr"]) == ("FINISHED", "0.01")
    for name in ("train/loss", "lr", "image_px", "epoch", "val/loss", "val/top1", "val/top5"):
        points = [(point.step, point.value) for point in client.get_metric_history(found.info.run_id, name)]
        assert points == [(step, row[name]) for step, row in expected.items() if name in row]


def metrics_if_there(folder: Path) -> Rows:
    return metrics_of(folder) if (folder / METRICS_NAME).exists() else {}


@pytest.mark.slow
@pytest.mark.s3
def test_with_a_save_folder_in_s3_another_machine_goes_on_with_the_table(
    shards: Path, undisturbed: Callable[[int], Path], tmp_path: Path, s3_server: S3Server, s3_folder: str
) -> None:
    """Each start is a machine of its own: all that they share is the bucket."""
    place = open_place(s3_folder)
    argv = command(shards, s3_folder, "loggers.file=false", "loggers.tensorboard=true", "checkpoint.keep=9")
    names = [f"run_name=machine{number}-{tmp_path.name}" for number in range(2)]
    roots = [REPOSITORY / "runs" / name.partition("=")[2] for name in names]
    try:
        started = start([*argv, names[0]], tmp_path / "log0", env=s3_server.env)
        started.kill_when(lambda: "ep1-ba8.pt" in place.names())
        code, output = run([*argv, names[1]], tmp_path / "log1", env=s3_server.env)
        assert code == 0, output
        (tmp_path / METRICS_NAME).write_bytes(place.read(METRICS_NAME))
        assert metrics_of(tmp_path) == metrics_of(undisturbed(1))
        assert list(tensorboards(roots[1])) == list(tensorboards(undisturbed(1)))
    finally:
        for root in roots:
            shutil.rmtree(root, ignore_errors=True)
