"""What a conversion on many machines will take: hours, dollars, and what holds it back.

    python infra/plan/conversion.py --images 14.2e6 --mean-kb 92 --machines 16 --instance c6i.8xlarge

Four phases follow one another. Every machine lists the source and makes the plan by itself, so more machines make that
no shorter. Then all of them make shards. At the end one machine completes the dataset. The figures of one core are
measured (docs/performance.md); the machines and their prices are in infra/plan/converters.yaml. Requests to S3 are not
in the price; traffic within a region costs nothing.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

# Started as a script, Python puts this file's own folder on the path; the packages are two above.
_HERE = Path(__file__).resolve().parent
if Path(sys.path[0] or ".").resolve() == _HERE:
    sys.path[0] = str(_HERE.parents[1])

from infra.plan.arguments import positive, whole_number
from infra.plan.dataset import KB_PER_IMAGE
from infra.plan.speed import HYPERTHREAD_GAIN, S3_SHARE_OF_NETWORK

EXIT_REFUSED = 2
TABLE = Path(__file__).with_name("converters.yaml")

# Medians on one core by docs/performance.md ("Conversion"). The first two are of whole conversions by one worker, of
# images of 113 KB; time is taken to go with an image's bytes.
MEASURED_KB = KB_PER_IMAGE["original"]
CHECKED_PER_SEC, RESIZED_PER_SEC = 1022.0, 153.0
S3_READS_PER_SEC = 258.0  # one image at a time
UPLOADED_BYTES_PER_SEC = 351e6
# Of one process, which lists and plans on one core.
LISTED_FILES_PER_SEC, LISTED_TAR_BYTES_PER_SEC = 78_900.0, 234e6
PLANNED_PER_SEC, COMPLETED_PER_SEC = 82_700.0, 72_900.0
LIST_BYTES_AN_IMAGE = 560  # of memory, names of ImageNet's length
# What a file system over a network answers for each file that is looked at; an assumption: --files-per-sec replaces it.
SHARED_FILES_PER_SEC = 5_000.0
MACHINES_SHOWN = (1, 2, 4, 8, 16, 32, 64)

ADVICE = {
    "listing": "each machine lists the source by itself: fewer machines cost less, and hardly take longer",
    "planning": "each machine plans by itself: fewer machines cost less, and hardly take longer",
    "processors": "more machines, or more vCPUs each, are faster and cost the same",
    "network": "a type with a faster network is faster",
    "storage": "the file system gives no more: more machines do not help",
    "completing": "one machine completes the dataset: fewer machines cost less, and hardly take longer",
}


class UnknownMachineError(ValueError):
    """No such instance type in the table; the message lists those there are."""


@dataclass(frozen=True)
class Converter:
    """One instance type. Prices are USD an hour."""

    name: str
    vcpus: int
    memory_gib: float
    network_gbit: float
    usd_per_hour: float
    spot_usd_per_hour: float

    @property
    def cores(self) -> float:
        """How many times one core's work it does; a vCPU is a hyper-thread."""
        return self.vcpus / 2 * HYPERTHREAD_GAIN

    @property
    def network_bytes_per_sec(self) -> float:
        """What of its network reading and writing get."""
        return self.network_gbit * 1e9 / 8 * S3_SHARE_OF_NETWORK


@dataclass(frozen=True)
class Task:
    """What is to be converted.

    Attributes:
        stored_bytes: of an image in the shards, in the mean; as its original where nothing is resized.
        files_bytes_per_sec: what the shared file system gives to all machines together; None: the source is tars in S3.
        files_per_sec: how many files of it one machine looks at.
    """

    images: int
    image_bytes: float
    stored_bytes: float
    is_resized: bool
    files_bytes_per_sec: float | None
    files_per_sec: float = SHARED_FILES_PER_SEC


@dataclass(frozen=True)
class Plan:
    """Seconds of each phase, in order, and what making shards waits for."""

    machines: int
    seconds: dict[str, float]
    shards_wait_for: str
    images_per_sec: float  # while shards are made

    @property
    def hours(self) -> float:
        return sum(self.seconds.values()) / 3600

    @property
    def binding(self) -> str:
        """The longest phase or, of the making of shards, what that waits for."""
        longest = max(self.seconds, key=lambda name: self.seconds[name])
        return self.shards_wait_for if longest == "shards" else longest


def predict(task: Task, machine: Converter, machines: int) -> Plan:
    """Predict a conversion."""
    rates = {
        "processors": machines * machine.cores / core_seconds(task),
        "network": machines * machine.network_bytes_per_sec / max(task.image_bytes, task.stored_bytes),
    }
    if task.files_bytes_per_sec is not None:
        rates["storage"] = task.files_bytes_per_sec / task.image_bytes
    slowest = min(rates, key=lambda name: rates[name])
    seconds = {
        "listing": listing_seconds(task, machine),
        "planning": task.images / PLANNED_PER_SEC,
        "shards": task.images / rates[slowest],
        "completing": task.images / COMPLETED_PER_SEC,
    }
    return Plan(machines, seconds, slowest, rates[slowest])


def core_seconds(task: Task) -> float:
    """Seconds of one core for an image: read, checked or resized, and stored in S3."""
    made_s = task.image_bytes / (MEASURED_KB * 1e3) / (RESIZED_PER_SEC if task.is_resized else CHECKED_PER_SEC)
    read_s = 1 / S3_READS_PER_SEC if task.files_bytes_per_sec is None else 0.0  # from files it is in the first figure
    return made_s + read_s + task.stored_bytes / UPLOADED_BYTES_PER_SEC


def listing_seconds(task: Task, machine: Converter) -> float:
    """Each machine's time to see what there is to convert; of tars in S3 it reads nearly all bytes."""
    if task.files_bytes_per_sec is None:
        return task.images * task.image_bytes / min(LISTED_TAR_BYTES_PER_SEC, machine.network_bytes_per_sec)
    return task.images / min(LISTED_FILES_PER_SEC, task.files_per_sec)


def converter(name: str) -> Converter:
    """Return one instance type.

    Raises:
        UnknownMachineError: it is not in the table.
    """
    table = yaml.safe_load(TABLE.read_text())["machines"]
    if name not in table:
        raise UnknownMachineError(f"{name}: not in infra/plan/converters.yaml, which has {', '.join(table)}")
    return Converter(name=name, **table[name])


def main(argv: Sequence[str]) -> int:
    """Run the command; return its exit status."""
    args = parse(argv)
    try:
        machine = converter(args.instance)
    except UnknownMachineError as error:
        print(f"infra/plan/conversion.py: {error}", file=sys.stderr)
        return EXIT_REFUSED
    stored_kb = KB_PER_IMAGE[args.resize] * args.mean_kb / MEASURED_KB if args.resize else args.mean_kb
    task = Task(
        images=round(args.images),
        image_bytes=args.mean_kb * 1e3,
        stored_bytes=stored_kb * 1e3,
        is_resized=args.resize is not None,
        files_bytes_per_sec=args.files_gb_per_sec * 1e9 if args.files_gb_per_sec else None,
        files_per_sec=args.files_per_sec,
    )
    print("\n".join(lines(task, machine, args.machines)))
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the command's arguments."""
    parser = argparse.ArgumentParser(
        prog="infra/plan/conversion.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--images", type=positive, default=1_281_167, help="how many (default: ImageNet-1k's %(default)s)")
    add("--mean-kb", type=positive, default=MEASURED_KB, metavar="KB", help="an image (default: %(default)s)")
    add("--machines", type=whole_number, default=16, help="how many (default: %(default)s)")
    add("--instance", default="c6i.8xlarge", help="a type of infra/plan/converters.yaml (default: %(default)s)")
    sizes = [name for name in KB_PER_IMAGE if name != "original"]
    add("--resize", choices=sizes, help="as given to the converter (default: original bytes)")
    add(
        "--files-gb-per-sec",
        type=positive,
        metavar="GB",
        help="the source is class folders on a file system that gives so much to all machines together (default: the "
        "source is tars in S3)",
    )
    add(
        "--files-per-sec",
        type=positive,
        default=SHARED_FILES_PER_SEC,
        help="files of it that a machine lists a second (default: %(default)s, an assumption)",
    )
    return parser.parse_args(argv)


def lines(task: Task, machine: Converter, machines: int) -> Iterator[str]:
    """The report, fit to be read."""
    plan = predict(task, machine, machines)
    where = "tars in S3" if task.files_bytes_per_sec is None else "class folders on a shared file system"
    yield (
        f"{task.images:,} images of {task.image_bytes / 1e3:.0f} KB, {where}, on {machines} x {machine.name}"
        f"{f'; {task.stored_bytes / 1e3:.0f} KB each in the shards' if task.is_resized else ''}"
    )
    notes = {
        "listing": "each machine by itself",
        "planning": "each machine by itself",
        "shards": f"{plan.images_per_sec:,.0f} images/s together; they wait for the {plan.shards_wait_for}",
        "completing": "the last machine",
    }
    for name, seconds in plan.seconds.items():
        yield f"  {name:12}{seconds / 60:7.0f} min  {notes[name]}"
    table = yaml.safe_load(TABLE.read_text())
    yield (
        f"{plan.hours:.1f} h, ${usd(plan, machine.usd_per_hour):,.0f} on demand, "
        f"${usd(plan, machine.spot_usd_per_hour):,.0f} on spot (prices of {table['prices_read']}, "
        f"{table['region']}: check them)"
    )
    yield f"binding: {plan.binding}; {ADVICE[plan.binding]}"
    needed_gb = task.images * LIST_BYTES_AN_IMAGE / 1e9
    room = "" if needed_gb < 0.8 * machine.memory_gib else ": TOO LITTLE, take a type with more"
    yield f"memory: {needed_gb:.1f} GB for the list on each machine, which has {machine.memory_gib:g} GiB{room}"
    yield "machines  hours  USD on demand  binding"
    for count in MACHINES_SHOWN:
        other = predict(task, machine, count)
        yield f"{count:8}  {other.hours:5.1f}  {usd(other, machine.usd_per_hour):13,.0f}  {other.binding}"
    yield "Predicted, not measured on AWS: take a factor of 2 as the error"


def usd(plan: Plan, usd_per_hour: float) -> float:
    """What all machines cost from the first phase to the last; those that have nothing to do yet wait."""
    return plan.machines * plan.hours * usd_per_hour


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
