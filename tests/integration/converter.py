"""The converter: started as a user starts it, from the repository root, or run to its end in a fork."""

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import boto3
import numpy as np
from PIL import Image

from tests.processes import run_program

ROOT = Path(__file__).parents[2]
SMALL_SHARDS = ("--size-limit", "20kb")


def start(*args: object, env: dict[str, str] | None = None, **options: Any) -> "subprocess.Popen[str]":
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.Popen(
        [sys.executable, "convert/imagenet_to_mds.py", *map(str, args)],
        cwd=ROOT,
        env=clean | (env or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def run(*args: object, env: dict[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    """Run it to its end, without the second that each of its processes takes to start (tests/processes.py)."""
    done = run_program("convert.imagenet_to_mds", args, env=env)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def run_command(*args: object, env: dict[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    """Run it to its end, as a user does."""
    process = start(*args, env=env)
    stdout, stderr = process.communicate(timeout=120)
    assert "Traceback" not in stderr, stderr
    return subprocess.CompletedProcess([str(arg) for arg in args], process.returncode, stdout, stderr)


def convert(source: Path, out: object, *args: object, env: dict[str, str] | None = None) -> str:
    done = run("--source", source, "--out", out, "--workers", 1, *SMALL_SHARDS, *args, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def save_noise(path: Path, seed: int, mode: str = "RGB", **options: Any) -> None:
    rng = np.random.default_rng(seed)
    width, height = rng.integers(20, 90, 2)
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, **options)


def save_source(root: Path) -> Path:
    """Write 40 training and 12 validation images of 4 classes, every fifth one grey; return their folder."""
    for split, count in (("train", 10), ("val", 3)):
        for label, name in enumerate(("n01", "n02", "n03", "n10")):
            for n in range(count):
                mode = "L" if n % 5 == 0 else "RGB"
                save_noise(root / split / name / f"{name}_{n}.JPEG", 100 * label + n, mode)
    return root


def save_large_source(root: Path, images: int = 3000) -> Path:
    """Write one image under so many names, enough work to be interrupted in; return the folder."""
    save_noise(root / "train/a/0.JPEG", 0)
    for n in range(1, images):
        os.link(root / "train/a/0.JPEG", root / f"train/a/{n}.JPEG")
    return root


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read_index(out: Path, split: str = "train") -> dict[str, Any]:
    index: dict[str, Any] = json.loads((out / split / "index.json").read_bytes())
    return index


def read_samples(out: Path, split: str = "train") -> list[tuple[int, bytes, int]]:
    """(i, x, y) of every sample in order, by MosaicML's reader, undecoded."""
    from streaming.base.format import reader_from_json

    samples = []
    for entry in read_index(out, split)["shards"]:
        reader = reader_from_json(str(out), split, entry)
        for n in range(reader.samples):
            data = reader.get_sample_data(n)
            size = int.from_bytes(data[:4], "little")
            number, jpeg, label = data[4:12], data[12 : 12 + size], data[12 + size :]
            samples.append((int.from_bytes(number, "little"), jpeg, int.from_bytes(label, "little")))
    return samples


def listing(source: Path, split: str = "train") -> list[Path]:
    return sorted(path for path in (source / split).glob("*/*"))


def wait_for_first_shard(out: Path, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 60
    while not (out / ".convert/train/00000.json").exists():  # the record of the shard, which comes after it
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.005)


def wait_for_end_of_group(group: int) -> None:
    deadline = time.monotonic() + 10
    with contextlib.suppress(ProcessLookupError):
        while True:
            os.killpg(group, 0)
            assert time.monotonic() < deadline, "a worker outlived its parent"
            time.sleep(0.05)


def assert_only_whole_shards(out: Path) -> None:
    for path in out.rglob("*"):
        if path.name.startswith("shard."):
            data = path.read_bytes()
            count = int.from_bytes(data[:4], "little")
            assert int.from_bytes(data[4 * (count + 1) : 4 * (count + 2)], "little") == len(data)


def bucket_tree(server: Any, prefix: str) -> dict[str, bytes]:
    client = boto3.client(
        "s3",
        endpoint_url=server.endpoint_url,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        region_name="us-east-1",
    )
    found = client.list_objects_v2(Bucket=server.bucket, Prefix=prefix + "/").get("Contents", [])
    return {
        item["Key"].removeprefix(prefix + "/"): client.get_object(Bucket=server.bucket, Key=item["Key"])["Body"].read()
        for item in found
    }
