"""Time our loader beside those that people would otherwise use, on the same images, interleaved.

    python benchmarks/loader.py --images DIR [--peers mosaicml,imagefolder,webdataset,litdata,ffcv,dali]
                                [--sizes 224,88] [--storage original,max=400] [--rounds 5] [--cores 1,2] [--copies 8]
                                [--json FILE] [--chart PNG]

DIR is an ImageFolder with train/. Its files are stored --copies times for each loader in the form that it reads. Each
loader is a process of its own, started and warmed up once; then each round has every loader read all the images, in
turn. --cores N pins each to the same N cores, with a worker for each; --cores 1,2 has each run with one and with two.
The figures are medians with minimum and maximum; a ratio is the median over the rounds of a loader's rate to MosaicML's
in the same round, at the same size on as many cores, and to its own on the fewest cores or at the largest size. Of ours
the table also says what an image costs in microseconds of a core: reading its Huffman codes as far down as its crop
goes, which no loader of these files can do without, and decoding it in all. `--ours ours_undecoded` leaves the decoding
out: what remains is the loader's own work for a sample.

A peer that is not among the project's requirements gets an environment of its own in --venvs, by default
build/loader-peers, made when it is first asked for (FFCV also needs OpenCV's and libturbojpeg's headers).
"""

import argparse
import contextlib
import itertools
import json
import os
import platform
import selectors
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tqdm import tqdm

from benchmarks.loader_stores import Stores
from demo.processes import exit_on_signals, kill_session

PEERS_FILE = ROOT / "benchmarks/loader_peers.py"
DECODING_ROUNDS = 5
VENVS = ROOT / "build/loader-peers"  # not in /tmp, where another user could put programs of that name
ANSWER_LIMIT_S = 3600.0  # for a start, or for reading all images once
# What pip installs, step by step, for a peer that is not among the project's requirements; torch and numpy are the
# project's. FFCV 1.0.2 (2023) compiles itself with the setuptools of its time, and lists packages it can do without.
INSTALLS = {
    "webdataset": [["webdataset==1.0.2", "braceexpand==0.1.7", "--no-deps"]],
    "litdata": [["litdata==0.2.76"]],
    "dali": [["nvidia-dali-cuda120==2.4.0"]],
    "ffcv": [
        ["wheel", "setuptools<75"],
        ["ffcv==1.0.2", "--no-deps", "--no-build-isolation"],
        ["numba", "llvmlite", "opencv-python-headless", "terminaltables", "fastargs", "assertpy", "--no-deps"],
    ],
}
OWN_BASE = {"cores": "fewest_cores", "size": "largest_size"}  # what a loader's rate is compared with, of its own
OURS, BASE = ("ours", "ours_pillow", "ours_ycbcr", "ours_dct", "ours_undecoded"), "mosaicml"


@dataclass(frozen=True)
class Contest:
    """One loader on one storage at one size."""

    loader: str
    storage: str
    size: int
    cores: int

    def __str__(self) -> str:
        return f"{self.loader}, {self.storage}, {self.size} px, {self.cores} cores"


class Contestant:
    """A running loader, which reads its data once each time it is asked to."""

    def __init__(self, contest: Contest, data: Path, python: str) -> None:
        cores = last_cores(contest.cores)
        command = [python, str(PEERS_FILE), contest.loader, str(data), str(contest.size), str(len(cores))]
        self.contest = contest
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115  # as long as the process
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=environment | {"OMP_NUM_THREADS": str(len(cores))},
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
            start_new_session=True,
        )

    def wait_until_ready(self) -> None:
        """Wait for its start: two of Streaming that start at once may take the same shared memory."""
        self._answer()

    def read_all(self) -> dict[str, float]:
        """Have it read its data once; images, wall_s and cpu_s."""
        assert self.process.stdin
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, float]:
        assert self.process.stdout
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            is_there = selector.select(ANSWER_LIMIT_S)  # answers come one at a time, so none is in Python's buffer
        line = self.process.stdout.readline() if is_there else ""
        if not line:
            self.log.seek(0)
            how = "ended" if is_there else f"gave no answer for {ANSWER_LIMIT_S:.0f} s"
            raise SystemExit(f"{self.contest} {how}:\n{self.log.read()[-2000:]}")
        answer: dict[str, float] = json.loads(line)
        return answer

    def stop(self) -> None:
        """End it, with its workers."""
        kill_session(self.process)


def main(argv: Sequence[str]) -> int:
    """Run the benchmark, print its table, and write its JSON."""
    args = parse(argv)
    contests = list(contests_of(args))
    with tempfile.TemporaryDirectory(prefix="bench-loader-") as scratch:
        stores = Stores(args.images, Path(scratch), args.copies)
        pythons = {contest.loader: python_for(contest.loader, args.venvs) for contest in contests}
        data = {contest: stores.for_loader(contest.loader, contest.storage, pythons) for contest in contests}
        rounds = measure(contests, data, pythons, args.rounds)
    rows = [row(contest, rounds, stores.bytes_per_image[contest.storage]) for contest in contests]
    for found in rows:
        if found["loader"] in OURS and found["loader"] != "ours_undecoded":
            found |= decoding(stores.images_of[found["storage"]], found["loader"], found["size"])
    report = {
        "machine": f"{platform.processor() or platform.machine()}, {args.cores} of {os.cpu_count()} cores",
        "images": stores.count,
        "rounds": args.rounds,
        "loaders": rows,
    }
    print("\n".join(lines_of(report)))
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")
    if args.chart:
        draw(report, args.chart)
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, metavar="DIR")
    parser.add_argument("--peers", default="mosaicml,imagefolder", metavar="NAMES")
    parser.add_argument("--ours", default="ours", metavar="NAMES", help=f"of {', '.join(OURS)}")
    parser.add_argument("--sizes", default="224", metavar="PX")
    parser.add_argument("--storage", default="original", metavar="NAMES", help="for ours: original or a --resize value")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cores", default="1", metavar="NUMBERS")
    parser.add_argument("--copies", type=int, default=8)
    parser.add_argument("--venvs", type=Path, default=VENVS, metavar="DIR")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--chart", type=Path, metavar="PNG")
    return parser.parse_args(argv)


def contests_of(args: argparse.Namespace) -> Iterator[Contest]:
    """Peers read the originals, FFCV its own format; ours read each storage. MosaicML's is always there."""
    peers = list(dict.fromkeys([BASE, *filter(None, args.peers.split(","))]))
    for size, cores in itertools.product(map(int, args.sizes.split(",")), map(int, args.cores.split(","))):
        for peer in peers:
            yield Contest(peer, "ffcv" if peer == "ffcv" else "original", size, cores)
        for storage in args.storage.split(","):
            for loader in args.ours.split(","):
                yield Contest(loader, storage, size, cores)


def last_cores(count: int) -> list[int]:
    """The cores that a loader is pinned to; whatever else runs prefers the first ones."""
    usable = sorted(os.sched_getaffinity(0))
    if not 0 < count <= len(usable):
        raise SystemExit(f"--cores {count}: this process may use {len(usable)}")
    return usable[-count:]


def python_for(loader: str, venvs: Path) -> str:
    """The Python that can import a loader; its environment is made where it is not there yet."""
    if loader not in INSTALLS:
        return sys.executable
    python = venvs / loader / "bin/python"
    if not (venvs / loader / ".ready").exists():
        subprocess.run([sys.executable, "-m", "venv", str(venvs / loader)], check=True)
        site = next((venvs / loader / "lib").glob("python*/site-packages"))
        (site / "project.pth").write_text(f"{sysconfig.get_paths()['purelib']}\n")
        for packages in INSTALLS[loader]:
            command = [str(python), "-m", "pip", "install", "-q", *packages]
            done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
            if done.returncode:
                raise SystemExit(f"{loader} cannot be installed; leave it out of --peers:\n{done.stderr[-2000:]}")
        (venvs / loader / ".ready").touch()
    return str(python)


def measure(
    contests: Sequence[Contest], data: dict[Contest, Path], pythons: dict[str, str], rounds: int
) -> dict[Contest, list[dict[str, float]]]:
    """What each contest gave in each round; a first round, which fills caches and starts workers, is not counted."""
    exit_on_signals()
    running: list[Contestant] = []
    found: dict[Contest, list[dict[str, float]]] = {contest: [] for contest in contests}
    try:
        for contest in contests:
            running.append(Contestant(contest, data[contest], pythons[contest.loader]))
            running[-1].wait_until_ready()
        for number in tqdm(range(rounds + 1), unit=" rounds", disable=None):
            for contestant in running if number % 2 else running[::-1]:
                answer = contestant.read_all()
                if number:
                    found[contestant.contest].append(answer)
    finally:
        for contestant in running:
            contestant.stop()
    return found


def row(contest: Contest, rounds: dict[Contest, list[dict[str, float]]], bytes_per_image: float) -> dict[str, Any]:
    """The figures of one contest."""
    rates = rates_of(rounds[contest])

    def ratio_to(other: Contest) -> dict[str, float]:
        return spread([rate / base for rate, base in zip(rates, rates_of(rounds[other]), strict=True)])

    return {
        "loader": contest.loader,
        "storage": contest.storage,
        "size": contest.size,
        "cores": contest.cores,
        "bytes_per_image": bytes_per_image,
        "images_per_sec": spread(rates),
        "cpu_us_per_image": statistics.median(1e6 * answer["cpu_s"] / answer["images"] for answer in rounds[contest]),
        "ratio_to_mosaicml": ratio_to(Contest(BASE, "original", contest.size, contest.cores)),
        "ratio_to_fewest_cores": ratio_to(replace(contest, cores=min(one.cores for one in rounds))),
        "ratio_to_largest_size": ratio_to(replace(contest, size=max(one.size for one in rounds))),
        "psnr_db": None,
        "entropy_us": None,
        "decode_us": None,
    }


def rates_of(answers: Sequence[dict[str, float]]) -> list[float]:
    """Images/s of each round."""
    return [answer["images"] / answer["wall_s"] for answer in answers]


def decoding(jpegs: Sequence[bytes], loader: str, size: int) -> dict[str, Any]:
    """What our decoder does with one random crop of each image: fidelity, and microseconds of a core.

    psnr_db is against the reference's pixels of the same boxes, 99 dB for equal ones. Peers draw boxes of their own;
    MosaicML's, ImageFolder's and WebDataset's pixels are the reference: PIL's. entropy_us is what reading an image's
    Huffman codes takes, by the share of its rows above the crop's last: codes are about evenly spread over rows.
    """
    import torch

    from imagestream.decode import pillow
    from imagestream.decode.backends import open_decoder
    from imagestream.decode.crops import random_resized_crop, sample_draws
    from imagestream.decode.native.library import is_sound

    resize_in: Any = {"ours_ycbcr": "ycbcr", "ours_dct": "dct"}.get(loader, "rgb")
    decoder = open_decoder("pillow" if loader == "ours_pillow" else "auto", resize_in=resize_in)
    options: dict[str, Any] = {"scale": (0.08, 1.0), "ratio": (3 / 4, 4 / 3), "flip_prob": 0.5}
    sizes = decoder.image_sizes(jpegs)
    views = [random_resized_crop(*edges, sample_draws(0, 0, number), **options) for number, edges in enumerate(sizes)]
    out = torch.empty((len(jpegs), size, size, 3), dtype=torch.uint8)  # used again, as the loader does
    mine = decoder.decode_batch(jpegs, views, size, bounded=True).double()
    errors = (mine - pillow.decode_batch(jpegs, views, size, bounded=True).double()).pow(2).mean(dim=(1, 2, 3))
    values = torch.where(errors > 0, 10 * torch.log10(255**2 / errors.clamp(min=1e-12)), torch.tensor(99.0).double())

    def entropy() -> None:
        for jpeg in jpegs:
            is_sound(jpeg)

    def decode() -> None:
        decoder.decode_batch(jpegs, views, size, bounded=True, out=out)

    torch.set_num_threads(1)
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, last_cores(1))
    took: list[tuple[float, float]] = []
    for _ in range(DECODING_ROUNDS):
        took.append((seconds(entropy), seconds(decode)))
    os.sched_setaffinity(0, before)
    rows = statistics.mean(view.box[3] / height for view, (_, height) in zip(views, sizes, strict=True))
    per_image = 1e6 / len(jpegs)
    return {
        "psnr_db": {"median": float(values.median()), "min": float(values.min())},
        "entropy_us": per_image * rows * statistics.median(codes for codes, _ in took),
        "decode_us": per_image * statistics.median(all_of_it for _, all_of_it in took),
    }


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def spread(values: Sequence[float]) -> dict[str, float]:
    """Minimum, median and maximum."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def lines_of(report: dict[str, Any]) -> Iterator[str]:
    """The report, fit to be read."""
    yield f"{report['images']:,} images, {report['rounds']} rounds, {report['machine']}"
    varying = [name for name in ("cores", "size") if len({found[name] for found in report["loaders"]}) > 1]
    yield (
        f"{'loader':15}{'storage':10}{'px':>4}{'KB':>6}{'cores':>6}{'images/s (min - max)':>26}"
        f"{'to MosaicML (min - max)':>26}"
        + "".join(f"{'to ' + OWN_BASE[name].replace('_', ' '):>20}" for name in varying)
        + f"{'PSNR':>12}{'us: codes':>10}{'decode':>7}"
    )
    for found in report["loaders"]:
        rate, fidelity = found["images_per_sec"], found["psnr_db"]
        rates = f"{rate['median']:,.0f} ({rate['min']:,.0f} - {rate['max']:,.0f})"
        own = "".join(f"{ratio_of(found['ratio_to_' + OWN_BASE[name]]):>20}" for name in varying)
        costs = ""
        if fidelity:
            pixels = f"{fidelity['median']:.1f}, {fidelity['min']:.1f}"
            costs = f"{pixels:>12}{found['entropy_us']:10.0f}{found['decode_us']:7.0f}"
        yield (
            f"{found['loader']:15}{found['storage']:10}{found['size']:4}{found['bytes_per_image'] / 1e3:6.0f}"
            f"{found['cores']:6}{rates:>26}{ratio_of(found['ratio_to_mosaicml']):>26}{own}{costs}"
        ).rstrip()


def ratio_of(found: dict[str, float]) -> str:
    """A spread of ratios, fit to be read."""
    return f"{found['median']:.2f} ({found['min']:.2f} - {found['max']:.2f})"


def draw(report: dict[str, Any], path: Path) -> None:
    """Write a PNG: images/s of each loader, median with minimum and maximum, a panel for each size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    sizes = sorted({row["size"] for row in report["loaders"]}, reverse=True)
    several = len({row["cores"] for row in report["loaders"]}) > 1
    most = max(sum(row["size"] == size for row in report["loaders"]) for size in sizes)
    shape = {"figsize": (9, 0.3 * most * len(sizes) + 1.2), "layout": "constrained", "squeeze": False, "sharex": True}
    figure, panels = plt.subplots(len(sizes), 1, **shape)
    for axes, size in zip(panels[:, 0], sizes, strict=True):
        rows = [row for row in report["loaders"] if row["size"] == size][::-1]
        names = [
            f"{row['loader']}, {row['storage']}, {row['bytes_per_image'] / 1e3:.0f} KB"
            + (f", {row['cores']} cores" if several else "")
            for row in rows
        ]
        rates = [row["images_per_sec"] for row in rows]
        medians = [rate["median"] for rate in rates]
        errors = [[rate["median"] - rate["min"] for rate in rates], [rate["max"] - rate["median"] for rate in rates]]
        colours = ["tab:blue" if row["loader"] in OURS else "lightgrey" for row in rows]
        axes.barh(names, medians, xerr=errors, color=colours, ecolor="black", capsize=2)
        axes.set(title=f"{size} px")
    panels[-1, 0].set(xlabel="images/s")
    figure.suptitle(f"{report['machine']}; {report['rounds']} rounds, interleaved")
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
