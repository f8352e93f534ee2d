"""An evaluation is over each sample once, and its figures are the same for any ranks, workers and batches."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from streaming import MDSWriter
from streaming.base.format import reader_from_json

from imagestream.mds.records import Records
from tests.conftest import make_images
from tests.integration.problem import command
from tests.processes import run
from tests.s3_server import S3Server

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=[299, pytest.param(300, marks=pytest.mark.exhaustive)])
def dataset(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A validation split of this many samples, and 16 to train on."""
    from convert.imagenet_to_mds import main

    folder = tmp_path_factory.mktemp(f"count{request.param}")
    make_images(folder / "images", {"train": 2, "val": 38}, classes=8, leave_out=0)
    paths = sorted((folder / "images/val").rglob("*.jpg"))
    for path in paths[request.param :]:
        path.unlink()
    argv = ["--source", str(folder / "images"), "--out", str(folder / "mds"), "--workers", "1"]
    assert main([*argv, "--size-limit", "100KB"]) == 0
    return folder / "mds"


@pytest.fixture(scope="module")
def checkpoint(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    argv = command(dataset, folder, "max_duration=1ba", "algorithms=[]", "data.eval_batch_size=64")
    code, output = run(argv, folder / "log")
    assert code == 0, output
    (path,) = folder.glob("ep*-ba1.pt")
    return path


def labels_by_id(split: Path) -> list[int]:
    """What the shards' own columns `i` and `y` say, by streaming's reader."""
    shards = json.loads((split / "index.json").read_text())["shards"]
    readers = [reader_from_json(str(split), None, shard) for shard in shards]
    rows = {reader[at]["i"]: reader[at]["y"] for reader in readers for at in range(reader.samples)}
    return [rows[sample_id] for sample_id in sorted(rows)]


def evaluate(checkpoint: Path, dataset: Path, out: Path, *more: str, ranks: int = 1) -> dict[str, Any]:
    argv = [str(checkpoint), "--data", str(dataset), "--predictions", f"{out}.parquet", "--json", f"{out}.json", *more]
    code, output = run(argv, Path(f"{out}.log"), ranks=ranks, program="train.evaluate")
    assert code == 0, output
    figures: dict[str, Any] = json.loads(Path(f"{out}.json").read_text())
    for name, value in figures.items():
        assert f"{name:18} {value}\n" in output
    return figures


def test_figures_and_predictions_are_the_same_for_1_to_4_ranks(
    dataset: Path, checkpoint: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    count = 300 if "300" in request.node.name else 299
    ways = {"1": (1, 0, 60), "2": (2, 2, 60), "3": (3, 0, 60), "4": (4, 0, 61), "1-small": (1, 2, 7)}
    figures, tables = {}, {}
    for name, (ranks, workers, batch) in ways.items():
        more = ("--workers", str(workers), "--batch-size", str(batch))
        figures[name] = evaluate(checkpoint, dataset, tmp_path / name, *more, ranks=ranks)
        tables[name] = pq.read_table(tmp_path / f"{name}.parquet")
    assert figures["1"]["samples_evaluated"] == count
    assert [name for name in ways if figures[name] != figures["1"]] == []
    assert [name for name in ways if not tables[name].equals(tables["1"])] == []
    table = tables["1"]
    assert table["sample_id"].to_pylist() == list(range(count))
    assert sorted(table["position"].to_pylist()) == list(range(count)) != table["position"].to_pylist()
    assert table["label"].to_pylist() == labels_by_id(dataset / "val")
    assert table["label_name"].to_pylist() == [f"class{label}" for label in table["label"].to_pylist()]
    assert table["class_names"].to_pylist() == [[f"class{n}" for n in row] for row in table["classes"].to_pylist()]
    images = dataset.parent / "images"
    assert table["path"].to_pylist() == sorted(str(path.relative_to(images)) for path in images.rglob("val/*/*.jpg"))
    classes = np.array(table["classes"].to_pylist())
    labels, losses = table["label"].to_numpy(), table["loss"].to_numpy()
    assert (classes[:, 0] == labels).mean() == figures["1"]["top1"]
    assert (classes == labels[:, None]).any(axis=1).mean() == figures["1"]["top5"]
    for order in (losses, losses[::-1], np.random.default_rng(0).permutation(losses)):
        assert order.mean() == figures["1"]["loss"]
    probabilities = np.array(table["probabilities"].to_pylist())
    assert (np.diff(probabilities, axis=1) <= 0).all() and (probabilities.sum(axis=1) <= 1 + 1e-6).all()
    hit = classes[:, 0] == labels
    assert np.abs(-np.log(probabilities[hit, 0]) - losses[hit]).max() < 1e-5


def test_a_runs_folder_stands_for_its_best_checkpoint_or_its_newest(
    dataset: Path, checkpoint: Path, tmp_path: Path
) -> None:
    """Both have the same weights; the record says that the first one was better."""
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    for name in ("ep0-ba1.pt", "ep0-ba2.pt"):
        shutil.copy(checkpoint, run_folder / name)
    scores = [{"batch": 1, "top1": 0.5}, {"batch": 2, "top1": 0.25}]
    (run_folder / "run.json").write_text(json.dumps({"evaluations": scores}))
    best = evaluate(run_folder, dataset, tmp_path / "best", "--workers", "0", ranks=2)
    last = evaluate(run_folder, dataset, tmp_path / "last", "--workers", "0", "--checkpoint", "last")
    assert (best["checkpoint"], last["checkpoint"]) == ("ep0-ba1.pt", "ep0-ba2.pt")
    assert best | {"checkpoint": ""} == last | {"checkpoint": ""}
    argv = [str(tmp_path), "--data", str(dataset)]
    code, output = run(argv, tmp_path / "none", ranks=2, program="train.evaluate")
    assert code == 2 and output.count(f"{tmp_path} holds no checkpoint (ep...-ba....pt)") == 1, output


def test_predictions_go_to_s3_and_a_place_that_cannot_be_written_is_refused_first(
    shards: Path, s3_folder: str, s3_server: S3Server, tmp_path: Path
) -> None:
    code, output = run(
        command(shards, tmp_path, "max_duration=1ba", "algorithms=[]", "eval_interval=2ep"), tmp_path / "log"
    )
    assert code == 0, output
    argv = [str(tmp_path / "ep0-ba1.pt"), "--data", str(shards), "--workers", "0", "--predictions"]
    code, output = run(
        [*argv, f"{s3_folder}/out.parquet"], tmp_path / "s3", program="train.evaluate", env=s3_server.env
    )
    assert code == 0, output
    key = f"{s3_folder.removeprefix(f's3://{s3_server.bucket}/')}/out.parquet"
    (tmp_path / "out.parquet").write_bytes(s3_server.client.get_object(Bucket=s3_server.bucket, Key=key)["Body"].read())
    assert pq.read_table(tmp_path / "out.parquet")["sample_id"].to_pylist() == list(range(23))
    code, output = run([*argv, "/proc/no/out.parquet"], tmp_path / "refused", program="train.evaluate")
    assert code == 2
    assert "/proc/no is not writable" in output and "top1" not in output


def test_with_mirror_images_it_says_so_and_the_figures_are_others(
    dataset: Path, checkpoint: Path, tmp_path: Path
) -> None:
    plain = evaluate(checkpoint, dataset, tmp_path / "plain", "--workers", "0")
    mirrored = evaluate(checkpoint, dataset, tmp_path / "mirrored", "--workers", "0", "--tta", "flip")
    assert "tta" not in plain and mirrored["tta"] == "flip"
    assert mirrored["loss"] != plain["loss"] and mirrored["samples_evaluated"] == plain["samples_evaluated"]
    loss = pq.read_table(tmp_path / "mirrored.parquet")["loss"].to_numpy()
    assert loss.mean() == mirrored["loss"]


def test_columns_with_other_names_give_the_same_figures(dataset: Path, checkpoint: Path, tmp_path: Path) -> None:
    index = json.loads((dataset / "val/index.json").read_text())
    readers = [reader_from_json(str(dataset / "val"), None, shard) for shard in index["shards"]]
    records, renamed = Records(readers), tmp_path / "renamed"
    with MDSWriter(out=str(renamed / "val"), columns={"image": "bytes", "label": "int"}) as writer:
        for shard, reader in enumerate(readers):
            for at in range(reader.samples):
                image, label = records.read(shard, at)
                writer.write({"image": image, "label": label})
    theirs = evaluate(checkpoint, renamed, tmp_path / "renamed_figures", "--columns", "image,label", "--workers", "0")
    assert theirs == evaluate(checkpoint, dataset, tmp_path / "figures", "--workers", "0")
    argv = [str(checkpoint), "--data", str(renamed), "--workers", "0", "--columns"]
    code, output = run([*argv, "picture,label"], tmp_path / "wrong", program="train.evaluate")
    assert (code, "Traceback" in output) == (2, False) and "its columns are image (bytes), label (int)" in output, (
        output
    )


def test_a_checkpoint_is_scored_on_its_own_classes_or_not_at_all(shards: Path, tmp_path: Path) -> None:
    """A dataset of some of the classes numbers them anew; a dataset of others is refused."""
    from convert.imagenet_to_mds import main

    code, output = run(
        command(shards, tmp_path / "run", "max_duration=1ba", "algorithms=[]", "eval_interval=2ep"), tmp_path / "log"
    )
    assert code == 0, output
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["dataset"]["classes"] == ["class0", "class1", "class2", "class3"]
    make_images(tmp_path / "images", {"train": 25, "val": 6}, classes=4, leave_out=1)  # those of `shards`
    for split in ("train", "val"):
        shutil.rmtree(tmp_path / "images" / split / "class0")
    for name, folder in (("some", "class1"), ("others", "class9")):
        if folder != "class1":
            for split in ("train", "val"):
                (tmp_path / "images" / split / "class1").rename(tmp_path / "images" / split / folder)
        assert main(["--source", str(tmp_path / "images"), "--out", str(tmp_path / name), "--workers", "1"]) == 0
    checkpoint = tmp_path / "run/ep0-ba1.pt"
    evaluate(checkpoint, shards, tmp_path / "whole")
    figures = evaluate(checkpoint, tmp_path / "some", tmp_path / "part")
    whole, part = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("whole", "part"))
    mine = whole.filter(pc.greater(whole["label"], 0))
    assert figures["samples_evaluated"] == len(mine) == 17
    for column in ("label", "classes", "probabilities", "loss"):
        assert part[column].to_pylist() == mine[column].to_pylist()
    argv = [str(checkpoint), "--data", str(tmp_path / "others"), "--workers", "0"]
    code, output = run(argv, tmp_path / "refused", program="train.evaluate")
    assert code == 2 and "top1" not in output
    assert (
        "others/val has classes that the model does not know: class9 (1 of 3); the model's are class0, class1" in output
    )


def test_the_trained_weights_beside_the_averaged_ones(shards: Path, tmp_path: Path) -> None:
    """With BlurPool, whose layers have other names; without EMA the same training ends with the same weights."""
    weights = {}
    for name, more in (("ema", ", {name: ema, half_life: 2ba, update_interval: 1ba}"), ("plain", "")):
        argv = command(shards, tmp_path / name, "max_duration=4ba", f"algorithms=[{{name: blurpool}}{more}]")
        code, output = run(argv, tmp_path / f"{name}.log")
        assert code == 0, output
        (path,) = (tmp_path / name).glob("ep*-ba4.pt")
        for kind in ("averaged", "trained"):
            found = evaluate(path, shards, tmp_path / f"{name}-{kind}", "--weights", kind)
            weights[name, kind] = found["weights_sha256"]
    assert weights["ema", "trained"] == weights["plain", "trained"] == weights["plain", "averaged"]
    assert weights["ema", "averaged"] != weights["ema", "trained"]
