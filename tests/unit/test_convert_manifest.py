"""manifest.json: what goes in comes out, and what is wrong is refused by name."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from imagestream.mds.manifest import (
    ClassInfo,
    Manifest,
    ManifestError,
    MendedFile,
    Options,
    RefusedFile,
    SplitInfo,
    Spread,
    index_fingerprint,
    load_manifest,
    parse_manifest,
)
from imagestream.mds.names import shown

INDEX: dict[str, Any] = {
    "version": 2,
    "shards": [
        {"samples": 3, "raw_data": {"basename": "shard.00000.mds", "bytes": 99, "hashes": {"sha256": "ab"}}},
        {"samples": 2, "raw_data": {"basename": "shard.00001.mds", "bytes": 77, "hashes": {"sha256": "cd"}}},
    ],
}


OPTIONS = Options(
    on_bad="skip",
    size_limit_bytes=1000,
    hashes=("sha256",),
    compression=None,
    resize=None,
    quality=90,
    subsampling="4:2:0",
    classes=None,
    per_class=None,
)


def manifest() -> Manifest:
    spread = Spread(min=1, mean=2.5, max=4)
    split = SplitInfo(
        samples=5,
        shards=2,
        bytes=176,
        histogram=(5, 0),
        width_px=spread,
        height_px=spread,
        image_bytes=spread,
        fingerprint=index_fingerprint(INDEX),
        listing="ef",
        seed=0,
        options=OPTIONS,
        tools={"pillow": "11"},
        mended=(MendedFile(id=1, path="train/a/1", label=0, what="PNG"),),
        refused=(RefusedFile(id=2, path="train/a/2", label=0, reason="empty"),),
    )
    classes = (ClassInfo(index=0, wnid="a", name="ant"), ClassInfo(index=1, wnid="b", name="bee"))
    return Manifest.of(classes, {"train": split})


def edited(**changes: Any) -> bytes:
    value = json.loads(manifest().to_json())
    for path, new in changes.items():
        *parents, last = path.split("__")
        target = value
        for parent in parents:
            target = target[parent]
        target[last] = new
    return json.dumps(value).encode()


@pytest.mark.parametrize("as_folder", [True, False])
def test_a_manifest_survives_the_way_to_disk_and_back(tmp_path: Path, as_folder: bool) -> None:
    path = tmp_path / "manifest.json"
    path.write_bytes(manifest().to_json())
    loaded = load_manifest(tmp_path if as_folder else path)
    assert loaded == manifest()
    assert loaded.to_json() == path.read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"splits__train__samples": 6}, "histogram adds up to 5, not 6"),
        ({"splits__train__histogram": [5]}, "1 entries for 2 classes"),
        ({"splits__train__fingerprint": "00"}, "fingerprint is .* but the content gives"),
        ({"splits__train__sampels": 5}, "splits.train.sampels: Extra inputs"),
        ({"splits__train__samples": "5"}, "splits.train.samples: Input should be a valid integer"),
        ({"classes": [{"index": 1, "wnid": "a", "name": "a"}]}, "listed by index"),
        ({"version": 2}, "version: Input should be 1"),
    ],
)
def test_a_manifest_at_odds_with_itself_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    (tmp_path / "manifest.json").write_bytes(edited(**changes))
    with pytest.raises(ManifestError, match=message) as caught:
        load_manifest(tmp_path)
    assert str(tmp_path / "manifest.json") in str(caught.value)


def test_all_faults_are_reported_at_once(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(edited(version=2, splits__train__samples="5"))
    with pytest.raises(ManifestError, match=r"(?s)version.*splits\.train\.samples"):
        load_manifest(tmp_path)


def test_a_missing_or_truncated_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"manifest\.json does not exist"):
        load_manifest(tmp_path)
    (tmp_path / "manifest.json").write_bytes(manifest().to_json()[:50])
    with pytest.raises(ManifestError, match=r"manifest\.json is not a valid manifest"):
        load_manifest(tmp_path)


def test_fingerprint_depends_on_order_names_sizes_counts_and_hashes_and_on_nothing_else() -> None:
    def changed(edit: Any) -> str:
        index = json.loads(json.dumps(INDEX))
        edit(index)
        return index_fingerprint(index)

    same = index_fingerprint(INDEX)
    assert changed(lambda index: index["shards"][0].update(compression="zstd", size_limit=1)) == same
    assert changed(lambda index: index["shards"].reverse()) != same
    assert changed(lambda index: index["shards"].pop()) != same
    assert changed(lambda index: index["shards"][0].update(samples=4)) != same
    for key, value in (("basename", "x"), ("bytes", 98), ("hashes", {"sha256": "ac"})):
        assert changed(lambda index, k=key, v=value: index["shards"][0]["raw_data"].update({k: v})) != same


def test_fingerprint_of_an_index_without_hashes_is_defined() -> None:
    bare = {"shards": [{"samples": 1, "raw_data": {"basename": "s", "bytes": 1, "hashes": {}}}]}
    assert len(index_fingerprint(bare)) == 64


@pytest.mark.parametrize("index", [{}, {"shards": [{"samples": 1}]}, {"shards": 3}])
def test_fingerprint_of_something_else_is_refused(index: dict[str, Any]) -> None:
    with pytest.raises(ManifestError, match="not an MDS index"):
        index_fingerprint(index)


def test_class_names_are_part_of_the_dataset_fingerprint() -> None:
    one = manifest()
    other = Manifest.of((one.classes[0], ClassInfo(index=1, wnid="c", name="bee")), one.splits)
    assert one.fingerprint != other.fingerprint


def test_convert_imports_neither_torch_nor_streaming_nor_boto3() -> None:
    code = "import convert.imagenet_to_mds, sys; print(sorted({'torch', 'streaming', 'boto3'} & set(sys.modules)))"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True).stdout == "[]\n"


def test_what_makes_two_conversions_differ_is_named() -> None:
    here = manifest().splits["train"].identity
    assert here.samples == 6  # the refused one is in the listing too
    assert here.differences(here) == []
    lenient = here.model_copy(update={"options": OPTIONS.model_copy(update={"on_bad": "fail"})})
    assert here.differences(lenient) == []
    options = OPTIONS.model_copy(update={"resize": "max=400"})
    other = here.model_copy(update={"seed": 3, "options": options, "tools": {"pillow": "12"}, "listing": "x"})
    assert here.differences(other) == [
        "the source: other names, classes or sizes",
        "--seed: 0 there, 3 now",
        "--resize: None there, max=400 now",
        "the version of pillow: 11 there, 12 now",
    ]
    assert here.differences(other, encoders=False)[-1] == "--resize: None there, max=400 now"
    assert here.differences(here.model_copy(update={"tools": {**here.tools, "format": "2"}})) == [
        "the format of conversions: 1 there, 2 now"
    ]
    assert not here.differences(here.model_copy(update={"tools": {**here.tools, "format": "1", "convert": "0.2"}}))
    assert here.differences(here.model_copy(update={"listing": "x", "samples": 7})) == [
        "the source: 6 files there, 7 now"
    ]


def test_what_a_stranger_wrote_reaches_no_terminal_as_it_is() -> None:
    with pytest.raises(ManifestError) as raised:
        parse_manifest(b'{"splits": {"\\u001b]0;owned\\u0007": 1}}', where="manifest.json")
    assert r"splits.\x1b]0;owned\x07" in str(raised.value) and "\x1b" not in str(raised.value)


def test_control_characters_are_shown_and_lines_stay_lines() -> None:
    assert shown("a\tb\nc") == "a\tb\nc"
    assert shown("\x1b[2J\r\x9b\u202e\x7f é") == r"\x1b[2J\r\x9b\u202e\x7f é"
