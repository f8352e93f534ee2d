"""The command, run as a user runs it: from the repository root, with no PYTHONPATH."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convert.manifest import index_fingerprint, load_manifest

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
    process = start(*args, env=env)
    stdout, stderr = process.communicate(timeout=120)
    assert "Traceback" not in stderr, stderr
    return subprocess.CompletedProcess(args, process.returncode, stdout, stderr)


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


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """40 training and 12 validation images of 4 classes, every fifth one grey."""
    root = tmp_path / "source"
    for split, count in (("train", 10), ("val", 3)):
        for label, name in enumerate(("n01", "n02", "n03", "n10")):
            for n in range(count):
                mode = "L" if n % 5 == 0 else "RGB"
                save_noise(root / split / name / f"{name}_{n}.JPEG", 100 * label + n, mode)
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


def test_every_image_is_stored_byte_for_byte_with_its_id_and_label(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "out")
    for split in ("train", "val"):
        files = listing(source, split)
        stored = read_samples(tmp_path / "out", split)
        assert [number for number, _, _ in stored] != list(range(len(files)))  # shuffled
        per_class = len(files) // 4
        expected = [(n, path.read_bytes(), n // per_class) for n, path in enumerate(files)]
        assert sorted(stored) == expected


def test_streaming_imagenet_reads_the_shards_in_order(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "out")
    code = """
import sys
import numpy as np
from streaming.vision import StreamingImageNet
dataset = StreamingImageNet(remote=sys.argv[1], local=sys.argv[2], split="train", shuffle=False, batch_size=4,
                            num_canonical_nodes=1, validate_hash="sha256", transform=np.asarray)
for image, label in dataset:
    print(*image.shape, int(image.sum()), int(label))
"""
    seen = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "out", tmp_path / "cache"], capture_output=True, text=True, cwd=ROOT
    )
    assert seen.returncode == 0, seen.stderr
    files = listing(source)
    expected = []
    for number, _, label in read_samples(tmp_path / "out"):
        pixels = np.asarray(Image.open(files[number]))
        expected.append(f"{' '.join(map(str, pixels.shape))} {int(pixels.sum())} {label}")
    assert seen.stdout.splitlines() == expected


def test_output_is_identical_for_any_number_of_workers(source: Path, tmp_path: Path) -> None:
    for workers in (1, 3, 7):
        convert(source, tmp_path / f"out{workers}", "--workers", workers)
    one = tree(tmp_path / "out1")
    assert len(one) > 8
    assert one == tree(tmp_path / "out3") == tree(tmp_path / "out7")


def test_seed_changes_the_order_and_nothing_else(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "a")
    convert(source, tmp_path / "b", "--seed", 1)
    a, b = read_samples(tmp_path / "a"), read_samples(tmp_path / "b")
    assert a != b
    assert sorted(a) == sorted(b)


def test_manifest_describes_the_dataset(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "out")
    manifest = load_manifest(tmp_path / "out")
    train = manifest.splits["train"]
    assert [(info.index, info.wnid) for info in manifest.classes] == list(enumerate(["n01", "n02", "n03", "n10"]))
    assert (train.samples, train.histogram, manifest.splits["val"].histogram) == (40, (10,) * 4, (3,) * 4)
    assert train.fingerprint == index_fingerprint(read_index(tmp_path / "out"))
    shards = sorted((tmp_path / "out/train").glob("*.mds"))
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


def test_a_bad_image_stops_the_conversion_and_leaves_nothing(source: Path, tmp_path: Path) -> None:
    bad = source / "train/n02/n02_3.JPEG"
    bad.write_bytes(bad.read_bytes()[: bad.stat().st_size * 2 // 3])
    done = run("--source", source, "--out", tmp_path / "out", "--workers", 1, *SMALL_SHARDS)
    assert done.returncode == 1
    assert "train/n02/n02_3.JPEG: damaged JPEG: image file is truncated" in done.stderr
    assert "--on-bad skip" in done.stderr
    assert tree(tmp_path / "out") == {}


def test_all_bad_images_of_the_shards_under_way_are_named(source: Path, tmp_path: Path) -> None:
    for name in ("train/n01/a.JPEG", "train/n10/b.JPEG", "val/n01/c.JPEG"):
        (source / name).touch()
    done = run("--source", source, "--out", tmp_path / "out", "--workers", 1)
    assert done.returncode == 1
    for name in ("train/n01/a.JPEG", "train/n10/b.JPEG", "val/n01/c.JPEG"):
        assert f"{name}: empty file (0 bytes)" in done.stderr


def test_skipped_images_are_left_out_and_listed(source: Path, tmp_path: Path) -> None:
    bad = source / "train/n02/n02_3.JPEG"
    bad.write_bytes(bad.read_bytes()[: bad.stat().st_size * 2 // 3])
    said = convert(source, tmp_path / "out", "--on-bad", "skip")
    assert "left out 1 bad images, such as train/n02/n02_3.JPEG" in said
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
    assert tree(tmp_path / "out") == {}


def test_another_split_joins_the_manifest(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "once")
    convert(source, tmp_path / "twice", "--splits", "val")
    convert(source, tmp_path / "twice", "--splits", "train")
    assert tree(tmp_path / "once") == tree(tmp_path / "twice")


def test_another_split_with_other_classes_is_refused(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "out", "--splits", "val")
    before = tree(tmp_path / "out")
    save_noise(source / "train/n11/1.JPEG", 1)
    done = run("--source", source, "--out", tmp_path / "out", "--splits", "train")
    assert done.returncode == 2
    assert "new in the source: n11" in done.stderr
    assert tree(tmp_path / "out") == before


def test_existing_output_is_refused_unless_overwritten(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(source, out)
    before = tree(out)
    done = run("--source", source, "--out", out, "--splits", "train")
    assert done.returncode == 2
    assert "already has train" in done.stderr and "--overwrite" in done.stderr
    assert tree(out) == before


def test_overwrite_replaces_our_files_and_touches_no_other(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(source, out)
    stale = ("train/shard.00099.mds", "train/.shard.00098.mds.tmp")
    foreign = ("train/notes.txt", "val/shard.00077.mds", "other/index.json")
    for name in stale + foreign:
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text(name)
    convert(source, out, "--splits", "train", "--overwrite")
    convert(source, tmp_path / "fresh")
    assert tree(out) == tree(tmp_path / "fresh") | {name: name.encode() for name in foreign}


def test_a_failed_overwrite_leaves_no_index_of_the_split(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(source, out)
    (source / "train/n01/bad.JPEG").touch()
    done = run("--source", source, "--out", out, "--splits", "train", "--overwrite")
    assert done.returncode == 1
    assert sorted(path.name for path in (out / "train").iterdir()) == []
    assert list(load_manifest(out).splits) == ["val"]
    assert len(read_samples(out, "val")) == 12


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--source", "{tmp}/gone", "--out", "{tmp}/out"], "gone does not exist"),
        (["--source", "{tmp}", "--out", "{tmp}/out"], "lies inside --source"),
        (["--source", "{tmp}/source", "--out", "{tmp}/source/train/out"], "lies inside --source"),
        (["--source", "{tmp}/source/train", "--out", "{tmp}/out"], "has no train, val; it holds 4 folders"),
        (["--source", "{tmp}/source", "--out", "{tmp}/out", "--splits", "test"], "has no test"),
        (["--source", "{tmp}/source", "--out", "{tmp}/out", "--splits", "train,../x"], "not the name of a folder"),
        (["--source", "{tmp}/source", "--out", "{tmp}/out", "--splits", "val,val"], "names a split twice"),
        (["--source", "{tmp}/source", "--out", "{tmp}/out", "--workers", "0"], "at least 1"),
        (["--source", "{tmp}/source", "--out", "{tmp}/out", "--size-limit", "4GB"], "out of range"),
        (["--source", "{tmp}/source", "--out", "{tmp}/out", "--size-limit", "big"], "write for example 64MB"),
        (["--source", "{tmp}/source", "--out", "gs://bucket/x"], "neither a local folder nor s3://"),
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


def wait_for_first_shard(out: Path, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 60
    while not list(out.glob("train/shard.*.mds")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.005)


def wait_for_end_of_group(group: int) -> None:
    deadline = time.monotonic() + 10
    with contextlib.suppress(ProcessLookupError):
        while True:
            os.killpg(group, 0)
            assert time.monotonic() < deadline, "a worker outlived its parent"
            time.sleep(0.05)


@pytest.fixture
def large_source(tmp_path: Path) -> Path:
    """One image under 3,000 names: enough work to be interrupted in."""
    root = tmp_path / "large"
    save_noise(root / "train/a/0.JPEG", 0)
    for n in range(1, 3000):
        os.link(root / "train/a/0.JPEG", root / f"train/a/{n}.JPEG")
    return root


def assert_only_whole_shards(out: Path) -> None:
    for path in out.rglob("*"):
        if path.name.startswith("shard."):
            data = path.read_bytes()
            count = int.from_bytes(data[:4], "little")
            assert int.from_bytes(data[4 * (count + 1) : 4 * (count + 2)], "little") == len(data)


def test_kill_leaves_no_index_no_half_shard_and_no_worker(large_source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start("--source", large_source, "--out", out, "--workers", 2, *SMALL_SHARDS, start_new_session=True)
    wait_for_first_shard(out, process)
    process.kill()
    process.wait()
    wait_for_end_of_group(process.pid)
    assert not [name for name in tree(out) if name.endswith(".json")]
    assert_only_whole_shards(out)

    refused = run("--source", large_source, "--out", out)
    assert refused.returncode == 2 and "--overwrite" in refused.stderr
    convert(large_source, out, "--overwrite")
    convert(large_source, tmp_path / "fresh")
    assert tree(out) == tree(tmp_path / "fresh")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_it_ends_at_once_and_removes_what_it_wrote(
    large_source: Path, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    out = tmp_path / "out"
    process = start("--source", large_source, "--out", out, "--workers", 2, *SMALL_SHARDS, start_new_session=True)
    wait_for_first_shard(out, process)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does: to the workers too
    else:
        process.send_signal(number)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == status, stderr
    assert "Traceback" not in stderr, stderr
    assert tree(out) == {}


@pytest.mark.parametrize("delay_s", [0.0, 0.2, 0.5])
def test_ctrl_c_while_workers_start_prints_one_line(large_source: Path, tmp_path: Path, delay_s: float) -> None:
    out = tmp_path / "out"
    process = start("--source", large_source, "--out", out, "--workers", 2, start_new_session=True)
    assert process.stderr is not None
    while "shards to build" not in process.stderr.readline():
        assert process.poll() is None
    time.sleep(delay_s)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=20)
    assert (process.returncode, stderr) == (130, "imagenet_to_mds: interrupted; what this run wrote is removed\n")
    assert tree(out) == {}


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


@pytest.mark.s3
def test_s3_output_is_identical_to_local_output(source: Path, tmp_path: Path, s3_server: Any) -> None:
    prefix = f"convert-{tmp_path.name}"
    convert(source, tmp_path / "out")
    url = f"s3://{s3_server.bucket}/{prefix}"
    convert(source, url, "--workers", 2, env=s3_server.env)
    assert bucket_tree(s3_server, prefix) == tree(tmp_path / "out")

    refused = run("--source", source, "--out", url, env=s3_server.env)
    assert refused.returncode == 2 and "already has train" in refused.stderr
    convert(source, url, "--overwrite", "--seed", 1, env=s3_server.env)
    convert(source, tmp_path / "seed1", "--seed", 1)
    assert bucket_tree(s3_server, prefix) == tree(tmp_path / "seed1")


@pytest.mark.s3
def test_a_failed_conversion_leaves_nothing_in_s3(source: Path, tmp_path: Path, s3_server: Any) -> None:
    prefix = f"failed-{tmp_path.name}"
    (source / "val/n01/empty.JPEG").touch()
    url = f"s3://{s3_server.bucket}/{prefix}"
    done = run("--source", source, "--out", url, *SMALL_SHARDS, env=s3_server.env)
    assert done.returncode == 1 and "val/n01/empty.JPEG" in done.stderr
    assert bucket_tree(s3_server, prefix) == {}


@pytest.mark.s3
@pytest.mark.parametrize(
    ("bucket", "change", "message"),
    [
        ("no-such-bucket-here", {}, "Create the bucket first"),
        ("", {"AWS_SECRET_ACCESS_KEY": "wrong"}, "Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        ("", {"AWS_ACCESS_KEY_ID": "wrong"}, "Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        ("", {"S3_ENDPOINT_URL": "http://127.0.0.1:9"}, "Check S3_ENDPOINT_URL and the network"),
        ("", {"S3_ENDPOINT_URL": "not a url"}, "not a url"),
    ],
)
def test_an_unreachable_bucket_is_explained_before_any_work(
    source: Path, s3_server: Any, bucket: str, change: dict[str, str], message: str
) -> None:
    url = f"s3://{bucket or s3_server.bucket}/x"
    done = run("--source", source, "--out", url, env=s3_server.env | change)
    assert done.returncode == 1
    assert message in done.stderr
    assert "shards to build" not in done.stderr


def bucket_tree(server: Any, prefix: str) -> dict[str, bytes]:
    boto3 = pytest.importorskip("boto3")
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
