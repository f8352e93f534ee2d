"""A conversion may end at any moment, in any way: the same command resumes, and nobody sees the difference."""

import json
import os
import random
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagestream.process_identity import process_identity
from tests.integration.converter import (
    SMALL_SHARDS,
    assert_only_whole_shards,
    convert,
    listing,
    run,
    save_noise,
    start,
    tree,
    wait_for_end_of_group,
    wait_for_first_shard,
)

KILLS = 20


def start_large(source: Path, out: Path) -> "subprocess.Popen[str]":
    return start("--source", source, "--out", out, "--workers", 2, *SMALL_SHARDS, start_new_session=True)


def kill(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.communicate()
    wait_for_end_of_group(process.pid)


def test_killed_it_leaves_no_index_no_half_shard_and_no_worker_and_goes_on(
    large_source: Path, converted_large: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = start_large(large_source, out)
    wait_for_first_shard(out, process)
    kill(process)
    assert not [name for name in tree(out) if name.endswith(("index.json", "manifest.json"))]
    assert_only_whole_shards(out)
    made = {path.name: path.stat().st_ino for path in (out / "train").glob("shard.*")}

    said = convert(large_source, out)
    assert "written before" in said and "took over the lock of process" in said
    recorded = [name for name, number in made.items() if (out / "train" / name).stat().st_ino == number]
    assert len(recorded) >= len(made) - 2  # each worker may have died between its shard and the shard's record
    assert tree(out) == converted_large


@pytest.mark.exhaustive
def test_killed_at_twenty_random_moments_it_ends_with_the_same_bytes(
    large_source: Path, converted_large: dict[str, bytes], tmp_path: Path
) -> None:
    seed = random.randrange(2**32)
    print("seed of the moments:", seed)
    rng, ended = random.Random(seed), 0
    for number in range(KILLS):
        out = tmp_path / f"out{ended}"
        process = start_large(large_source, out)
        time.sleep(rng.uniform(0.0, 1.0))
        kill(process)
        if process.returncode == 0:  # it was done before
            assert tree(out) == converted_large, number
            ended += 1
    convert(large_source, tmp_path / f"out{ended}", "--workers", 7)
    assert tree(tmp_path / f"out{ended}") == converted_large
    assert ended < KILLS // 2, "most of the kills came too late"


def test_a_shard_that_was_damaged_meanwhile_is_made_anew(
    large_source: Path, converted_large: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = start_large(large_source, out)
    wait_for_first_shard(out, process)
    kill(process)
    shard = min((out / "train").glob("shard.*"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    convert(large_source, out)
    assert tree(out) == converted_large


@pytest.mark.exhaustive
def test_an_interrupted_conversion_is_not_gone_on_with_by_another_command(large_source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start_large(large_source, out)
    wait_for_first_shard(out, process)
    kill(process)
    before = {name: data for name, data in tree(out).items() if name != ".convert/lock"}
    done = run("--source", large_source, "--out", out, *SMALL_SHARDS, "--seed", 5)
    assert done.returncode == 2
    assert "has a part of train that was created with other settings:\n  --seed: 0 there, 5 now" in done.stderr
    assert tree(out) == before
    convert(large_source, out, "--seed", 5, "--overwrite")
    convert(large_source, tmp_path / "fresh", "--seed", 5)
    assert tree(out) == tree(tmp_path / "fresh")


def with_other_versions(path: Path) -> None:
    """Have a manifest or a plan be another version's, with another Pillow."""
    text = path.read_text()
    for name in ("convert", "pillow", "libjpeg"):
        text, count = re.subn(rf'"{name}": "[^"]*"', f'"{name}": "0.0.1"', text)
        assert count
    path.write_text(text)


def of_train(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in files.items() if name.startswith("train/")}


def test_another_version_goes_on_and_completes_where_nothing_is_encoded_anew(
    large_source: Path, converted_large: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = start_large(large_source, out)
    wait_for_first_shard(out, process)
    kill(process)
    with_other_versions(out / ".convert/train/plan.json")
    convert(large_source, out)
    assert tree(out) == converted_large

    with_other_versions(out / "manifest.json")
    next((out / "train").glob("shard.*")).unlink()
    assert "complete" in convert(large_source, out)
    assert of_train(tree(out)) == of_train(converted_large)


def test_another_version_is_refused_where_images_are_encoded_anew(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_noise(tmp_path / f"source/train/{name}/1.png", 1)
    out = tmp_path / "out"
    convert(tmp_path / "source", out)
    with_other_versions(out / "manifest.json")
    done = run("--source", tmp_path / "source", "--out", out, *SMALL_SHARDS)
    assert done.returncode == 2 and "the version of pillow: 0.0.1 there, " in done.stderr
    assert "version of convert" not in done.stderr


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_it_ends_at_once_and_goes_on(
    large_source: Path, converted_large: dict[str, bytes], tmp_path: Path, number: signal.Signals, status: int
) -> None:
    out = tmp_path / "out"
    process = start_large(large_source, out)
    wait_for_first_shard(out, process)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does: to the workers too
    else:
        process.send_signal(number)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == status, stderr
    assert "Traceback" not in stderr, stderr
    assert not (out / ".convert/lock").exists()
    assert_only_whole_shards(out)
    convert(large_source, out)
    assert tree(out) == converted_large


@pytest.mark.parametrize("delay_s", [0.0, 0.2, 0.5])
def test_ctrl_c_while_workers_start_prints_no_traceback(large_source: Path, tmp_path: Path, delay_s: float) -> None:
    process = start_large(large_source, tmp_path / "out")
    assert process.stderr is not None
    while "shards with" not in process.stderr.readline():
        assert process.poll() is None
    time.sleep(delay_s)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=20)
    *progress, last = stderr.splitlines()
    assert (process.returncode, last) == (130, "imagenet_to_mds: interrupted")
    assert all("are made and stay; the same command resumes" in line for line in progress)


def test_after_a_bad_image_skipping_goes_on(source: Path, tmp_path: Path) -> None:
    out, files = tmp_path / "out", listing(source)
    files[25].write_bytes(files[25].read_bytes()[:-40])
    failed = run("--source", source, "--out", out, "--workers", 1, *SMALL_SHARDS)
    assert failed.returncode == 1 and "are made and stay" in failed.stderr
    made = list((out / "train").glob("shard.*"))
    said = convert(source, out, "--on-bad", "skip")
    assert f"{len(made)} of them written before" in said and "1 refused" in said
    convert(source, tmp_path / "fresh", "--on-bad", "skip")
    assert tree(out) == tree(tmp_path / "fresh")


def test_a_second_converter_is_told_who_holds_the_output(large_source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start_large(large_source, out)
    wait_for_first_shard(out, process)
    second = run("--source", large_source, "--out", out, *SMALL_SHARDS)
    assert process.poll() is None, "too fast for this test"
    assert second.returncode == 1
    assert f"process {process.pid} on {socket.gethostname()} is converting to {out}" in second.stderr
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert not (out / ".convert").exists()


@pytest.mark.parametrize(
    ("other", "age_s", "taken_over"),
    [
        pytest.param({"host": "another-machine", "boot_id": "another"}, 0, False, id="another_machine"),
        pytest.param({"host": "another-machine", "boot_id": "another"}, 700, True, id="another_machine_long_ago"),
        pytest.param({"pid_namespace": "pid:[1]"}, 0, False, id="another_container_with_this_machines_name"),
        pytest.param({}, 0, True, id="this_machine"),
    ],
)
def test_the_lock_of_a_dead_process_is_taken_over(
    source: Path, tmp_path: Path, other: dict[str, str], age_s: float, taken_over: bool
) -> None:
    lock = tmp_path / "out/.convert/lock"
    lock.parent.mkdir(parents=True)
    process = subprocess.Popen(["true"])
    process.wait()
    holder = process_identity() | {"pid": process.pid, "start_ticks": "1", "since": 0} | other
    lock.write_text(json.dumps(holder))
    os.utime(lock, (time.time() - age_s,) * 2)
    done = run("--source", source, "--out", tmp_path / "out")
    assert done.returncode == (0 if taken_over else 1)
    words = "took over the lock of" if taken_over else f"process {process.pid} on {holder['host']} is converting"
    assert words in done.stderr
    assert lock.exists() is not taken_over


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 KB."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", place], check=True)
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_disk_is_said_and_room_lets_it_go_on(
    source: Path, converted: Path, tmp_path: Path, small_disk: Path
) -> None:
    (small_disk / "other").write_bytes(bytes(150_000))
    out = small_disk / "out"
    done = run("--source", source, "--out", out, "--workers", 1, *SMALL_SHARDS)
    assert done.returncode == 1
    full = (
        r"cannot be written: No space left on device; [\d,]+ bytes are free in \S+, [\d,]+ are needed. Free some space"
    )
    assert re.search(rf"{full} or choose another --out; a dataset takes as much room as its images", done.stderr)
    assert not [name for name in tree(out) if name.endswith(("index.json", "manifest.json", ".tmp"))]
    assert_only_whole_shards(out)
    (small_disk / "other").unlink()
    assert "written before" in convert(source, out)
    assert tree(out) == tree(converted)
