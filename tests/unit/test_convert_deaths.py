"""An image that kills the process that works on it is found, named, and treated as --on-bad says."""

import os
import random
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from convert.images import Resize
from convert.plan import ShardTask
from convert.pool import WorkersDied, in_order, note
from convert.sources import Sample
from convert.trials import which_kill
from convert.workers import Job, WorkerError, build_shards
from imagestream.mds.shards import ShardFormat
from imagestream.storage.local import LocalPlace
from imagestream.storage.protocol import Stat
from tests.jpegs import jpeg

pytestmark = pytest.mark.slow

FORM = ShardFormat(100_000)
DEADLY_SIDE_PX = 66  # an image of this width kills its process, by way of `Deadly`


@dataclass(frozen=True, slots=True)
class Deadly(Resize):
    """A step of the check that crashes at some images, as a decoder's fault would."""

    by: int = signal.SIGSEGV

    def size(self, width_px: int, height_px: int) -> tuple[int, int]:
        if width_px == DEADLY_SIDE_PX:
            os.kill(os.getpid(), self.by)
        return width_px, height_px


DEADLY = Deadly("max", 1000, 90, "4:2:0")


def tasks(folder: Path, widths: list[list[int]]) -> list[ShardTask]:
    """A shard for each list, with images of these widths."""
    made, number = [], 0
    for index, row in enumerate(widths):
        samples = []
        for width in row:
            data = jpeg(width, 40, seed=number)
            (folder / f"{number}.jpg").write_bytes(data)
            sample = Sample(f"train/a/{number}.jpg", 0, len(data), file=f"{number}.jpg")
            samples.append((number, sample))
            number += 1
        made.append(ShardTask("train", index, tuple(samples)))
    return made


@pytest.mark.parametrize("workers", [1, 2])
def test_images_that_kill_their_worker_are_left_out_and_the_rest_is_converted(tmp_path: Path, workers: int) -> None:
    work = tasks(tmp_path, [[50, 51], [52, 66, 53, 66], [54], [55, 66], [56]])
    job = Job(LocalPlace(tmp_path), LocalPlace(tmp_path / "out"), "skip", FORM, DEADLY)
    results = list(build_shards(work, job, workers=workers))
    refused = {file.id: (file.path, file.reason) for result in results for file in result.refused}
    reason = "it kills the process that decodes it (SIGSEGV)"
    assert refused == {number: (f"train/a/{number}.jpg", reason) for number in (3, 5, 8)}
    assert sorted(result.index for result in results) == [0, 1, 2, 3, 4]
    kept = {result.index: [image.width_px for image in result.kept] for result in results}
    assert kept == {0: [50, 51], 1: [52, 53], 2: [54], 3: [55], 4: [56]}


def test_on_bad_fail_names_the_image_and_stops(tmp_path: Path) -> None:
    work = tasks(tmp_path, [[50, 66], *[[51]] * 20])
    job = Job(LocalPlace(tmp_path), LocalPlace(tmp_path / "out"), "fail", FORM, DEADLY)
    results = list(build_shards(work, job, workers=1))
    assert [file.path for result in results for file in result.refused] == ["train/a/1.jpg"]
    assert len(results) < len(work)


class KillsItsReader(LocalPlace):
    """A place whose reader is killed from outside at one file, once: memory ran out."""

    def read(
        self, name: str, offset_bytes: int = 0, size_bytes: int | None = None, *, seen: Stat | None = None
    ) -> bytes:
        flag = self.path / "killed"
        if name == "1.jpg" and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return LocalPlace.read(self, name, offset_bytes, size_bytes, seen=seen)


def test_a_worker_killed_from_outside_is_no_bad_image(tmp_path: Path) -> None:
    work = tasks(tmp_path, [[50, 51, 52]])
    job = Job(KillsItsReader(tmp_path), LocalPlace(tmp_path / "out"), "skip", FORM)
    expected = (
        r"was killed \(SIGKILL\) while it had train/a/0.jpg; neither .* by itself, perhaps because memory ran out"
    )
    with pytest.raises(WorkerError, match=expected):
        list(build_shards(work, job, workers=1))


def work_on(number: int, *, deadly: int) -> int:
    note(f"number {number}")
    if number == deadly:
        os.abort()
    return number


def test_the_pool_tells_who_died_over_what_and_loses_no_task() -> None:
    queue = iter(range(40))
    seen = []
    with pytest.raises(WorkersDied) as caught:
        for result in in_order(partial(work_on, deadly=17), queue, workers=2):
            seen.append(result)
    died = caught.value
    assert [(death.how, death.note) for death in died.deaths] == [("SIGABRT", "number 17")]
    assert sorted([*seen, *died.finished, *died.unfinished, *queue]) == list(range(40))
    assert 17 in died.unfinished and seen == sorted(seen)


def test_the_pool_tells_of_an_exit_too() -> None:
    with pytest.raises(WorkersDied) as caught:
        list(in_order(os._exit, [3], workers=1))
    assert [death.how for death in caught.value.deaths] == ["exit status 3"]


def images(count: int) -> Iterator[tuple[int, bytes]]:
    yield from ((number, bytes([number])) for number in range(count))


def damage_the_heap(data: bytes) -> None:
    if data == b"\x03":
        os.abort()
    if data == b"\x05":
        raise ValueError(random.random())


def test_a_trial_finds_the_image_that_kills_and_none_that_raises() -> None:
    assert which_kill(partial(images, 8), damage_the_heap) == {3: "SIGABRT"}
