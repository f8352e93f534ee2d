"""The bytes of shards and of their index."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convert.plan import plan_shards
from imagestream.mds.shards import ShardFormat, encode_index, encode_sample, encode_shard, is_our_name

FORM = ShardFormat(4000)


@pytest.mark.parametrize(
    ("name", "ours"),
    [(name, True) for name in ("shard.00000.mds", "shard.123456.mds", "shard.00000.mds.zstd", "index.json")]
    + [(name, False) for name in ("shard.0.mds", "shard.00000.mds.gz", "notes.txt", "xshard.00000.mds", "")],
)
def test_only_names_that_a_conversion_writes_count_as_ours(name: str, ours: bool) -> None:
    assert is_our_name(name) is ours


def test_a_shard_over_four_gib_is_refused() -> None:
    class Huge(bytes):
        def __len__(self) -> int:
            return 2**32

    with pytest.raises(OverflowError, match="smaller --size-limit"):
        encode_shard(0, [Huge()], FORM)


@pytest.mark.parametrize("compression", [None, "zstd:3"])
@pytest.mark.parametrize("hashes", [("sha256", "xxh64"), ("md5", "sha1", "xxh128"), ()])
def test_shards_and_index_equal_those_of_mdswriter_byte_for_byte(
    tmp_path: Path, compression: str | None, hashes: tuple[str, ...]
) -> None:
    streaming = pytest.importorskip("streaming")
    form = ShardFormat(4000, hashes, compression)
    sizes = np.random.default_rng(0).integers(1, 60, (40, 2))
    paths = [tmp_path / f"{n}.jpeg" for n in range(40)]
    for path, (width, height) in zip(paths, sizes, strict=True):
        Image.effect_noise((int(width), int(height)), 80).save(path)
    theirs = tmp_path / "theirs"
    options = {"hashes": list(hashes), "size_limit": 4000, "compression": compression}
    with streaming.MDSWriter(columns={"i": "int", "x": "jpeg", "y": "int"}, out=str(theirs), **options) as writer:
        for n, path in enumerate(paths):
            writer.write({"i": n, "x": Image.open(path), "y": n % 7})

    entries = []
    for index, run in enumerate(plan_shards([path.stat().st_size for path in paths], form)):
        shard = encode_shard(index, [encode_sample(n, paths[n].read_bytes(), n % 7) for n in run], form)
        entries.append(shard.entry)
        assert shard.data == (theirs / shard.file).read_bytes()
    assert len(entries) > 3
    assert encode_index(entries) == (theirs / "index.json").read_bytes()
    assert entries == json.loads((theirs / "index.json").read_bytes())["shards"]
