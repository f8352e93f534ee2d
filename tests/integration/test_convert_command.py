"""What the command makes of images, and what it refuses."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagestream.mds.manifest import index_fingerprint, load_manifest
from tests import processes
from tests.integration.converter import (
    SMALL_SHARDS,
    convert,
    listing,
    read_index,
    read_samples,
    run,
    run_command,
    save_noise,
    tree,
)


@pytest.fixture
def out(converted: Path, tmp_path: Path) -> Path:
    """A copy of what becomes of `source` without options."""
    return Path(shutil.copytree(converted, tmp_path / "out"))


def test_every_image_is_stored_byte_for_byte_with_its_id_and_label(source: Path, out: Path) -> None:
    for split in ("train", "val"):
        files = listing(source, split)
        stored = read_samples(out, split)
        assert [number for number, _, _ in stored] != list(range(len(files)))  # shuffled
        per_class = len(files) // 4
        expected = [(n, path.read_bytes(), n // per_class) for n, path in enumerate(files)]
        assert sorted(stored) == expected


def test_streaming_imagenet_reads_the_shards_in_order(source: Path, out: Path, tmp_path: Path) -> None:
    argv = [str(out), str(tmp_path / "cache")]
    code, output = processes.run(argv, tmp_path / "log", program="tests.upstream_imagenet")
    assert code == 0, output
    files = listing(source)
    expected = []
    for number, _, label in read_samples(out):
        pixels = np.asarray(Image.open(files[number]))
        expected.append(f"{' '.join(map(str, pixels.shape))} {int(pixels.sum())} {label}")
    assert output.splitlines() == expected


def test_output_is_identical_for_any_number_of_workers(source: Path, tmp_path: Path) -> None:
    for workers in (1, 7):
        convert(source, tmp_path / f"out{workers}", "--workers", workers)
    started = run_command("--source", source, "--out", tmp_path / "out3", "--workers", 3, *SMALL_SHARDS)
    assert started.returncode == 0, started.stderr
    one = tree(tmp_path / "out1")
    assert len(one) > 8
    assert one == tree(tmp_path / "out3") == tree(tmp_path / "out7")


def test_seed_changes_the_order_and_nothing_else(source: Path, out: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "b", "--seed", 1)
    a, b = read_samples(out), read_samples(tmp_path / "b")
    assert a != b
    assert sorted(a) == sorted(b)


def test_manifest_describes_the_dataset(source: Path, out: Path) -> None:
    manifest = load_manifest(out)
    train = manifest.splits["train"]
    assert [(info.index, info.wnid) for info in manifest.classes] == list(enumerate(["n01", "n02", "n03", "n10"]))
    assert (train.samples, train.histogram, manifest.splits["val"].histogram) == (40, (10,) * 4, (3,) * 4)
    assert train.fingerprint == index_fingerprint(read_index(out))
    shards = sorted((out / "train").glob("*.mds"))
    assert (train.shards, train.bytes) == (len(shards), sum(path.stat().st_size for path in shards))
    widths = [Image.open(path).width for path in listing(source)]
    assert (train.width_px.min, train.width_px.max) == (min(widths), max(widths))
    assert train.width_px.mean == pytest.approx(np.mean(widths), abs=0.01)
    assert (train.seed, train.options.size_limit_bytes, train.mended, train.refused) == (0, 20 * 1024, (), ())


def test_cmyk_and_png_are_mended_and_listed(source: Path, tmp_path: Path) -> None:
    save_noise(source / "train/n02/cmyk.JPEG", 1, "CMYK", format="JPEG")
    save_noise(source / "train/n10/png.JPEG", 2, format="PNG")
    convert(source, tmp_path / "out")
    mended = load_manifest(tmp_path / "out").splits["train"].mended
    assert [(file.id, file.path, file.label, file.what) for file in mended] == [
        (10, "train/n02/cmyk.JPEG", 1, "CMYK JPEG re-encoded as RGB, quality 95"),
        (41, "train/n10/png.JPEG", 3, "PNG re-encoded as RGB JPEG, quality 95"),
    ]
    assert len(read_samples(tmp_path / "out")) == 42


def test_a_bad_image_stops_the_conversion_before_anything_can_be_read(source: Path, tmp_path: Path) -> None:
    bad = source / "train/n02/n02_3.JPEG"
    bad.write_bytes(bad.read_bytes()[: bad.stat().st_size * 2 // 3])
    done = run("--source", source, "--out", tmp_path / "out", "--workers", 1, *SMALL_SHARDS)
    assert done.returncode == 1
    assert "train/n02/n02_3.JPEG: damaged JPEG: image file is truncated" in done.stderr
    assert "--on-bad skip" in done.stderr
    assert not [name for name in tree(tmp_path / "out") if name.endswith(("index.json", "manifest.json"))]


def test_all_bad_images_of_the_shards_under_way_are_named(source: Path, tmp_path: Path) -> None:
    for name in ("train/n01/a.JPEG", "train/n10/b.JPEG", "val/n01/c.JPEG"):
        (source / name).touch()
    done = run("--source", source, "--out", tmp_path / "out", "--workers", 2)
    assert done.returncode == 1
    for name in ("train/n01/a.JPEG", "train/n10/b.JPEG", "val/n01/c.JPEG"):
        assert f"{name}: empty file (0 bytes)" in done.stderr


def test_skipped_images_are_left_out_and_listed(source: Path, tmp_path: Path) -> None:
    bad = source / "train/n02/n02_3.JPEG"
    bad.write_bytes(bad.read_bytes()[: bad.stat().st_size * 2 // 3])
    said = convert(source, tmp_path / "out", "--on-bad", "skip")
    assert "left out 1 bad image of 40 (2.5%), such as train/n02/n02_3.JPEG" in said
    train = load_manifest(tmp_path / "out").splits["train"]
    assert [(file.id, file.path, file.label) for file in train.refused] == [(13, "train/n02/n02_3.JPEG", 1)]
    assert "truncated" in train.refused[0].reason
    assert (train.samples, train.histogram) == (39, (10, 9, 10, 10))
    assert sorted(number for number, _, _ in read_samples(tmp_path / "out")) == [n for n in range(40) if n != 13]


def test_a_shard_of_bad_images_only_is_left_out_of_the_index(source: Path, tmp_path: Path) -> None:
    for path in listing(source)[::2]:
        path.write_bytes(b"x" * 30_000)  # over the size limit, so it is alone in its shard
    convert(source, tmp_path / "out", "--on-bad", "skip")
    names = [entry["raw_data"]["basename"] for entry in read_index(tmp_path / "out")["shards"]]
    assert names == sorted(path.name for path in (tmp_path / "out/train").glob("*.mds"))
    assert len(read_samples(tmp_path / "out")) == 20


def test_a_split_without_one_good_image_fails(source: Path, tmp_path: Path) -> None:
    for path in listing(source, "val"):
        path.write_bytes(b"junk")
    done = run("--source", source, "--out", tmp_path / "out", "--on-bad", "skip")
    assert done.returncode == 1
    assert "val: not one image can be used" in done.stderr
    assert not (tmp_path / "out/manifest.json").exists()


def test_another_split_joins_the_manifest(source: Path, converted: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "twice", "--splits", "val")
    convert(source, tmp_path / "twice", "--splits", "train")
    assert tree(converted) == tree(tmp_path / "twice")


def test_another_split_with_other_classes_is_refused(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "out", "--splits", "val")
    before = tree(tmp_path / "out")
    save_noise(source / "train/n11/1.JPEG", 1)
    done = run("--source", source, "--out", tmp_path / "out", "--splits", "train")
    assert done.returncode == 2
    assert "new in the source: n11" in done.stderr
    assert tree(tmp_path / "out") == before


def test_what_is_complete_is_left_alone(source: Path, out: Path) -> None:
    before = tree(out)
    assert "train: complete" in convert(source, out)
    assert tree(out) == before


@pytest.mark.parametrize(
    ("args", "difference"),
    [
        (["--seed", 1], "--seed: 0 there, 1 now"),
        (["--size-limit", "30kb"], "--size-limit: 20480 there, 30720 now"),
        (["--resize", "max=30"], "--resize: None there, max=30 now"),
        (["--compression", "zstd"], "--compression: None there, zstd:3 now"),
        (["--hashes", "md5"], "--hashes: ('sha256', 'xxh64') there, ('md5',) now"),
        (["--per-class", 2], "the source: 40 files there, 8 now"),
    ],
)
def test_another_plan_for_an_existing_output_is_refused_with_the_difference(
    source: Path, out: Path, args: list[object], difference: str
) -> None:
    before = tree(out)
    done = run("--source", source, "--out", out, *SMALL_SHARDS, *args)
    assert done.returncode == 2
    assert difference in done.stderr and "--overwrite" in done.stderr
    assert tree(out) == before


def test_a_changed_source_is_refused(source: Path, out: Path) -> None:
    save_noise(source / "train/n03/new.JPEG", 1)
    done = run("--source", source, "--out", out, *SMALL_SHARDS)
    assert done.returncode == 2 and "the source: 40 files there, 41 now" in done.stderr


def test_shards_of_others_are_refused_unless_overwritten(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out/train").mkdir(parents=True)
    (tmp_path / "out/train/shard.00000.mds").write_bytes(b"of another program")
    done = run("--source", source, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "already has train: 1 files of a conversion, such as shard.00000.mds" in done.stderr
    convert(source, tmp_path / "out", "--overwrite")


def test_a_shard_that_went_missing_is_made_again(source: Path, out: Path) -> None:
    before = tree(out)
    (out / "train/shard.00001.mds").unlink()
    (out / "train/shard.00002.mds").write_bytes(b"short")
    assert "train: 2 shards are missing; made anew" in convert(source, out)
    assert tree(out) == before


def test_a_missing_shard_whose_image_has_changed_is_refused(source: Path, out: Path) -> None:
    for path in listing(source):
        data = bytearray(path.read_bytes())
        data[-10] ^= 1
        path.write_bytes(data)
    (out / "train/shard.00001.mds").unlink()
    done = run("--source", source, "--out", out, *SMALL_SHARDS)
    assert done.returncode == 1 and "train/shard.00001.mds was missing, and made again it differs" in done.stderr


def test_a_missing_shard_of_which_no_image_can_be_used_is_not_passed_over(source: Path, out: Path) -> None:
    for path in listing(source):
        path.write_bytes(bytes(path.stat().st_size))
    (out / "train/shard.00001.mds").unlink()
    done = run("--source", source, "--out", out, *SMALL_SHARDS, "--on-bad", "skip")
    assert done.returncode == 1, done.stderr
    assert "train/shard.00001.mds is missing and cannot be made again: not one of its images can be used" in done.stderr


def test_an_interrupted_overwrite_says_how_to_resume(source: Path, out: Path) -> None:
    path = listing(source)[-1]
    path.write_bytes(bytes(path.stat().st_size))
    done = run("--source", source, "--out", out, *SMALL_SHARDS, "--overwrite", "--workers", 1)
    assert done.returncode == 1 and "made and stay; the same command, without --overwrite, resumes" in done.stderr
    again = run("--source", source, "--out", out, *SMALL_SHARDS, "--on-bad", "skip")
    assert again.returncode == 0 and "written before" in again.stdout + again.stderr


def test_overwrite_replaces_our_files_and_touches_no_other(source: Path, out: Path, converted: Path) -> None:
    stale = ("train/shard.00099.mds", "train/.shard.00098.mds.tmp")
    foreign = ("train/notes.txt", "val/shard.00077.mds", "other/index.json")
    for name in stale + foreign:
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text(name)
    convert(source, out, "--splits", "train", "--overwrite")
    assert tree(out) == tree(converted) | {name: name.encode() for name in foreign}


def test_a_failed_overwrite_leaves_no_index_of_the_split(source: Path, out: Path) -> None:
    (source / "train/n01/bad.JPEG").touch()
    done = run("--source", source, "--out", out, "--splits", "train", "--overwrite")
    assert done.returncode == 1
    assert not (out / "train").exists()
    assert list(load_manifest(out).splits) == ["val"]
    assert len(read_samples(out, "val")) == 12


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--source", "{tmp}/gone", "--out", "{tmp}/out"], "gone does not exist"),
        (["--source", "{tmp}", "--out", "{tmp}/out"], "lies inside --source"),
        (["--source", "{tmp}/source", "--out", "{tmp}/source/train/out"], "lies inside --source"),
        (["--source", "{tmp}/source/train", "--out", "{tmp}/out"], "Give the folder above the splits"),
        (["--source", "{tmp}/source", "--out", "{tmp}/out", "--splits", "test"], "has no test"),
        (["--source", "{tmp}/source", "--out", "{tmp}/out", "--splits", "train,../x"], "not the name of a folder"),
        (["--source", "{tmp}/source", "--out", "{tmp}/out", "--splits", "val,val"], "names one twice"),
        (["--source", "{tmp}/source", "--out", "{tmp}/out", "--workers", "0"], "at least 1"),
        (["--source", "{tmp}/source", "--out", "{tmp}/out", "--size-limit", "4GB"], "out of range"),
        (["--source", "{tmp}/source", "--out", "{tmp}/out", "--size-limit", "big"], "write for example 64MB"),
        (["--source", "{tmp}/source", "--out", "gs://bucket/x"], "neither a local folder nor s3://"),
        (["--source", "{tmp}/source", "--out", "{tmp}/out", "--resize", "400"], "short=PIXELS or max=PIXELS"),
        (["--source", "{tmp}/source", "--out", "{tmp}/out", "--quality", "80"], "without it none is"),
        (["--source", "{tmp}/source", "--out", "{tmp}/out", "--compression", "gz"], "not zstd or zstd:LEVEL"),
        (["--source", "{tmp}/source", "--out", "{tmp}/out", "--hashes", "crc"], "crc is not among sha256"),
    ],
)
def test_mistakes_in_the_command_exit_with_2_and_touch_nothing(
    source: Path, tmp_path: Path, args: list[str], message: str
) -> None:
    done = run(*(arg.format(tmp=tmp_path) for arg in args))
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_class_that_train_lacks_exits_with_2(source: Path, tmp_path: Path) -> None:
    save_noise(source / "val/n99/1.JPEG", 1)
    done = run("--source", source, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "train lacks: n99" in done.stderr
    assert tree(tmp_path / "out") == {}


def test_summary_gives_counts_and_the_next_command(source: Path, tmp_path: Path) -> None:
    done = run("--source", source, "--out", tmp_path / "out")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("train: 40 samples in 1 shards, ") and lines[0].endswith("0 mended, 0 refused")
    assert lines[1].startswith("val: 12 samples in 1 shards, ")
    assert lines[-1] == f"next: python train/main.py yamls/local.yaml data.local={tmp_path / 'out'}"


def test_empty_classes_and_ignored_files_are_warned_of(source: Path, tmp_path: Path) -> None:
    (source / "train/n50").mkdir()
    (source / "train/n01/.DS_Store").touch()
    said = convert(source, tmp_path / "out")
    assert "train: ignored 1 hidden file or folder" in said
    assert "train: 1 of the classes have no files, such as n50" in said
    assert load_manifest(tmp_path / "out").splits["train"].histogram == (10, 10, 10, 10, 0)


def test_options_of_storage_do_what_they_say(source: Path, tmp_path: Path) -> None:
    options = ("--resize", "max=40", "--compression", "zstd:5", "--hashes", "md5,sha1")
    said = convert(source, tmp_path / "out", *options)
    assert "resized" in said
    index = read_index(tmp_path / "out")
    assert {path.name for path in (tmp_path / "out/train").iterdir()} == {"index.json"} | {
        entry["zip_data"]["basename"] for entry in index["shards"]
    }
    assert all(list(entry["raw_data"]["hashes"]) == ["md5", "sha1"] for entry in index["shards"])
    train = load_manifest(tmp_path / "out").splits["train"]
    assert (max(train.width_px.max, train.height_px.max), train.options.compression) == (40, "zstd:5")


def test_a_part_of_the_images_is_drawn_by_the_seed_and_grows(source: Path, tmp_path: Path) -> None:
    def ids_of_files(out: Path, *args: object) -> list[bytes]:
        convert(source, out, *args)
        return [jpeg for _, jpeg, _ in sorted(read_samples(out))]

    few = ids_of_files(tmp_path / "few", "--classes", 2, "--per-class", 3)
    more = ids_of_files(tmp_path / "more", "--classes", 3, "--per-class", 5)
    assert (len(few), len(more)) == (6, 15)
    assert [jpeg for jpeg in more if jpeg in few] == few
    convert(source, tmp_path / "named", "--classes", "n10,n02", "--splits", "val")
    assert [info.wnid for info in load_manifest(tmp_path / "named").classes] == ["n02", "n10"]
