"""Fixtures that more than one kind of test needs."""

import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from tests.s3_server import S3Server, running_s3_server  # noqa: E402  # found only now


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever asks for the S3 server is marked `s3`."""
    for item in items:
        if "s3_server" in getattr(item, "fixturenames", ()):
            item.add_marker("s3")


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server on free loopback ports, with one bucket."""
    with running_s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3_folder(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty s3:// folder of this test's own; this process can reach it too."""
    for name, value in s3_server.env.items():
        monkeypatch.setenv(name, value)
    return f"s3://{s3_server.bucket}/{uuid.uuid4().hex}"


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small MDS dataset: 100 train and 23 val images of 4 classes, in several shards; made by the converter."""
    from convert.imagenet_to_mds import main

    source, out = tmp_path_factory.mktemp("images"), tmp_path_factory.mktemp("shards") / "mds"
    make_images(source, {"train": 25, "val": 6}, classes=4, leave_out=1)
    code = main(["--source", str(source), "--out", str(out), "--workers", "1", "--size-limit", "20KB"])
    assert code == 0
    return out


def make_images(folder: Path, per_class: dict[str, int], *, classes: int, leave_out: int = 0) -> None:
    """Write small JPEGs whose colour tells their class, of various sizes; the last val class lacks `leave_out`."""
    rng = np.random.default_rng(0)
    for split, count in per_class.items():
        for label in range(classes):
            target = folder / split / f"class{label}"
            target.mkdir(parents=True)
            last_of_val = split == "val" and label == classes - 1
            for index in range(count - (leave_out if last_of_val else 0)):
                height, width = (int(edge) for edge in rng.integers(36, 72, size=2))
                noise = rng.integers(0, 120, size=(height, width, 3))
                noise[:, :, label % 3] += 60 + 25 * (label // 3)
                Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(target / f"{index:03}.jpg", quality=90)
