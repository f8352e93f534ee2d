"""MDS datasets that others made: each trains and resumes exactly, or is refused in a line."""

import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from streaming import MDSWriter
from streaming.base.util import merge_index

from imagestream.mds.index import DataError
from tests.integration.problem import command, record_of, what_must_match
from tests.processes import run, start
from train.config.run_config import load_config
from train.data import dataset_files

MAKERS: dict[str, Callable[[Any], object]] = {
    "jpeg": lambda data: data,
    "jpegarray": lambda data: [data],
    "list[jpeg]": lambda data: [Image.open(io.BytesIO(data))],
    "bytes": lambda data: data,
    "png": lambda data: Image.open(io.BytesIO(data)),
    "pil": lambda data: Image.open(io.BytesIO(data)),
    "int": int,
    "uint16": int,
    "str_int": int,
    "ndarray:int64": lambda label: np.array([label]),
    "ndarray": lambda label: np.eye(4)[label],
    "float32": float,
}


def jpeg(rng: np.random.Generator, label: int) -> bytes:
    pixels = rng.integers(0, 120, size=(40, 50, 3), dtype=np.uint8)
    pixels[:, :, label % 3] += 100
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def write(folder: Path, image: tuple[str, str], label: tuple[str, str], **more: Any) -> None:
    """A dataset whose splits were written by two processes and joined, as streaming's own guide does it."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 50), ("val", 10)):
        for part in range(2):
            columns = {image[0]: image[1], label[0]: label[1]}
            with MDSWriter(out=str(folder / split / f"part{part}"), columns=columns, size_limit=8000, **more) as writer:
                for number in range(count):
                    encoded = jpeg(rng, number % 4)
                    file = MAKERS[image[1]](encoded) if image[1] != "jpeg" else Image.open(io.BytesIO(encoded))
                    writer.write({image[0]: file, label[0]: MAKERS[label[1]](number % 4)})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            merge_index(str(folder / split), keep_local=True)


TRAINED = [
    ("jpeg", "int", "image", "label", "gz"),
    ("jpeg", "uint16", "image", "y", "br:3"),
    ("png", "int", "x", "y", "bz2"),
    ("bytes", "int", "x", "label", "snappy"),
    ("jpeg", "int", "x", "y", "zstd:7"),
    ("jpeg", "int", "image", "label", None),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("image", "label", "image_name", "label_name", "compression"),
    [TRAINED[0], *(pytest.param(*case, marks=pytest.mark.exhaustive) for case in TRAINED[1:])],
)
def test_it_trains_and_a_killed_run_ends_with_identical_weights(
    tmp_path: Path, image: str, label: str, image_name: str, label_name: str, compression: str | None
) -> None:
    write(tmp_path / "mds", (image_name, image), (label_name, label), compression=compression, hashes=["sha1"])
    assert len(json.loads((tmp_path / "mds/train/index.json").read_text())["shards"]) > 10
    columns = f"data.columns={{image: {image_name}, label: {label_name}}}"
    records = []
    for name in ("undisturbed", "interrupted"):
        argv = command(tmp_path / f"cache-{name}", tmp_path / name, f"data.remote={tmp_path}/mds", columns)
        argv += ["model.num_classes=4", "checkpoint.save_interval=1ba", "max_duration=1ep"]
        if name == "interrupted":
            started = start(argv, tmp_path / "killed")
            started.kill_when(lambda: any((tmp_path / "interrupted").glob("ep0-ba3.pt")))
        code, output = run(argv, tmp_path / f"{name}.log")
        assert code == 0, output
        records.append(what_must_match(record_of(tmp_path / name)))
    assert "resume: from" in output
    assert records[0] == records[1]


@pytest.mark.parametrize(
    ("image", "label", "override", "words"),
    [
        (
            "pil",
            "int",
            "",
            r"its columns are x \(pil\), y \(int\); needed are x \(jpeg, png, .*\), so convert the images",
        ),
        (
            "jpeg",
            "str_int",
            "",
            r"y \(str_int\); needed are .* and y \(int, uint16, \.\.\.\), so convert the images anew",
        ),
        ("jpegarray", "int", "", r"x \(jpegarray\), y \(int\); needed are x \(jpeg, png, bytes\)"),
        ("list[jpeg]", "int", "", r"x \(list\[jpeg\]\), y \(int\); needed are x \(jpeg, png, bytes\)"),
        ("jpeg", "ndarray:int64", "", r"y \(ndarray:int64\); needed are"),
        ("jpeg", "ndarray", "", r"y \(ndarray\); needed are"),
        ("jpeg", "float32", "", r"y \(float32\); needed are"),
        (
            "jpeg",
            "int",
            "data.columns.image=image",
            r"give the names of the columns, as in columns: \{image: image",
        ),
    ],
)
def test_what_cannot_be_trained_on_is_refused_in_a_line(
    tmp_path: Path, image: str, label: str, override: str, words: str
) -> None:
    write(tmp_path, ("x", image), ("y", label))
    cfg = load_config("yamls/tiny.yaml", [f"data.local={tmp_path}", *filter(None, [override])]).data
    with pytest.raises(DataError, match=words) as raised:
        dataset_files(cfg).index("train")
    assert str(raised.value).isprintable()
