"""How the jobs of a cluster go: batch, images/s, time left and cost, again and again."""

import calendar
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from imagestream.mds.names import shown
from imagestream.storage.errors import PlaceError
from infra.aws.queues import SPOT, queue_of
from infra.aws.spending import RefusedError, job_step
from train.record.reading import RunError, read_run
from train.record.summary import duration

SECONDS_BETWEEN_LOOKS = 30.0
CLEAR_LINES = "\x1b[{}A\x1b[J"  # up by so many lines, and nothing below
FIELDS = "%i|%j|%P|%T|%D|%S|%R"
# Each job on a line, then its newest sign of life, a line of JSON, if it has one.
LOOK = [
    f"squeue --noheader --format='{FIELDS}' | while IFS= read -r line; do",
    '  echo "$line"',
    '  cat code/*/runs/slurm/"${line%%|*}"/heartbeat-node0.json 2>/dev/null | tail -n 1 || true',
    "done",
    "date +now=%s",
]
OnHead = Callable[[Sequence[str]], str]


@dataclass(frozen=True)
class Seen:
    """One job at one look.

    Attributes:
        job: its number; that of an array's task is "12_3".
        batch, sample: done, by its sign of life; None before the first.
        beat_at: when that was, UNIX s.
        running_s: since this start of it; 0 while it waits.
        why: Slurm's reason while it waits, else its nodes.
    """

    job: str
    run: str
    queue: str
    state: str
    nodes: int
    why: str
    running_s: float
    batch: int | None
    sample: int | None
    beat_at: float

    @property
    def usd(self) -> float | None:
        """What this start has cost; None where the price is not known."""
        try:
            queue = queue_of(self.queue)
            step = job_step(queue.machine.name, self.nodes, spot=queue.paid == SPOT)
        except RefusedError:
            return None
        return step.usd_per_hour * self.running_s / 3600 if step.usd_per_hour else None


def show_jobs(on_head: OnHead, runs: str, *, follow: bool) -> None:
    """Print the jobs; with `follow` keep printing until there is none, or until Ctrl-C.

    Args:
        on_head: runs shell lines on the head node and returns what they print.
        runs: the folder of the runs' records, s3://.
        follow: whether to look again.
    """
    before: dict[str, Seen] = {}
    printed = 0
    while True:
        seen = read_jobs(on_head(LOOK))
        lines = [line_of(job, before.get(job.job), runs) for job in seen] or ["no jobs"]
        if printed and sys.stdout.isatty():
            print(CLEAR_LINES.format(printed), end="")
        print(shown("\n".join(lines)), flush=True)
        if not follow or not seen:
            return
        printed, before = len(lines), {job.job: job for job in seen}
        time.sleep(SECONDS_BETWEEN_LOOKS)  # until the queue is empty; Ctrl-C ends it


def read_jobs(text: str) -> list[Seen]:
    """What LOOK has printed."""
    lines = [line for line in text.splitlines() if line.strip()]
    now = next((float(line.partition("=")[2]) for line in lines if line.startswith("now=")), time.time())
    found: list[Seen] = []
    for index, line in enumerate(lines):
        if line.count("|") < FIELDS.count("|"):
            continue
        job, run, queue, state, nodes, start, why = line.split("|", 6)
        following = lines[index + 1] if index + 1 < len(lines) else ""
        beat = _beat(following)
        since = _seconds_since(start, now) if state == "RUNNING" else 0.0
        found.append(
            Seen(
                *(job, run, queue, state, int(nodes), why, since),
                *(beat.get("batch"), beat.get("sample"), float(beat.get("unix_time_s") or 0)),
            )
        )
    return found


def _beat(line: str) -> dict[str, int]:
    if not line.startswith("{"):
        return {}
    try:
        beat: dict[str, int] = json.loads(line)
    except ValueError:
        return {}
    return beat


def _seconds_since(start: str, now: float) -> float:
    """squeue's StartTime is the head node's local time, which ParallelCluster has in UTC."""
    try:
        began = time.strptime(start, "%Y-%m-%dT%H:%M:%S")
    except ValueError:
        return 0.0
    return max(0.0, now - calendar.timegm(began))


def line_of(job: Seen, before: Seen | None, runs: str) -> str:
    """One job in one line."""
    parts = [f"job {job.job}", job.run, f"{job.nodes} x {job.queue}", job.state.lower()]
    if job.state != "RUNNING":
        return "  ".join([*parts, job.why])
    if job.batch is None:
        return "  ".join([*parts, f"for {duration(job.running_s)}, before its first batch"])
    total = _total_batches(f"{runs}/{job.run}")
    parts.append(f"batch {job.batch:,}" + (f" of {total:,}" if total else ""))
    moved = before is not None and before.batch is not None and job.beat_at > before.beat_at
    if moved and before is not None and before.batch is not None:
        seconds = job.beat_at - before.beat_at
        if job.sample is not None and before.sample is not None:
            parts.append(f"{max(0, job.sample - before.sample) / seconds:,.0f} images/s")
        if total and job.batch > before.batch:
            parts.append(f"{duration((total - job.batch) * seconds / (job.batch - before.batch))} left")
    if job.usd is not None:
        parts.append(f"${job.usd:.2f} since this start")
    return "  ".join(parts)


def _total_batches(folder: str) -> int | None:
    """The run's batches by its record, which it writes after its first epoch."""
    try:
        return int(read_run(folder).record["batch"]["total_steps"])
    except (RunError, PlaceError):
        return None
