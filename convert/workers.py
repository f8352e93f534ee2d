"""Build shards in worker processes: each one reads, checks, encodes and writes a shard at a time.

A shard depends on its task and on the options alone, so the number of workers changes nothing. A shard that an earlier
run has made is not made again, once its file proves to be as that run left it.
"""

import hashlib
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import Literal

from convert.claims import Claims
from convert.images import Checked, Resize, check_image
from convert.journal import Journal, Record, is_as_written, receipt_of
from convert.plan import ShardTask
from convert.pool import Death, WorkersDied, in_order, note
from convert.sources import Sample
from convert.tally import KeptImage, ShardResult
from convert.trials import which_kill
from imagestream.decode.limits import MAX_FILE_BYTES
from imagestream.decode.rgb import BadImage
from imagestream.mds.manifest import MendedFile, RefusedFile
from imagestream.mds.names import printable
from imagestream.mds.shards import EncodedShard, ShardFormat, encode_sample, encode_shard
from imagestream.storage.protocol import Place, Stat

OnBad = Literal["fail", "skip"]


class WorkerError(RuntimeError):
    """A worker could not do its task, for a reason that is not the content of an image."""


@dataclass(frozen=True, slots=True)
class Job:
    """What is the same for all shards: where images come from, where shards go, and how they are made.

    `deadly` holds (split, sample id) -> the reason of images known to kill the process that checks them.
    """

    files: Place
    output: Place
    on_bad: OnBad
    form: ShardFormat
    resize: Resize | None = None
    turn: bool = False  # as EXIF says
    deadly: dict[tuple[str, int], str] = field(default_factory=dict)
    claims: Claims | None = None  # where several machines share the work
    seen: Mapping[str, Stat] = field(default_factory=dict)  # of files that hold several images, when they were listed


def build_shards(tasks: Iterable[ShardTask], job: Job, *, workers: int) -> Generator[ShardResult, None, None]:
    """Carry out the tasks in `workers` processes and yield the results in order.

    With `on_bad='fail'` no task is started after the first bad image, but those under way are finished, so
    that one run names as many bad images as it has found. An image that kills its worker is found, and is a bad image
    like any other. Closing the iterator kills the workers.

    Raises:
        WorkerError: an image's file cannot be read, or a worker was killed and no image is to blame.
        PlaceError: a shard cannot be written.
        SessionOverError: the other machines have completed the dataset.
    """
    stopped = False

    def queue() -> Iterator[ShardTask]:
        for task in tasks:
            if stopped:
                return
            yield task

    waiting: Iterable[ShardTask] = queue()
    while True:
        try:
            for result in in_order(partial(build_shard, job=job), waiting, workers=workers):
                stopped = stopped or bool(result.refused and job.on_bad == "fail")
                yield result
            return
        except WorkersDied as died:
            yield from died.finished
            job = replace(job, deadly=job.deadly | _deadly_images(died, job))
            waiting = chain(died.unfinished, waiting)


def _deadly_images(died: WorkersDied, job: Job) -> dict[tuple[str, int], str]:
    """The images of the shards at which workers died that kill a process by themselves.

    Raises:
        WorkerError: there is none.
    """
    found: dict[tuple[str, int], str] = {}
    tasks = {task.name: task for task in died.unfinished}
    for death in died.deaths:
        task = tasks.get(death.note.partition(" ")[0])
        if task:
            killers = which_kill(partial(_images_of, task, job), partial(check_image, resize=job.resize, turn=job.turn))
            found |= {(task.split, n): f"it kills the process that decodes it ({how})" for n, how in killers.items()}
    if not found:
        raise WorkerError(_who_died(died.deaths, tasks) + _advice(died.deaths))
    return found


def _advice(deaths: Sequence[Death]) -> str:
    if all(death.how == "SIGKILL" for death in deaths):
        return ", perhaps because memory ran out; use fewer --workers or a smaller --size-limit"
    return ". Give the same command again, which resumes; if it ends so once more, look at the machine's memory"


def _who_died(deaths: Sequence[Death], tasks: Mapping[str, ShardTask]) -> str:
    for death in deaths:
        name, _, sample_id = death.note.partition(" ")
        keys = [sample.key for n, sample in tasks[name].samples if str(n) == sample_id] if name in tasks else []
        if keys:
            return (
                f"a worker process was killed ({death.how}) while it had {printable(keys[0])}; neither this image nor "
                "another of its shard ends a process by itself"
            )
    return f"a worker process was killed ({deaths[0].how})" if deaths else "a worker process was killed"


def _images_of(task: ShardTask, job: Job) -> Iterator[tuple[int, bytes]]:
    """(sample id, bytes) of the images of a shard that are not known to be deadly."""
    samples = [(n, sample) for n, sample in task.samples if (task.split, n) not in job.deadly]
    yield from zip((n for n, _ in samples), _read_all(samples, job.files, job.seen), strict=True)


def build_shard(task: ShardTask, job: Job) -> ShardResult:
    """Have one shard written: as an earlier run left it or, where that is not whole, anew.

    Holds one shard in memory, never more.
    """
    journal = Journal(job.output, task.split)
    known = journal.get(task.index)
    if known:
        if (job.claims and not job.claims.checks_made) or is_as_written(job.output, known):
            return replace(known.result, reused=True)
        if job.claims:
            journal.forget(task.index)
    if job.claims and not job.claims.take(journal.claim_name(task.index)):
        return ShardResult(task.split, task.index, images=len(task.samples), by_another=True)
    result, shard = make_shard(task, job)
    if result.refused and job.on_bad == "fail":
        return result
    if job.claims:
        job.claims.check_session()
    if shard is None:
        journal.add(Record(result, None, 0, ""))
        return result
    file = f"{task.split}/{shard.file}"
    receipt = receipt_of(job.output.write(file, shard.data), shard.data)
    journal.add(Record(result, file, len(shard.data), receipt))
    return result


def make_shard(task: ShardTask, job: Job) -> tuple[ShardResult, EncodedShard | None]:
    """Read, check and encode the images of one shard; no shard where all of them are refused."""
    result = ShardResult(task.split, task.index, images=len(task.samples))
    encoded: list[bytes] = []
    for (sample_id, sample), data in zip(task.samples, _read_all(task.samples, job.files, job.seen), strict=True):
        path = printable(sample.key)
        note(f"{task.name} {sample_id}")
        try:
            image = _check(sample, data, job, job.deadly.get((task.split, sample_id)))
        except BadImage as error:
            result.refused.append(RefusedFile(id=sample_id, path=path, label=sample.label, reason=str(error)))
            continue
        encoded.append(encode_sample(sample_id, image.data, sample.label))
        digest = hashlib.sha256(image.data).hexdigest()
        size = (image.width_px, image.height_px)
        result.kept.append(KeptImage(sample_id, sample.label, *size, len(image.data), digest))
        result.resized += image.resized
        result.ignored_turns += image.ignored_turn
        if image.mended:
            result.mended.append(MendedFile(id=sample_id, path=path, label=sample.label, what=image.mended))
    if not encoded:
        return result, None
    try:
        shard = encode_shard(task.index, encoded, job.form)
    except OverflowError as error:
        raise WorkerError(str(error)) from error
    result.entry = shard.entry
    return result, shard


def _check(sample: Sample, data: bytes, job: Job, deadly: str | None) -> Checked:
    if deadly:
        raise BadImage(deadly)
    if sample.size_bytes > MAX_FILE_BYTES:
        raise BadImage(f"a file of {sample.size_bytes:,} bytes is more than the {MAX_FILE_BYTES:,} allowed")
    return check_image(data, job.resize, turn=job.turn)


def _read_all(samples: Sequence[tuple[int, Sample]], files: Place, seen: Mapping[str, Stat]) -> Iterator[bytes]:
    """The bytes of the samples in order; from a place that takes its time to answer, several at once."""
    if files.concurrency == 1:
        for _, sample in samples:
            yield _read(files, sample, seen)
        return
    with ThreadPoolExecutor(files.concurrency) as pool:
        ahead: deque[Future[bytes]] = deque()
        for _, sample in samples:
            ahead.append(pool.submit(_read, files, sample, seen))
            if len(ahead) > files.concurrency:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _read(files: Place, sample: Sample, seen: Mapping[str, Stat]) -> bytes:
    if sample.size_bytes > MAX_FILE_BYTES:
        return b""  # it will be refused for its size, and need not fill the memory before
    try:
        if sample.offset_bytes is not None:
            return files.read(sample.file, sample.offset_bytes, sample.size_bytes, seen=seen.get(sample.file))
        data = files.read(sample.file)
        if len(data) != sample.size_bytes:
            raise OSError(0, f"it had {sample.size_bytes:,} bytes when the conversion began, now {len(data):,}")
        return data
    except OSError as error:  # a failing disk must not pass for a bad image, which --on-bad skip would leave out
        raise WorkerError(f"cannot read {printable(sample.key)}: {error.strerror or error}") from error
