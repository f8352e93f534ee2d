"""A run's model is exported, and others get the same classes from each file, with none of our code."""

import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from streaming.base.format import reader_from_json

from imagestream.mds.records import Records
from tests import processes
from tests.conftest import REPOSITORY
from tests.integration.problem import command, record_of
from tests.s3_server import S3Server

pytestmark = pytest.mark.slow
run = functools.partial(processes.run, real_network=True)
FILES = ("model.safetensors", "model.torchscript.pt", "model.pt2", "model.onnx")


@pytest.fixture(scope="module")
def runs(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with BlurPool and EMA, and a plain one."""
    folder = tmp_path_factory.mktemp("runs")
    for name, more in {"blurred": (), "plain": ("algorithms=[{name: channels_last}]", "max_duration=1ep")}.items():
        code, output = run(command(shards, folder / name, *more, "checkpoint.keep_best=top1"), folder / f"{name}.log")
        assert code == 0, output
    return folder


@pytest.fixture(scope="module")
def images(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The validation images as files, by sample id."""
    folder, split = tmp_path_factory.mktemp("images"), shards / "val"
    entries = json.loads((split / "index.json").read_text())["shards"]
    records = Records([reader_from_json(str(split), None, entry) for entry in entries])
    for shard, entry in enumerate(entries):
        for at in range(entry["samples"]):
            (folder / f"{records.sample_id(shard, at):04}.jpg").write_bytes(records.read(shard, at)[0])
    return folder


def export(argv: list[str], log: Path, env: dict[str, str] | None = None) -> str:
    code, output = run(argv, log, program="train.export", env=env)
    assert code == 0, output
    return output


def as_others_load(exported: Path, images: Path, *more: str) -> dict[str, Any]:
    argv = [sys.executable, "-I", "-W", "ignore", str(REPOSITORY / "tests/integration/load_exported.py")]
    done = subprocess.run(
        [*argv, str(exported), str(images), *more], cwd=exported, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", ["blurred", pytest.param("plain", marks=pytest.mark.exhaustive)])
def test_others_get_the_same_classes_from_each_file(
    name: str, runs: Path, shards: Path, images: Path, tmp_path: Path
) -> None:
    export([str(runs / name), "--to", str(tmp_path / "exported"), "--workers", "0"], tmp_path / "log")
    scores = {row["batch"]: row["top1"] for row in record_of(runs / name)["evaluations"]}
    best = max(scores, key=lambda batch: scores[batch])
    (checkpoint,) = (runs / name).glob(f"*-ba{best}.pt")
    argv = [str(checkpoint), "--data", str(shards), "--workers", "0", "--predictions", str(tmp_path / "p.parquet")]
    code, output = run(argv, tmp_path / "evaluate", program="train.evaluate")
    assert code == 0, output
    expected = [classes[0] for classes in pq.read_table(tmp_path / "p.parquet")["classes"].to_pylist()]
    found = as_others_load(tmp_path / "exported", images)
    assert found["classes"] == ["class0", "class1", "class2", "class3"]
    assert {file: found[file] for file in FILES} == dict.fromkeys(FILES, expected)
    card = (tmp_path / "exported/README.md").read_text()
    hits = round(scores[best] * 23)
    assert f"all 23 images of the split | {scores[best]:.2%} ({hits})" in card
    assert f"the run's own evaluation, 23 images | {scores[best]:.2%} ({hits})" in card
    assert (f"`{checkpoint.name}`" in card) and (record_of(runs / name)["dataset"]["fingerprint"] in card)


def test_of_a_run_with_ema_either_weights_are_exported(runs: Path, tmp_path: Path) -> None:
    cards = {}
    for weights in ("averaged", "trained"):
        out = tmp_path / weights
        export(
            [str(runs / "blurred"), "--to", str(out), "--weights", weights, "--formats", "", "--checkpoint", "last"],
            tmp_path / "log",
        )
        assert sorted(path.name for path in out.iterdir()) == [
            *("README.md", "config.json", "model.py", "model.safetensors", "recipe.yaml")
        ]
        cards[weights] = (out / "README.md").read_text()
    assert record_of(runs / "blurred")["weights_sha256"] in cards["averaged"]
    assert record_of(runs / "blurred")["weights_sha256"] not in cards["trained"]


def test_it_goes_from_a_bucket_to_a_bucket_and_an_export_is_replaced_when_told_to(
    shards: Path, s3_folder: str, s3_server: S3Server, tmp_path: Path
) -> None:
    code, output = run(
        command(shards, f"{s3_folder}/run", "max_duration=1ba", "algorithms=[]"), tmp_path / "t", env=s3_server.env
    )
    assert code == 0, output
    argv = [f"{s3_folder}/run", "--to", f"{s3_folder}/model", "--workers", "0"]
    export([*argv, "--formats", "torchscript"], tmp_path / "1", env=s3_server.env)
    code, output = run([*argv, "--formats", ""], tmp_path / "2", program="train.export", env=s3_server.env)
    assert code == 2 and "holds README.md; give another folder, or --replace" in output
    export([*argv, "--formats", "", "--replace"], tmp_path / "3", env=s3_server.env)
    prefix = f"{s3_folder.removeprefix(f's3://{s3_server.bucket}/')}/model/"
    listed = s3_server.client.list_objects_v2(Bucket=s3_server.bucket, Prefix=prefix)["Contents"]
    names = {entry["Key"].removeprefix(prefix) for entry in listed}
    assert names == {"README.md", "config.json", "model.py", "model.safetensors", "recipe.yaml"}


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["nowhere"], "nowhere holds no checkpoint (ep...-ba....pt); give a run's save folder"),
        (["nowhere/ep1-ba2.pt"], "nowhere/ep1-ba2.pt does not exist"),
        (
            ["RUN", "--data", "nowhere"],
            "nowhere/val/index.json does not exist; convert the images first, or correct data= (data= is --data;",
        ),
    ],
)
def test_what_cannot_be_exported_is_named(argv: list[str], expected: str, runs: Path, tmp_path: Path) -> None:
    argv = [str(runs / "plain") if word == "RUN" else word for word in argv]
    code, output = run([*argv, "--to", str(tmp_path / "out")], tmp_path / "log", program="train.export")
    assert code == 2 and expected in output, output
    assert not list(tmp_path.glob("out/*"))
