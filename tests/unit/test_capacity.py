"""A run that does not fit its machines is refused before it begins, with what would fit."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from imagestream.data.dataset_files import DatasetFiles
from imagestream.data.opening import check_nodes, check_samples
from imagestream.mds.index import DataError
from tests.conftest import REPOSITORY
from tests.integration.problem import command
from train import capacity
from train.capacity import (
    cache_bytes,
    check_shared_memory,
    check_smallest_pass,
    free_bytes,
    loader_bytes,
    too_few_for_batchnorm,
    warn_of_a_small_cache,
)
from train.config.run_config import Config, ConfigError, load_config


def test_the_blocks_of_all_workers_are_counted_at_the_largest_size() -> None:
    """By hand: 12 workers x (2 + 4) blocks x (256 of 224 px + 64 of 256 px), a byte for each of three colours."""
    changes = ["data.crop_size=224", "data.eval_crop_size=256", "data.eval_resize_size=256", "data.prefetch_factor=2"]
    cfg = load_config("yamls/tiny.yaml", ["data.local=.", *changes])
    expected = 12 * 6 * 3 * (256 * 224 * 224 + 64 * 256 * 256)
    assert loader_bytes(cfg, workers=12, device_batch_size=256, eval_device_batch_size=64) == expected
    assert loader_bytes(cfg, workers=0, device_batch_size=256, eval_device_batch_size=64) == 0


@pytest.mark.parametrize(("canonical", "nodes"), [(64, 1), (64, 2), (64, 64), (64, 128), (1, 3), (6, 3), (2, 4)])
def test_numbers_of_nodes_that_divide_are_accepted(canonical: int, nodes: int) -> None:
    check_nodes(canonical, nodes)


@pytest.mark.parametrize(
    ("canonical", "nodes", "able", "other"), [(64, 3, "2 or 4", 63), (2, 3, "2 or 4", 3), (64, 96, "64 or 128", 96)]
)
def test_others_are_refused_with_those_that_work(canonical: int, nodes: int, able: str, other: int) -> None:
    with pytest.raises(DataError, match=rf"run on {able} nodes or, .*num_canonical_nodes={other}$"):
        check_nodes(canonical, nodes)
    check_nodes(other, nodes)


def a_cache(folder: Path, shards: Path, *changes: str) -> tuple[Config, DatasetFiles]:
    places = [f"data.remote={shards}", f"data.local={folder}", "data.val_split=val"]
    cfg = load_config("yamls/tiny.yaml", [*places, *changes])
    return cfg, DatasetFiles(str(shards), str(folder))


def test_a_disk_that_is_too_small_for_the_cache_is_said_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sizes = {"train": [3_000_000_000, 2_000_000_000], "val": [1_000_000_000]}
    for split, shards in sizes.items():
        (tmp_path / "mds" / split).mkdir(parents=True)
        entries = [
            {
                "column_names": ["x", "y"],
                "column_encodings": ["jpeg", "int"],
                "column_sizes": [None, 8],
                "compression": None,
                "format": "mds",
                "hashes": [],
                "raw_data": {"basename": f"shard.{number:05}.mds", "bytes": size, "hashes": {}},
                "samples": 4,
                "size_limit": None,
                "version": 2,
                "zip_data": None,
            }
            for number, size in enumerate(shards)
        ]
        (tmp_path / "mds" / split / "index.json").write_text(json.dumps({"shards": entries, "version": 2}))
    cache = tmp_path / "not/yet"
    monkeypatch.setattr(capacity, "free_bytes", lambda _: 5_500_000_000)
    cfg, files = a_cache(cache, tmp_path / "mds")
    assert cache_bytes(cfg, files) == 6_000_000_000
    warn_of_a_small_cache(cfg, files)
    assert f"{cache} has 5.5 GB free, and 6 GB of shards are still to come" in caplog.text
    assert cache_bytes(*a_cache(cache, tmp_path / "mds", "data.cache_limit_gb=1.5")) == 2_500_000_000
    caplog.clear()
    (cache / "train").mkdir(parents=True)
    with open(cache / "train/shard.00001.mds", "wb") as there:
        there.truncate(2_000_000_000)
    assert cache_bytes(cfg, files) == 4_000_000_000
    warn_of_a_small_cache(cfg, files)
    assert not caplog.text
    in_place = load_config("yamls/tiny.yaml", [f"data.local={tmp_path / 'mds'}", "data.remote=null"])
    assert cache_bytes(in_place, DatasetFiles(None, str(tmp_path / "mds"))) == 0


def test_what_is_free_is_of_the_disk_where_the_cache_will_be(tmp_path: Path) -> None:
    assert free_bytes(str(tmp_path / "not/yet")) == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.1)


def test_memory_that_is_freed_in_a_moment_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    free = iter([1, 1, 500])
    monkeypatch.setattr("time.sleep", lambda _: None)
    monkeypatch.setattr(capacity, "free_shared_memory", lambda: next(free))
    check_shared_memory(100)


def test_too_little_is_refused_with_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "SECONDS_TO_BE_FREED", 0.0)
    monkeypatch.setattr(capacity, "free_shared_memory", lambda: 64_000_000)
    with pytest.raises(ConfigError, match=r"0.064 GB are free in /dev/shm, .* up to 15 GB; .*--shm-size=17g, or lower"):
        check_shared_memory(15_000_000_000)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("options", [["--dry-run"], []])
def test_a_container_with_too_little_shared_memory_is_refused(shards: Path, tmp_path: Path, options: list[str]) -> None:
    if os.geteuid() != 0 or not shutil.which("unshare"):
        pytest.skip("mounts a small /dev/shm: run it as root, with unshare")
    small = 'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$@"'
    argv = [*options, *command(shards, tmp_path / "run", "data.num_workers=16")]
    line = ["unshare", "--mount", "sh", "-c", small, "sh", sys.executable, "train/main.py", *argv]
    done = subprocess.run(line, cwd=REPOSITORY, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 2, done.stderr
    assert "GB are free in /dev/shm" in done.stderr and "Traceback" not in done.stderr


HALF = "algorithms=[{name: progressive_resizing, initial_scale: 0.5}]"


@pytest.mark.parametrize(
    ("device_batch_size", "changes", "fits"),
    [
        (1, ["data.crop_size=32"], False),
        (1, ["data.crop_size=48"], True),
        (1, ["data.crop_size=64", HALF], False),
        (16, ["data.crop_size=32", "device_train_microbatch_size=15"], False),
        (16, ["data.crop_size=32", "device_train_microbatch_size=1"], False),
        (16, ["data.crop_size=32", "device_train_microbatch_size=14"], True),
        (16, ["data.crop_size=32", "device_train_microbatch_size=100"], True),
        (2, ["data.crop_size=32"], True),
    ],
)
def test_a_pass_of_one_image_that_becomes_one_pixel_is_refused(
    device_batch_size: int, changes: list[str], fits: bool
) -> None:
    cfg = load_config("yamls/tiny.yaml", ["data.local=.", "algorithms=[]", *changes])
    if fits:
        check_smallest_pass(cfg, device_batch_size)
        return
    with pytest.raises(ConfigError, match="a single image of 32 px"):
        check_smallest_pass(cfg, device_batch_size)


@pytest.mark.parametrize(("nodes", "images"), [(1, 256), (2, 128), (4, 64), (8, 32), (16, 16), (32, 8), (64, 4)])
def test_full_yaml_on_32_nodes_or_more_is_warned_of_for_batchnorm(nodes: int, images: int) -> None:
    """By hand: 2,048 images over 8 GPUs a node."""
    cfg = load_config("yamls/full.yaml", check_paths=False)
    gpus = 8 * nodes
    said = too_few_for_batchnorm(cfg, device_batch_size=2048 // gpus, world_size=gpus)
    expected = (
        f"BatchNorm takes its statistics from {images} images at a time, and from fewer than 16 accuracy falls "
        "(arXiv:1803.08494); what helps is a larger global_batch_size or fewer GPUs or model.sync_batchnorm=true"
    )
    assert said == (expected if nodes > 16 else "")
    cfg = load_config("yamls/full.yaml", ["model.sync_batchnorm=true"], check_paths=False)
    assert too_few_for_batchnorm(cfg, device_batch_size=2048 // gpus, world_size=gpus) == ""


@pytest.mark.parametrize(
    ("device_batch_size", "world_size", "images", "ways"),
    [
        (64, 1, 16, ""),
        (64, 1, 8, "a larger global_batch_size or a larger device_train_microbatch_size"),
        (36, 1, 32, "a larger global_batch_size or a larger device_train_microbatch_size"),  # the last pass has 4
        (8, 1, 64, "a larger global_batch_size"),
        (4, 2, 64, "a larger global_batch_size or fewer GPUs"),  # 8 together would be too few, too
    ],
)
def test_the_smallest_pass_counts_and_what_helps_is_named(
    device_batch_size: int, world_size: int, images: int, ways: str
) -> None:
    cfg = load_config("yamls/tiny.yaml", ["data.local=.", f"device_train_microbatch_size={images}"])
    said = too_few_for_batchnorm(cfg, device_batch_size=device_batch_size, world_size=world_size)
    assert said.partition("what helps is ")[2] == ways


def test_canonical_nodes_without_a_sample_are_refused() -> None:
    check_samples(100, 100)
    with pytest.raises(DataError, match=r"num_canonical_nodes: 101 is more than the 100 samples"):
        check_samples(101, 100)
