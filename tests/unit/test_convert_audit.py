"""The audit passes what is whole, and names each fault of what is not."""

import hashlib
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convert.audit import main
from convert.auditing.findings import SHOWN_PER_KIND, Finding, Findings, Kind
from convert.auditing.shards import ShardToAudit, is_chosen
from convert.manifest import Manifest, dataset_fingerprint, index_fingerprint, load_manifest
from tests.conftest import REPOSITORY

Record = tuple[int, bytes, int]  # id, image, label
FIRST, SECOND, LAST = "train/shard.00000.mds", "train/shard.00001.mds", "val/shard.00000.mds"


@pytest.fixture
def dataset(shards: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(shards, tmp_path / "mds"))


@pytest.fixture
def audit(dataset: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, list[str]]]:
    """Audit the copy: the exit code, and the lines of findings and warnings."""

    def run(*options: str, place: Path = dataset) -> tuple[int, list[str]]:
        code = main([str(place), "--workers", "1", *options])
        *lines, summary = capsys.readouterr().out.splitlines()
        findings = [
            line for line in lines if "; hashes: " not in line and not line.startswith(("no manifest", "report"))
        ]
        warnings = [line for line in findings if line.startswith("warning: ")]
        if len(findings) < SHOWN_PER_KIND:
            assert f"{len(findings) - len(warnings)} finding" in summary
            assert f"{len(warnings)} warning" in summary
        assert "images/s" in summary
        return code, findings

    return run


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def entry_of(dataset: Path, path: str) -> dict[str, Any]:
    split, name = path.split("/")
    index = json.loads((dataset / split / "index.json").read_text())
    return next(entry for entry in index["shards"] if entry["raw_data"]["basename"] == name)


def hash_line(dataset: Path, path: str) -> str:
    """What the audit has to say of a shard whose bytes are not those that were written."""
    xxhash = pytest.importorskip("xxhash")
    promised, data = entry_of(dataset, path)["raw_data"]["hashes"], (dataset / path).read_bytes()
    return (
        f"{path}: sha256 is {hashlib.sha256(data).hexdigest()}, index.json says {promised['sha256']}; "
        f"xxh64 is {xxhash.xxh64(data).hexdigest()}, index.json says {promised['xxh64']}"
    )


def records_of(path: Path) -> list[Record]:
    data = path.read_bytes()
    (count,) = struct.unpack_from("<I", data)
    offsets = struct.unpack_from(f"<{count + 1}I", data, 4)
    found = []
    for number in range(count):
        size, sample_id = struct.unpack_from("<Iq", data, offsets[number])
        start = offsets[number] + 12
        found.append((sample_id, data[start : start + size], struct.unpack_from("<q", data, start + size)[0]))
    return found


def rewrite(dataset: Path, path: str, change: Callable[[list[Record]], None]) -> None:
    """Change a shard's records, and make sizes, hashes, fingerprints and counts fit, as if it had been made so."""
    xxhash = pytest.importorskip("xxhash")
    records, old = records_of(dataset / path), (dataset / path).read_bytes()
    config = old[4 * (len(records) + 2) : struct.unpack_from("<I", old, 4)[0]]
    change(records)
    encoded = [
        struct.pack("<Iq", len(image), number) + image + struct.pack("<q", label) for number, image, label in records
    ]
    offsets = np.cumsum([4 * (len(records) + 2) + len(config), *map(len, encoded)]).astype("<u4")
    data = struct.pack("<I", len(records)) + offsets.tobytes() + config + b"".join(encoded)
    (dataset / path).write_bytes(data)

    split, name = path.split("/")
    index_path = dataset / split / "index.json"
    index = json.loads(index_path.read_text())
    for entry in index["shards"]:
        if entry["raw_data"]["basename"] == name:
            hashes = {"sha256": hashlib.sha256(data).hexdigest(), "xxh64": xxhash.xxh64(data).hexdigest()}
            entry["raw_data"] |= {"bytes": len(data), "hashes": hashes}
            entry["samples"] = len(records)
    index_path.write_text(json.dumps(index))

    def fit(manifest: dict[str, Any]) -> None:
        labels = [label for e in index["shards"] for _, _, label in records_of(index_path.parent / name_of(e))]
        classes = range(len(manifest["classes"]))
        manifest["splits"][split] |= {
            "samples": sum(label in classes for label in labels),
            "bytes": sum(e["raw_data"]["bytes"] for e in index["shards"]),
            "histogram": [labels.count(label) for label in classes],
            "fingerprint": index_fingerprint(index),
        }

    edit_manifest(dataset, fit)


def name_of(entry: dict[str, Any]) -> str:
    return str(entry["raw_data"]["basename"])


def edit_manifest(dataset: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest, and make its fingerprint fit."""
    path = dataset / "manifest.json"
    content = json.loads(path.read_text())
    change(content)
    lenient = Manifest.model_construct(**content)
    splits = {name: type("Split", (), split) for name, split in content["splits"].items()}
    classes = tuple(type("Class", (), info) for info in lenient.classes)
    content["fingerprint"] = dataset_fingerprint(classes, splits)  # type: ignore[arg-type]
    path.write_text(json.dumps(content))


def edit_index(dataset: Path, split: str, change: Callable[[dict[str, Any]], None]) -> None:
    path = dataset / split / "index.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_a_dataset_of_the_converter_passes(audit: Any, dataset: Path) -> None:
    assert audit() == (0, [])


def test_the_helper_that_rewrites_shards_leaves_a_dataset_that_passes(audit: Any, dataset: Path) -> None:
    before = sha256(dataset / FIRST)
    rewrite(dataset, FIRST, lambda records: None)
    assert sha256(dataset / FIRST) == before
    assert audit() == (0, [])


def test_the_command_runs_from_the_repository_with_several_processes(dataset: Path) -> None:
    command = [sys.executable, "convert/audit.py", str(dataset), "--workers", "2"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    *splits, summary = done.stdout.splitlines()
    assert splits[0].startswith("train: 100 samples in ")
    assert splits[0].endswith("4 classes of 25; hashes: sha256, xxh64")
    assert splits[1].startswith("val: 23 samples in ")
    assert summary.startswith(f"{dataset}: 0 findings, 0 warnings; 123 images read, 123 decoded, in ")


def test_several_processes_find_what_one_does_in_the_same_order(dataset: Path, capsys: Any) -> None:
    for path in (FIRST, SECOND, LAST):
        flip(dataset / path, -1)
    printed = []
    for workers in ("1", "2"):
        assert main([str(dataset), "--workers", workers]) == 1
        printed.append(capsys.readouterr().out.splitlines()[:-1])
    assert printed[0] == printed[1]


def test_a_flipped_bit_of_a_pixel_is_found_by_the_hashes(audit: Any, dataset: Path) -> None:
    flip(dataset / FIRST, -100)
    code, lines = audit()
    assert (code, lines[0]) == (1, hash_line(dataset, FIRST))


def test_a_wrong_hash_in_the_index_is_named_even_if_the_other_fits(audit: Any, dataset: Path) -> None:
    def damage(index: dict[str, Any]) -> None:
        index["shards"][0]["raw_data"]["hashes"]["xxh64"] = "0" * 16

    right = entry_of(dataset, FIRST)["raw_data"]["hashes"]["xxh64"]
    edit_index(dataset, "train", damage)
    code, lines = audit()
    assert code == 1
    assert f"{FIRST}: xxh64 is {right}, index.json says 0000000000000000" in lines


def test_a_truncated_shard_is_found_by_its_size(audit: Any, dataset: Path) -> None:
    data, samples = (dataset / FIRST).read_bytes(), entry_of(dataset, FIRST)["samples"]
    (dataset / FIRST).write_bytes(data[:-10])
    assert audit() == (
        1,
        [
            f"{FIRST}: has {len(data) - 10:,} bytes, index.json says {len(data):,}",
            "warning: train/index.json: ids and class counts were not compared, "
            f"since {samples} of its records could not be read",
        ],
    )


def test_a_missing_shard_is_named(audit: Any, dataset: Path) -> None:
    (dataset / SECOND).unlink()
    code, lines = audit()
    assert (code, lines[0]) == (1, f"{SECOND}: does not exist, though index.json lists it")


def test_two_shards_in_each_others_place_are_both_named(audit: Any, dataset: Path) -> None:
    first, second = (dataset / FIRST).read_bytes(), (dataset / SECOND).read_bytes()
    (dataset / FIRST).write_bytes(second)
    (dataset / SECOND).write_bytes(first)
    code, lines = audit()
    assert code == 1
    sizes = len(first), len(second)
    assert sizes[0] != sizes[1]
    assert lines[:2] == [
        f"{FIRST}: has {sizes[1]:,} bytes, index.json says {sizes[0]:,}",
        f"{SECOND}: has {sizes[0]:,} bytes, index.json says {sizes[1]:,}",
    ]


def test_a_damaged_offset_is_named_with_its_sample(audit: Any, dataset: Path) -> None:
    data = bytearray((dataset / FIRST).read_bytes())
    struct.pack_into("<I", data, 4 + 4 * 3, 2**32 - 1)
    (dataset / FIRST).write_bytes(data)
    code, lines = audit()
    assert (code, lines[0]) == (1, hash_line(dataset, FIRST))
    assert lines[1].startswith(f"{FIRST}: the offset of sample 4 is ")
    assert "lies before 4,294,967,295" in lines[1]


def test_a_record_whose_columns_do_not_fill_it_is_named(audit: Any, dataset: Path) -> None:
    data = bytearray((dataset / FIRST).read_bytes())
    start = struct.unpack_from("<I", data, 4)[0]
    struct.pack_into("<I", data, start, struct.unpack_from("<I", data, start)[0] - 1)
    (dataset / FIRST).write_bytes(data)
    code, lines = audit()
    assert code == 1
    assert lines[1].startswith(f"{FIRST}: record 0: the columns of a record take ")


def test_a_changed_label_is_found_by_the_class_counts(audit: Any, dataset: Path) -> None:
    (_, _, label), *_ = records_of(dataset / FIRST)

    def change(records: list[Record]) -> None:
        records[0] = (*records[0][:2], (label + 1) % 4)

    histogram = json.loads((dataset / "manifest.json").read_text())["splits"]["train"]["histogram"]
    rewrite(dataset, FIRST, change)
    edit_manifest(dataset, lambda manifest: manifest["splits"]["train"].update(histogram=histogram))
    expected = [
        f"train/index.json: class {label} (class{label}) has 24 samples, manifest.json says 25",
        f"train/index.json: class {(label + 1) % 4} (class{(label + 1) % 4}) has 26 samples, manifest.json says 25",
    ]
    assert audit() == (1, sorted(expected))


def test_a_label_that_no_class_has_is_named(audit: Any, dataset: Path) -> None:
    (number, *_), *_ = records_of(dataset / LAST)
    rewrite(dataset, LAST, lambda records: records.__setitem__(0, (*records[0][:2], 4)))
    code, lines = audit()
    assert code == 1
    assert f"{LAST}: record 0 (id {number}, label 4): label is 4, manifest.json has classes 0 to 3" in lines


def test_an_id_that_occurs_twice_is_named_and_so_is_the_one_that_is_missing(audit: Any, dataset: Path) -> None:
    (first, *_), (second, *_), *_ = records_of(dataset / FIRST)
    rewrite(dataset, FIRST, lambda records: records.__setitem__(1, (first, *records[1][1:])))
    assert audit() == (
        1,
        [
            f"{FIRST}: record 1: its id {first} is that of record 0 of {FIRST}",
            f"train/index.json: id {second} is in no shard, and not among those that manifest.json lists as refused",
        ],
    )


def test_ids_of_refused_files_are_missing_by_right(audit: Any, dataset: Path) -> None:
    number, _, label = records_of(dataset / LAST)[0]
    refused = {"id": number, "path": "val/class0/x.jpg", "label": label, "reason": "empty file (0 bytes)"}
    rewrite(dataset, LAST, lambda records: records.__delitem__(0))
    edit_manifest(dataset, lambda manifest: manifest["splits"]["val"].update(refused=[refused]))
    assert audit() == (0, [])
    rewrite(dataset, LAST, lambda records: records.__setitem__(0, (number, *records[0][1:])))
    code, lines = audit()
    assert code == 1
    assert f"val/index.json: id {number} is in a shard, though manifest.json lists it as refused" in lines


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("shard.00099.mds", "looks like a shard, but train/index.json does not list it"),
        ("shard.00000.mds.zstd", "looks like a shard, but train/index.json does not list it"),
        (".shard.00000.mds.tmp", "a temporary file; delete it unless a conversion is under way"),
    ],
)
def test_a_file_that_does_not_belong_is_named(audit: Any, dataset: Path, name: str, what: str) -> None:
    (dataset / "train" / name).write_bytes(b"")
    assert audit() == (1, [f"train/{name}: {what}"])


def test_files_of_other_kinds_and_unfinished_conversions_do_not_fail_it(audit: Any, dataset: Path) -> None:
    (dataset / "train" / "README.txt").write_text("hello")
    (dataset / ".convert").mkdir()
    what = "warning: .convert/: an unfinished conversion; finish it, or delete the folder"
    assert audit() == (0, [what])


def test_a_wrong_histogram_is_named(audit: Any, dataset: Path) -> None:
    edit_manifest(dataset, lambda manifest: manifest["splits"]["train"].update(histogram=[24, 26, 25, 25]))
    assert audit() == (
        1,
        [
            "train/index.json: class 0 (class0) has 25 samples, manifest.json says 24",
            "train/index.json: class 1 (class1) has 25 samples, manifest.json says 26",
        ],
    )


def test_wrong_counts_and_a_wrong_fingerprint_of_a_split_are_named(audit: Any, dataset: Path) -> None:
    seen = load_manifest(dataset).splits["train"]
    wrong = {"fingerprint": "0" * 64, "shards": seen.shards + 1, "bytes": seen.bytes - 1}
    edit_manifest(dataset, lambda manifest: manifest["splits"]["train"].update(wrong))
    assert audit() == (
        1,
        [
            f"train/index.json: lists {seen.shards} shards, manifest.json says {seen.shards + 1}",
            f"train/index.json: lists {seen.bytes:,} bytes of shards, manifest.json says {seen.bytes - 1:,}",
            f"train/index.json: fingerprint is {seen.fingerprint}, manifest.json says {'0' * 64}",
        ],
    )


def test_a_wrong_fingerprint_of_the_dataset_is_named(audit: Any, dataset: Path) -> None:
    path = dataset / "manifest.json"
    right = load_manifest(dataset).fingerprint
    path.write_text(path.read_text().replace(right, "0" * 64))
    code, lines = audit()
    assert (code, len(lines)) == (1, 1)
    assert lines[0].startswith(
        f"manifest.json: manifest: Value error, fingerprint is {'0' * 64}, but the content gives"
    )


def test_splits_that_only_one_side_knows_are_named(audit: Any, dataset: Path) -> None:
    (dataset / "val").rename(dataset / "test")
    code, lines = audit()
    assert code == 1
    assert lines[:2] == [
        "test/index.json: manifest.json does not have this split; it has train, val",
        "val/index.json: does not exist, though manifest.json has the split 'val'",
    ]


def cut(records: list[Record]) -> None:
    number, image, label = records[2]
    records[2] = (number, image[: len(image) // 2], label)


def test_a_jpeg_that_was_cut_before_the_shard_was_made_is_found_by_decoding(audit: Any, dataset: Path) -> None:
    rewrite(dataset, FIRST, cut)
    number, _, label = records_of(dataset / FIRST)[2]
    code, lines = audit()
    assert (code, len(lines)) == (1, 1)
    assert lines[0].startswith(f"{FIRST}: record 2 (id {number}, label {label}): damaged JPEG: image file is truncated")
    assert audit("--decode", "0") == (0, [])


def as_png(records: list[Record]) -> None:
    encoded = BytesIO()
    Image.open(BytesIO(records[2][1])).save(encoded, "PNG")
    records[2] = (records[2][0], encoded.getvalue(), records[2][2])


def test_an_image_that_the_converter_would_have_mended_is_a_finding(audit: Any, dataset: Path) -> None:
    rewrite(dataset, FIRST, as_png)
    number, _, label = records_of(dataset / FIRST)[2]
    code, lines = audit()
    assert (code, len(lines)) == (1, 1)
    where = f"{FIRST}: record 2 (id {number}, label {label})"
    assert lines[0].startswith(f"{where}: not a plain JPEG; the converter would store: PNG re-encoded")


@pytest.mark.parametrize("change", [cut, as_png])
def test_bad_images_of_a_dataset_without_a_manifest_are_warnings(audit: Any, dataset: Path, change: Any) -> None:
    rewrite(dataset, FIRST, change)
    (dataset / "manifest.json").unlink()
    code, lines = audit()
    assert (code, len(lines)) == (0, 1)
    assert lines[0].startswith(f"warning: {FIRST}: record 2 ")


def test_duplicates_are_warnings_that_say_where_the_first_is(audit: Any, dataset: Path) -> None:
    (id0, image, label0), (id1, _, _), *_ = records_of(dataset / FIRST)
    (id2, _, _), *_ = records_of(dataset / LAST)
    rewrite(dataset, FIRST, lambda records: records.__setitem__(1, (id1, image, label0)))
    rewrite(dataset, LAST, lambda records: records.__setitem__(0, (id2, image, (label0 + 1) % 4)))
    same = f"the image is byte for byte record 0 of {FIRST} (id {id0}, label {label0})"
    assert audit() == (
        0,
        [
            f"warning: {FIRST}: record 1 (id {id1}, label {label0}): {same}",
            f"warning: {LAST}: record 0 (id {id2}, label {(label0 + 1) % 4}): {same}",
        ],
    )


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda index: index.update(version=1), "version is 1, must be 2"),
        (lambda index: index.update(shards=[]), "lists no shards"),
        (
            lambda index: index["shards"][1]["raw_data"].update(bytes=-5),
            "shards.1.raw_data.bytes: Input should be greater than 0, not -5",
        ),
        (
            lambda index: index["shards"][1].update(format="json"),
            "shards.1.format: Input should be 'mds', not 'json'",
        ),
        (
            lambda index: index["shards"][1]["raw_data"].update(basename="../val/shard.00000.mds"),
            "shards.1.raw_data.basename: Value error, must be a path below the split's folder, "
            "not '../val/shard.00000.mds'",
        ),
        (
            lambda index: index["shards"][1].update(raw_data=index["shards"][0]["raw_data"]),
            "shard.00000.mds is listed 2 times",
        ),
        (
            lambda index: index["shards"][0].update(column_encodings=["int64", "jpeg", "int"]),
            "shards.0: columns are {'i': 'int64', 'x': 'jpeg', 'y': 'int'}, must be "
            "{'i': 'int', 'x': 'jpeg', 'y': 'int'} beside a manifest.json",
        ),
        (
            lambda index: index["shards"][0]["raw_data"].update(hashes={}),
            "shards.0: shard.00000.mds lacks its sha256, xxh64, which hashes promises",
        ),
    ],
)
def test_each_fault_of_an_index_is_named(audit: Any, dataset: Path, change: Any, line: str) -> None:
    edit_index(dataset, "train", change)
    code, lines = audit()
    assert code == 1
    assert f"train/index.json: {line}" in lines


def test_an_index_that_is_no_json_is_named_and_the_other_splits_are_read(audit: Any, dataset: Path) -> None:
    (dataset / "train" / "index.json").write_bytes(b'{"shards": [')
    flip(dataset / LAST, -1)
    code, lines = audit()
    assert code == 1
    assert lines[0].startswith("train/index.json: cannot be read: Expecting value")
    assert hash_line(dataset, LAST) in lines


def test_a_hash_that_is_not_known_is_a_warning(audit: Any, dataset: Path) -> None:
    (dataset / "manifest.json").unlink()
    edit_index(dataset, "val", lambda index: index["shards"][0]["raw_data"]["hashes"].update(crc64="0"))
    assert audit() == (0, ["warning: val/index.json: crc64, a hash of 1 shards, is not known here"])


def test_the_same_fraction_of_images_is_decoded_every_time(dataset: Path, capsys: Any) -> None:
    decoded = []
    for workers in ("1", "2"):
        assert main([str(dataset), "--decode", "0.5", "--workers", workers]) == 0
        decoded.append(capsys.readouterr().out.splitlines()[-1].split("; ")[1].split(",")[1])
    chosen = sum(is_chosen("train", n, 0.5) for n in range(100)) + sum(is_chosen("val", n, 0.5) for n in range(23))
    assert decoded == [f" {chosen} decoded"] * 2
    assert 40 < chosen < 83
    assert all(is_chosen("train", n, 1.0) and not is_chosen("train", n, 0.0) for n in range(100))
    assert [n for n in range(40) if is_chosen("train", n, 0.1)] == [3, 7, 9, 20, 29, 35]  # from release to release


@pytest.mark.parametrize("compression", [None, "zstd:3"])
@pytest.mark.parametrize("hashes", [[], ["xxh64"], ["sha1", "xxh3_64"]])
def test_shards_of_mosaicmls_own_writer_pass(
    audit: Any, dataset: Path, tmp_path: Path, compression: str | None, hashes: list[str]
) -> None:
    streaming = pytest.importorskip("streaming")
    theirs = tmp_path / "theirs"
    columns = {"i": "int", "x": "jpeg", "y": "int"}
    for split, path in (("train", FIRST), ("val", LAST)):
        with streaming.MDSWriter(
            out=str(theirs / split), columns=columns, hashes=hashes, compression=compression, size_limit=20_000
        ) as writer:
            for number, image, label in records_of(dataset / path):
                writer.write({"i": number, "x": jpeg_file(image, tmp_path), "y": label})
    assert audit(place=theirs) == (0, [])
    assert audit(place=theirs / "train") == (0, [])  # one split, whose index.json lies at the root
    shard = sorted((theirs / "train").glob("shard.*"))[0]
    flip(shard, -50)
    code, lines = audit(place=theirs / "train")
    assert code == int(bool(hashes or compression))
    if hashes:
        assert lines[0].startswith(f"{shard.name}: {hashes[0]} is ")


def jpeg_file(data: bytes, folder: Path) -> Image.Image:
    """The image as MDSWriter wants it: opened from a file, whose bytes it then stores."""
    path = folder / "image.jpeg"
    path.write_bytes(data)
    return Image.open(path)


def test_a_compressed_shard_is_checked_wherever_it_lies_unpacked(audit: Any, dataset: Path, tmp_path: Path) -> None:
    streaming, zstd = pytest.importorskip("streaming"), pytest.importorskip("zstd")
    theirs = tmp_path / "theirs"
    with streaming.MDSWriter(
        out=str(theirs), columns={"i": "int", "x": "jpeg", "y": "int"}, hashes=["sha256"], compression="zstd:3"
    ) as writer:
        for number, image, label in records_of(dataset / FIRST):
            writer.write({"i": number, "x": jpeg_file(image, tmp_path), "y": label})
    packed, raw = theirs / "shard.00000.mds.zstd", theirs / "shard.00000.mds"
    raw.write_bytes(zstd.decompress(packed.read_bytes()))
    assert audit(place=theirs) == (0, [])
    flip(raw, -50)
    code, lines = audit(place=theirs)
    assert code == 1
    assert lines[0].startswith(f"{raw.name}: sha256 is {sha256(raw)}, ")
    packed.unlink()
    assert audit(place=theirs)[1] == lines


def test_a_compressed_shard_is_checked_once_unpacked_too(audit: Any, dataset: Path, tmp_path: Path) -> None:
    streaming = pytest.importorskip("streaming")
    with streaming.MDSWriter(
        out=str(tmp_path / "x/all"), columns={"i": "int", "x": "jpeg", "y": "int"}, hashes=["md5"], compression="zstd:3"
    ) as writer:
        for number, image, label in records_of(dataset / FIRST):
            writer.write({"i": number, "x": jpeg_file(image, tmp_path), "y": label})
    name = "all/shard.00000.mds.zstd"
    raw = json.loads((tmp_path / "x/all/index.json").read_text())["shards"][0]["raw_data"]
    edit_index(tmp_path / "x", "all", lambda index: index["shards"][0]["raw_data"]["hashes"].update(md5="0"))
    line = f"{name}: md5 once unpacked is {raw['hashes']['md5']}, index.json says 0"
    assert audit(place=tmp_path / "x") == (1, [line])
    edit_index(tmp_path / "x", "all", lambda index: index["shards"][0]["raw_data"].update(bytes=7))
    line = f"{name}: has {raw['bytes']:,} bytes once unpacked, index.json says 7"
    assert audit(place=tmp_path / "x") == (1, [line])


def test_only_the_first_findings_of_a_kind_are_shown_and_the_rest_counted() -> None:
    findings = Findings()
    findings.add(Finding(Kind.HASH, f"train/{n}", "differs") for n in range(300))
    findings.add([Finding(Kind.TWICE, "train/1", "twice", is_warning=True), Finding(Kind.ID, "train/2", "wrong")])
    lines = list(findings.lines())
    assert lines[:SHOWN_PER_KIND] == [f"train/{n}: differs" for n in range(SHOWN_PER_KIND)]
    assert lines[SHOWN_PER_KIND:] == [
        "... and 280 more shards that do not match their hashes",
        "train/2: wrong",
        "warning: train/1: twice",
    ]
    assert (findings.errors, findings.warnings) == (301, 1)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nowhere"], "nowhere is not a folder; give the one that holds manifest.json or train/index.json"),
        (["gs://bucket/x"], "gs://bucket/x is neither a local folder nor s3://bucket/prefix"),
        (["."], ". has no index.json, at its root or one folder below; it holds mds/, mine/"),
        (["mine", "--report", "report"], "mine has no index.json, at its root or one folder below; it holds notes.txt"),
        (["mds", "--report", "mds/report"], "--report mds/report lies inside the dataset mds"),
        (["mds", "--report", "mine"], "--report mine holds something else than an earlier report"),
        (["mds", "--source", "mine"], "--source is for the report; add --report DIR"),
        (["mds", "--decode", "2"], "'2' is neither 'all' nor a fraction from 0 to 1, such as 0.01"),
        (["mds", "--workers", "0"], "'0' is not a whole number of at least 1"),
    ],
)
def test_what_cannot_be_audited_is_refused_with_status_2(
    dataset: Path, tmp_path: Path, monkeypatch: Any, capsys: Any, argv: list[str], message: str
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep me")
    monkeypatch.chdir(tmp_path)
    try:
        code = main(argv)
    except SystemExit as stop:  # of argparse
        code = int(stop.code or 0)
    assert code == 2
    assert message in capsys.readouterr().err
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep me"


def test_ctrl_c_ends_it_with_130_and_leaves_no_process(shards: Path, tmp_path: Path) -> None:
    program = "import sys, tests.unit.test_convert_audit as t; sys.exit(t.slow_audit(sys.argv[1:]))"
    command = [sys.executable, "-c", program, str(shards), "--workers", "2"]
    process = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stderr
    assert process.stderr.readline() == "started\n"
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to every process
    _, errors = process.communicate(timeout=20)  # returns once every process has closed stderr
    assert (process.returncode, errors) == (130, "audit: interrupted; not all of the dataset was looked at\n")


def slow_audit(argv: list[str]) -> int:
    """An audit whose first shard takes for ever."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("convert.audit.audit_shard", wait_for_ever)
        return main(argv)


def wait_for_ever(task: ShardToAudit, **_: object) -> None:
    if (task.split, task.number) == ("train", 0):
        print("started", file=sys.stderr, flush=True)
    time.sleep(60)


class Page(HTMLParser):
    """What a page refers to, and whether its tags are closed in order."""

    VOID = ("meta", "img", "br", "link", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            assert not (name in ("src", "href") and "//" in str(value))
            if name == "src":
                self.images.append(str(value))
        if tag == "img":
            assert {"src", "alt", "width", "height", "loading"} <= {name for name, _ in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data


def test_the_report_shows_classes_findings_and_mended_files(audit: Any, dataset: Path, tmp_path: Path) -> None:
    (id0, image, label), *_ = records_of(dataset / FIRST)
    rewrite(dataset, FIRST, as_png)
    copy = next(n for n, (_, _, other) in enumerate(records_of(dataset / SECOND)) if other != label)
    rewrite(dataset, SECOND, lambda records: records.__setitem__(copy, (records[copy][0], image, records[copy][2])))
    mended = {"id": id0, "path": "train/class<0>/a&b.jpg", "label": label, "what": "CMYK JPEG re-encoded as RGB"}
    refused = {"id": 100, "path": "train/class0/gone.jpg", "label": 0, "reason": "empty file (0 bytes)"}
    edit_manifest(dataset, lambda manifest: manifest["splits"]["train"].update(mended=[mended], refused=[refused]))
    original = tmp_path / "source" / mended["path"]
    original.parent.mkdir(parents=True)
    original.write_bytes(image)

    report = tmp_path / "report"
    for _ in range(2):  # an earlier report is replaced
        code, lines = audit("--report", str(report), "--source", str(tmp_path / "source"))
    assert (code, len(lines)) == (1, 2)
    page = Page((report / "index.html").read_text())
    assert all((report / path).is_file() for path in page.images)
    written = {f"pictures/{path.name}" for path in (report / "pictures").iterdir()}
    assert written == set(page.images)
    sheets = [f"pictures/class-{label:05}.jpg" for label in range(4)]
    plots = [f"pictures/{name}.png" for name in ("class-counts", "image-sizes", "image-bytes")]
    pairs = ["pictures/record-train-0-2.jpg", "pictures/record-train-0-0.jpg", f"pictures/record-train-1-{copy}.jpg"]
    assert page.images == [*pairs, *plots, f"pictures/original-train-{id0}.jpg", pairs[1], *sheets]
    assert Image.open(report / sheets[0]).size == (6 * 96 + 2 * 96 + 6 * 4 + 20, 96)
    for text in (
        *(line.split(": ", 1)[1].removeprefix(f"{FIRST}: ") for line in lines[:1]),
        "1 finding, 1 warning.",
        "Images that are not plain JPEGs: 1",
        "Images stored again with another label: 1",
        "1 mended file",
        mended["path"],
        "1 refused file",
        refused["path"],
        refused["reason"],
        "0 class0: train 25, val 6",
        load_manifest(dataset).fingerprint,
    ):
        assert text in page.text


def test_the_report_of_a_dataset_where_nothing_can_be_read_is_still_written(
    audit: Any, dataset: Path, tmp_path: Path
) -> None:
    for shard in dataset.glob("*/*.mds"):
        shard.unlink()
    assert audit("--report", str(tmp_path / "report"))[0] == 1
    assert "Missing shards: " in Page((tmp_path / "report" / "index.html").read_text()).text
