"""The whole way from photos to a trained model on this machine, with a run that is killed and ends the same.

    python demo/run.py              what `make demo` does: under 5 minutes on two idle CPU cores
    python demo/run.py --kills 3    killed three times instead of once
    python demo/run.py --quick      one short training, nothing killed
    python demo/run.py --only-data  the images and the shards

It draws 1,501 JPEGs, converts them to MDS shards, trains a ResNet-18 on two ranks, trains it again while killing the
whole process tree in mid-epoch, resumes by the same command, and compares every bit of the two results. The commands
are the ones for ImageNet. Exit status: 0 all is as it should be, 1 it is not.
"""

import argparse
import itertools
import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Started as a script, Python puts this file's own folder on the path; the packages are in the one above.
ROOT = Path(__file__).resolve().parents[1]
if Path(sys.path[0] or ".").resolve() == ROOT / "demo":
    sys.path[0] = str(ROOT)

from demo.images import MARKER, SAMPLES, make_images
from demo.processes import DemoError, Log, exit_on_signals, follow, kill_session, started
from demo.summary import Killed, Outcome, differences, full_summary, quick_summary

STAGE_LIMIT_S = 900
SEED_OF_THE_KILLS = 3
SHARD_SIZE = "4MB"  # a handful of shards rather than one
MICROBATCH_SIZE = 32  # on GPUs, where `auto` would rule out the same bits twice
CONFIG = "yamls/tiny.yaml"
RUNS = ("undisturbed", "interrupted", "quick")
FILES_OF_RUNS = ("evaluate.json", "two-runs.png")  # and a log of each command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; return its exit code."""
    args = parse(argv)
    exit_on_signals()
    gpus = gpu_count()
    demo = Demo(args.out.resolve(), ranks=gpus or 2, on_gpu=gpus > 0, epochs=args.epochs)
    try:
        if args.only_data:
            demo.make_data(stages=2)
        else:
            print(run_quick(demo) if args.quick else run_full(demo, kills=args.kills))
    except (DemoError, FileExistsError) as error:
        print(f"\ndemo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndemo: interrupted; its processes are gone", file=sys.stderr)
        return 1
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the command's arguments."""
    parser = argparse.ArgumentParser(
        prog="demo/run.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    short = parser.add_mutually_exclusive_group()
    short.add_argument("--quick", action="store_true", help="one short training on one process, nothing killed")
    short.add_argument("--only-data", action="store_true", help="draw and convert the images, and train nothing")
    parser.add_argument("--kills", type=int, default=1, choices=range(1, 6), metavar="N", help="1 to 5 (default: 1)")
    parser.add_argument(
        "--epochs", type=int, metavar="N", help="train for N epochs rather than as many as tiny.yaml says"
    )
    parser.add_argument(
        "--out", type=Path, default=ROOT / "demo", metavar="DIR", help="where data/ and runs/ go (default: demo/)"
    )
    return parser.parse_args(argv)


def run_full(demo: "Demo", *, kills: int) -> str:
    """Do everything; return the summary."""
    demo.remove_runs()
    demo.make_data(stages=7)
    with demo.stage("train undisturbed"):
        demo.train("undisturbed", "undisturbed")
    undisturbed = demo.record("undisturbed")
    points = kill_points(undisturbed, kills, random.Random(SEED_OF_THE_KILLS))
    with demo.stage(f"train again, killed {'once' if kills == 1 else f'{kills} times'} on the way"):
        killed: list[Killed] = []
        for point in points:
            killed.append(demo.train_until_killed(point, killed))
    with demo.stage("resume by the same command"):
        log = demo.train("interrupted", f"interrupted-{kills + 1}-to-the-end")
        demo.check_resumed(killed[-1], log)
    interrupted = demo.record("interrupted")
    with demo.stage("compare the two runs"):
        if found := differences(undisturbed, interrupted):
            raise DemoError("the interrupted run did not end as the undisturbed one:\n" + "\n".join(found))
        demo.say("the same weights, the same ledger of samples and crops, the same accuracy")
    logs = [demo.runs / f"interrupted-{number}-killed.log" for number in range(1, kills + 1)]
    from demo.picture import draw  # matplotlib takes a second to import

    draw(undisturbed, interrupted, killed, logs, demo.runs / "two-runs.png")
    evaluated = demo.evaluate("interrupted")
    return full_summary(Outcome(undisturbed, interrupted, evaluated, killed, demo.shown(demo.runs), demo.seconds))


def run_quick(demo: "Demo") -> str:
    """Do the short version; return the summary."""
    demo.remove_runs()
    demo.make_data(stages=4)
    with demo.stage("train one epoch on one process"):
        # In batches, so that the images grow within the one epoch: 1,250 // 64 of them.
        demo.train("quick", "quick", "max_duration=19ba", "scheduler.t_warmup=0.2dur", ranks=1)
    evaluated = demo.evaluate("quick")
    return quick_summary(demo.record("quick"), evaluated, demo.shown(demo.runs), demo.seconds)


@dataclass
class Demo:
    """The stages, and where their files are.

    Attributes:
        out: holds data/ and runs/.
        ranks: training processes.
        on_gpu: whether each rank has a GPU.
        epochs: how long to train; None leaves it to the configuration.
    """

    out: Path
    ranks: int
    on_gpu: bool
    epochs: int | None = None

    def __post_init__(self) -> None:
        self.images, self.mds, self.runs = self.out / "data/images", self.out / "data/mds", self.out / "runs"
        self._stage, self._stages = 0, 0
        self._started_at = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds since the demo's beginning."""
        return time.monotonic() - self._started_at

    @contextmanager
    def stage(self, title: str) -> Iterator[None]:
        """Print a banner before, and the duration after."""
        self._stage += 1
        print(f"[{self._stage}/{self._stages}] {title}", flush=True)
        start = time.monotonic()
        yield
        self.say(f"{time.monotonic() - start:.1f} s")

    def say(self, line: str) -> None:
        print(f"      {line}", flush=True)

    def shown(self, path: Path) -> str:
        """Return a path as one would type it."""
        return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)

    def remove_runs(self) -> None:
        """Remove what an earlier demo trained, and nothing else of that folder: this one starts anew."""
        for run in RUNS:
            shutil.rmtree(self.runs / run, ignore_errors=True)
        logs = [self.runs / f"{name}.log" for name in ("convert", "evaluate", *RUNS)]
        for path in [*logs, *self.runs.glob("interrupted-[1-6]-*.log"), *(self.runs / name for name in FILES_OF_RUNS)]:
            path.unlink(missing_ok=True)

    def make_data(self, *, stages: int) -> None:
        """Make the images and the shards unless they are there: the first two of `stages`."""
        self._stages = stages
        with self.stage(f"draw {sum(SAMPLES.values()):,} JPEGs of 10 classes"):
            drawn = make_images(self.images)
            self.say(f"{self.shown(self.images)}" + ("" if drawn else " is complete already"))
        with self.stage("convert them to MDS shards"):
            marker, recipe = self.mds.with_suffix(".complete"), (self.images / MARKER).read_text() + SHARD_SIZE
            is_ours = marker.exists()
            if is_ours and marker.read_text() == recipe:
                self.say(f"{self.shown(self.mds)} is complete already")
                return
            if not is_ours and self.mds.exists():
                raise DemoError(
                    f"{self.shown(self.mds)} is there and not of a demo: choose another --out, or remove it"
                )
            self.mds.parent.mkdir(parents=True, exist_ok=True)
            marker.write_text("begun\n")
            self._convert()
            marker.write_text(recipe)

    def _convert(self) -> None:
        command = ["python", "convert/imagenet_to_mds.py", "--source", self.shown(self.images)]
        command += ["--out", self.shown(self.mds), "--size-limit", SHARD_SIZE, "--overwrite", "--part", "0/1"]
        for line in self._run(command, "convert").text.splitlines():
            if "samples in" in line:
                self.say(line)

    def train(self, run: str, log: str, *overrides: str, ranks: int | None = None) -> Log:
        """Train to the end, resuming what is there."""
        return self._run(self._train_command(run, *overrides, ranks=ranks), log)

    def train_until_killed(self, point: int, before: list[Killed]) -> Killed:
        """Train, resuming from where the run was killed before, and kill all of it once batch `point` is done."""
        command = self._train_command("interrupted")
        name = f"interrupted-{len(before) + 1}-killed"
        self.say("$ " + " ".join(command))
        with started(_runnable(command), self.runs / f"{name}.log", cwd=ROOT) as process:
            log = Log(self.runs / f"{name}.log")
            if not follow(process, log, limit_s=STAGE_LIMIT_S, until=lambda so_far: so_far.batch >= point):
                raise DemoError(f"the run was to be killed at batch {point}, but ended before; see {log.path}")
            processes = kill_session(process)
        log.read()
        if before:
            self.check_resumed(before[-1], log)
        newest = newest_checkpoint(self.runs / "interrupted")
        killed = Killed(batch=log.batch, total=log.total or 0, checkpoint=newest.name, processes=processes)
        self.say(f"killed {processes} processes after batch {killed.batch} of {killed.total}; newest: {newest.name}")
        return killed

    def check_resumed(self, killed: Killed, log: Log) -> None:
        """Check that a run resumed from where the last one was killed.

        Raises:
            DemoError: it started somewhere else.
        """
        wanted = f"/{killed.checkpoint}"
        line = next((line for line in log.text.splitlines() if "resume: from " in line), "no line 'resume: from'")
        if not line.endswith(wanted):
            raise DemoError(f"the run should have gone on from {killed.checkpoint}; {log.path} has: {line}")
        self.say(f"resumed from {killed.checkpoint}")

    def record(self, run: str) -> dict[str, Any]:
        """Return the run.json of a finished run."""
        path = self.runs / run / "run.json"
        record: dict[str, Any] = json.loads(path.read_text())
        if record["status"] != "finished":
            raise DemoError(f"{path} says {record['status']!r} instead of 'finished'")
        return record

    def evaluate(self, run: str) -> dict[str, Any]:
        """Evaluate a run's last checkpoint by the command for it; check the figures against the run's own."""
        figures = self.runs / "evaluate.json"
        with self.stage("evaluate the last checkpoint, in a process of its own"):
            command = ["python", "train/evaluate.py", self.shown(newest_checkpoint(self.runs / run))]
            command += ["--data", self.shown(self.mds), "--split", "val", "--json", self.shown(figures)]
            self._run(command, "evaluate")
            evaluated: dict[str, Any] = json.loads(figures.read_text())
            self._check_figures(evaluated, self.record(run))
            self.say(f"top-1 {evaluated['top1']:.2%} on all {evaluated['samples_evaluated']} samples, as in run.json")
        return evaluated

    def _check_figures(self, evaluated: dict[str, Any], record: dict[str, Any]) -> None:
        if evaluated["samples_evaluated"] != SAMPLES["val"]:
            raise DemoError(f"evaluated {evaluated['samples_evaluated']} samples of {SAMPLES['val']}")
        # On a GPU another number of ranks means other kernels, whose rounding may turn a sample that is on the edge.
        allowed = 0.01 if self.on_gpu else 0.0
        if abs(evaluated["top1"] - record["top1"]) > allowed:
            raise DemoError(f"evaluate.py says top-1 {evaluated['top1']}, run.json {record['top1']}")

    def _train_command(self, run: str, *overrides: str, ranks: int | None = None) -> list[str]:
        count = ranks or self.ranks
        command = ["python"] if count == 1 and not self.on_gpu else ["composer", "-n", str(count)]
        command += ["train/main.py", CONFIG, f"data.local={self.shown(self.mds)}"]
        command += [f"checkpoint.save_folder={self.shown(self.runs / run)}", "loggers.console_interval=1ba"]
        if self.on_gpu:
            command += ["deterministic=true", f"device_train_microbatch_size={MICROBATCH_SIZE}"]
        if self.epochs:
            command.append(f"max_duration={self.epochs}ep")
        return [*command, *overrides]

    def _run(self, command: list[str], log_name: str) -> Log:
        path = self.runs / f"{log_name}.log"
        self.say("$ " + " ".join(command))
        with started(_runnable(command), path, cwd=ROOT) as process:
            log = Log(path)
            follow(process, log, limit_s=STAGE_LIMIT_S)
        return log


def kill_points(record: dict[str, Any], kills: int, rng: random.Random) -> list[int]:
    """Return the batches after which to kill, one in each part of the run.

    Each has a checkpoint in mid-epoch behind it and has gone on from it by at least two batches: there is something
    to lose, and the resumed run must find its place within an epoch. Nor is the next checkpoint a batch away, for the
    run shows a batch while it does the next one.

    Raises:
        DemoError: the run is too short for so many kills.
    """
    total, per_epoch = record["batch"]["total_steps"], record["batch"]["steps_per_epoch"]
    every = int(record["config"]["checkpoint"]["save_interval"].removesuffix("ba"))
    candidates = [
        batch
        for batch in range(every + 2, total - every)
        if 2 <= batch % every < every - 1 and batch % per_epoch and (batch - batch % every) % per_epoch
    ]
    if len(candidates) < kills:
        raise DemoError(f"no {kills} points in mid-epoch among {total} batches with a checkpoint each {every}")
    edges = [len(candidates) * part // kills for part in range(kills + 1)]
    return [rng.choice(candidates[low:high]) for low, high in itertools.pairwise(edges)]


def newest_checkpoint(folder: Path) -> Path:
    """Return the checkpoint of the most batches.

    Raises:
        DemoError: there is none.
    """
    found = sorted(folder.glob("ep*-ba*.pt"), key=lambda path: int(path.stem.partition("-ba")[2]))
    if not found:
        raise DemoError(f"{folder} holds no checkpoint")
    return found[-1]


def gpu_count() -> int:
    """Return how many GPUs to train on, at most 2; 0 where there is none."""
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return min(2, sum(line.startswith("GPU ") for line in listing.stdout.splitlines()))


def _runnable(command: list[str]) -> list[str]:
    """Put this environment's programs in place of `python` and `composer`."""
    here = Path(sys.executable).parent
    if command[0] == "python":
        return [sys.executable, *command[1:]]
    beside = here / command[0]
    found = str(beside) if beside.exists() else shutil.which(command[0])
    if found is None:
        raise DemoError(f"there is no `{command[0]}` beside {sys.executable}; install requirements.txt (make setup)")
    return [found, *command[1:]]


if __name__ == "__main__":
    raise SystemExit(main())
