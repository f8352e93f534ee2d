"""The audit passes what is whole, and names each fault of what is not."""

import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from convert.audit import main
from convert.auditing.findings import SHOWN_PER_KIND, Finding, Findings, Kind
from convert.auditing.shards import ShardToAudit, is_chosen
from imagestream.mds.manifest import load_manifest
from tests.audits import (
    FIRST,
    LAST,
    SECOND,
    Record,
    as_png,
    edit_index,
    edit_manifest,
    entry_of,
    flip,
    hash_line,
    records_of,
    rewrite,
    sha256,
)
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.slow


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
            f"files.parquet: train: id {first} is in more than one row",
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
        (".part-01234567-shard.00000.mds", "a temporary file; delete it unless a conversion is under way"),
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
