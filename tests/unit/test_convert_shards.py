"""The order of samples, the plan, and the bytes of shards."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convert.shards import (
    encode_index,
    encode_sample,
    encode_shard,
    index_entry,
    is_our_name,
    plan_shards,
    shard_name,
    shuffled_ids,
)
from convert.sources import Sample

LIMIT = 4000
ORDER_OF_TEN = [4, 1, 7, 0, 8, 5, 6, 9, 2, 3]


def samples(count: int) -> list[Sample]:
    return [Sample(f"train/a/{n:04}.JPEG", 0, 100) for n in range(count)]


def test_the_order_is_a_permutation_that_depends_on_seed_and_split() -> None:
    listing = samples(500)
    order = shuffled_ids(listing, split="train", seed=0)
    assert sorted(order) == list(range(500)) != order
    assert order == shuffled_ids(listing, split="train", seed=0)
    assert order != shuffled_ids(listing, split="train", seed=1)
    assert order != shuffled_ids(listing, split="val", seed=0)


def test_the_order_stays_the_same_from_release_to_release() -> None:
    assert shuffled_ids(samples(10), split="train", seed=0) == ORDER_OF_TEN


def test_a_new_file_moves_no_other() -> None:
    before = [samples(20)[n].key for n in shuffled_ids(samples(20), split="train", seed=0)]
    listing = [Sample("train/a/!first.JPEG", 0, 1), *samples(20)]
    after = [listing[n].key for n in shuffled_ids(listing, split="train", seed=0)]
    assert [key for key in after if "first" not in key] == before


def test_the_plan_covers_every_sample_once_in_order() -> None:
    sizes = [int(size) for size in np.random.default_rng(0).integers(1, 900, 200)]
    runs = list(plan_shards(sizes, LIMIT))
    assert [position for run in runs for position in run] == list(range(200))
    assert len(runs) > 10


def test_an_image_over_the_limit_has_a_shard_of_its_own() -> None:
    assert list(plan_shards([LIMIT * 2, 10, 10, LIMIT * 2], LIMIT)) == [range(0, 1), range(1, 3), range(3, 4)]


def test_a_shard_is_filled_to_the_last_byte_of_the_limit() -> None:
    images = [bytes(300)] * 5
    size = len(encode_shard([encode_sample(0, image, 0) for image in images], LIMIT))
    assert len(str(size)) == len(str(LIMIT))  # the limit is written in the shard
    assert list(plan_shards([300] * 5, size)) == [range(0, 5)]
    assert list(plan_shards([300] * 5, size - 1)) == [range(0, 4), range(4, 5)]


def test_no_samples_make_no_shards() -> None:
    assert list(plan_shards([], LIMIT)) == []


@pytest.mark.parametrize(
    ("name", "ours"),
    [("shard.00000.mds", True), ("shard.123456.mds", True), ("index.json", True)]
    + [(name, False) for name in ("shard.0.mds", "shard.00000.mds.zstd", "notes.txt", "xshard.00000.mds", "")],
)
def test_only_names_that_a_conversion_writes_count_as_ours(name: str, ours: bool) -> None:
    assert is_our_name(name) is ours


def test_a_shard_over_four_gib_is_refused() -> None:
    class Huge(bytes):
        def __len__(self) -> int:
            return 2**32

    with pytest.raises(OverflowError, match="smaller --size-limit"):
        encode_shard([Huge()], LIMIT)


def test_plan_shards_and_index_equal_those_of_mdswriter_byte_for_byte(tmp_path: Path) -> None:
    streaming = pytest.importorskip("streaming")
    sizes = np.random.default_rng(0).integers(1, 60, (40, 2))
    paths = [tmp_path / f"{n}.jpeg" for n in range(40)]
    for path, (width, height) in zip(paths, sizes, strict=True):
        Image.effect_noise((int(width), int(height)), 80).save(path)
    theirs = tmp_path / "theirs"
    with streaming.MDSWriter(
        columns={"i": "int", "x": "jpeg", "y": "int"}, out=str(theirs), hashes=["sha256", "xxh64"], size_limit=LIMIT
    ) as writer:
        for n, path in enumerate(paths):
            writer.write({"i": n, "x": Image.open(path), "y": n % 7})

    entries = []
    for index, run in enumerate(plan_shards([path.stat().st_size for path in paths], LIMIT)):
        shard = encode_shard([encode_sample(n, paths[n].read_bytes(), n % 7) for n in run], LIMIT)
        entries.append(index_entry(shard_name(index), shard, samples=len(run), size_limit_bytes=LIMIT))
        assert shard == (theirs / shard_name(index)).read_bytes()
    assert len(entries) > 3
    assert encode_index(entries) == (theirs / "index.json").read_bytes()
    assert entries == json.loads((theirs / "index.json").read_bytes())["shards"]
