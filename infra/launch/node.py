"""One machine's part of a run over several: Composer's launcher, told of the other machines, and watched.

    python infra/launch/node.py yamls/full.yaml [key.path=value ...]

Slurm and infra/launch/launch_hosts.sh start it once on each machine and say by environment variables which one it is:
NODES, NODE_RANK (or Slurm's own SLURM_NNODES, SLURM_NODEID), MASTER_ADDR, MASTER_PORT; RANKS is the number of processes
to start here, by default one a GPU. What it adds to the launcher:

- SIGUSR1, SIGTERM and Ctrl-C reach the ranks as SIGUSR1, as soon as they listen for it: they save and end with 75. A
  second Ctrl-C ends this part at once.
- The launcher ends with it, even by SIGKILL, and so do the ranks.
- On EC2, the notice of a spot interruption (two minutes ahead) does the same.
- A run without a sign of life for STALL_S seconds is ended, with exit status 1.
- A machine with GPUs is looked at first, and one that is not fit ends with exit status 69 (infra/launch/preflight.py).
- Between machines with EFA, NCCL uses it or the run ends; and when NCCL hangs, what it was doing is written to LOG_DIR
  (infra/launch/fabric.py, REQUIRE_EFA).
- SECRETS (infra/launch/run_secrets.py) reach the ranks, METRICS_NAMESPACE (infra/launch/cloud_metrics.py) CloudWatch.
- With BEATS_ON_STDIN=1 a line has to arrive on standard input within PEER_LIMIT_S seconds of the one before; else the
  machine that launched the run is gone, which is said by its name ($LAUNCHED_FROM), and this part is ended. The line
  "save" is as good as SIGUSR1.

What it says itself goes to standard error and to LOG_DIR/node-RANK.log.
"""

import argparse
import contextlib
import json
import math
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import psutil

# Started as a script, Python puts this file's own folder on the path; the packages are two above.
_HERE = Path(__file__).resolve().parent
if Path(sys.path[0] or ".").resolve() == _HERE:
    sys.path[0] = str(_HERE.parents[1])

from imagestream.data.worker import end_with_parent
from infra.launch import fabric
from infra.launch.cloud_metrics import CloudMetrics, put_to
from infra.launch.metadata import metadata
from infra.launch.run_secrets import SecretError, read_secrets
from infra.launch.this_machine import preflight_is_wanted

ROOT = _HERE.parents[1]
EXIT_FAILED, EXIT_REFUSED, EXIT_SAVED, EXIT_INTERRUPTED = 1, 2, 75, 130

SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_BETWEEN_NOTICE_LOOKS = 5.0  # AWS's own advice, on its page of spot instance termination notices
SECONDS_TO_SAVE = 110.0  # of a spot interruption's 120
SECONDS_TO_LIST_GPUS = 60.0
SECONDS_FOR_PREFLIGHT = 600.0  # above what its own looks may take together


class SettingsError(ValueError):
    """A variable is missing or makes no sense; the message names it."""


@dataclass(frozen=True)
class Settings:
    """What the environment says of this machine's part.

    Attributes:
        stall_s: seconds without a batch before the run counts as hung; above dist_timeout (600 s in yamls/base.yaml).
        peer_limit_s: seconds without a line on standard input before the launching machine counts as gone; or None.
        looks_first: whether the machine is looked at before its ranks start (infra/launch/preflight.py).
        variables: what the ranks get beside this process's own (infra/launch/fabric.py).
    """

    nodes: int
    node_rank: int
    master_addr: str
    master_port: int
    ranks: int
    log_dir: Path
    stall_s: float
    peer_limit_s: float | None
    launched_from: str
    watches_spot: bool
    looks_first: bool
    variables: Mapping[str, str]

    @classmethod
    def of(cls, env: Mapping[str, str]) -> "Settings":
        """Read them.

        Raises:
            SettingsError: naming the variable.
        """
        nodes = _whole(env, ("NODES", "SLURM_NNODES"), default=1)
        node_rank = _whole(env, ("NODE_RANK", "SLURM_NODEID"), default=0 if nodes == 1 else None)
        if node_rank >= nodes:
            raise SettingsError(f"NODE_RANK={node_rank} must be below NODES={nodes}")
        if nodes > 1 and not env.get("MASTER_ADDR"):
            raise SettingsError(
                f"MASTER_ADDR is not set; with NODES={nodes} it is the name of the machine of NODE_RANK=0"
            )
        beats = env.get("BEATS_ON_STDIN") == "1"
        log_dir, gpus = Path(env.get("LOG_DIR") or ROOT / "runs/logs"), count_gpus()
        try:
            variables = fabric.variables(env, nodes=nodes, gpus=gpus, log_dir=log_dir)
        except fabric.FabricError as error:
            raise SettingsError(str(error)) from error
        return cls(
            nodes=nodes,
            node_rank=node_rank,
            master_addr=env.get("MASTER_ADDR", "127.0.0.1"),
            master_port=_whole(env, ("MASTER_PORT",), default=29500 if nodes > 1 else 0),
            ranks=_whole(env, ("RANKS",), default=gpus or 1),
            log_dir=log_dir,
            stall_s=_seconds(env, "STALL_S", default=1200.0),
            peer_limit_s=_seconds(env, "PEER_LIMIT_S", default=15.0) if beats else None,
            launched_from=env.get("LAUNCHED_FROM", "the machine that launched the run"),
            watches_spot=env.get("WATCH_SPOT", "0") == "1",
            looks_first=preflight_is_wanted(env),
            variables=variables,
        )

    def preflight(self, argv: Sequence[str]) -> list[str]:
        """The command that looks at this machine."""
        told = {"NODES": self.nodes, "NODE_RANK": self.node_rank, "RANKS": self.ranks, "LOG_DIR": self.log_dir}
        told |= {"MASTER_ADDR": self.master_addr, "MASTER_PORT": self.master_port}
        words = [f"{name}={value}" for name, value in told.items()]
        return ["env", *words, sys.executable, str(_HERE / "preflight.py"), *argv]

    def launcher(self, argv: Sequence[str]) -> list[str]:
        """The command that starts the ranks of this machine."""
        command = [str(Path(sys.executable).parent / "composer"), "-n", str(self.ranks)]
        if self.nodes > 1:
            command += ["--world_size", str(self.nodes * self.ranks), "--node_rank", str(self.node_rank)]
            command += ["--base_rank", str(self.node_rank * self.ranks)]
            command += ["--master_addr", self.master_addr, "--master_port", str(self.master_port)]
        command += ["--stdout", f"{self.log_dir}/rank{{rank}}.out", "--stderr", f"{self.log_dir}/rank{{rank}}.err"]
        return [*command, "train/main.py", *argv]


class Node:
    """The launcher and its ranks on this machine, from start to end."""

    def __init__(self, settings: Settings, secrets: Mapping[str, str] | None = None) -> None:
        self.settings = settings
        self._secrets = dict(secrets or {})
        self.heartbeat = settings.log_dir / f"heartbeat-node{settings.node_rank}.json"
        self._asked_at: float | None = None  # to save and end; by whom was said then
        self._interrupts = 0
        self._told: set[int] = set()
        self._notice_seen_at = 0.0
        self._line_at = time.monotonic()
        self._started_at = time.time()

    def run(self, argv: Sequence[str]) -> int:
        """Run to the end; return the launcher's exit status, or the preflight's where the machine is not fit."""
        self.settings.log_dir.mkdir(parents=True, exist_ok=True)
        self.heartbeat.unlink(missing_ok=True)
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)
        code = 0
        if self.settings.looks_first:
            code = self._watched(self.settings.preflight(argv), self._look_at_preflight)
            if self._asked_at is not None and self._interrupts < 2:
                return EXIT_SAVED  # nothing was trained in this start, so there is nothing to save
        if code == 0:
            self._started_at = time.time()
            self._start_metrics(argv)
            code = self._watched(self.settings.launcher(argv), self._look)
        return code

    def _watched(self, command: Sequence[str], look: Callable[[], str]) -> int:
        """Run a command to its end, or until `look` says why it has to be ended; return its exit status."""
        node = os.getpid()

        def before_launcher() -> None:
            _ignore_usr1()
            end_with_parent(node)

        self.launcher = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **self.settings.variables, **self._secrets, "HEARTBEAT_FILE": str(self.heartbeat)},
            stdin=subprocess.DEVNULL,
            process_group=0,
            preexec_fn=before_launcher,
        )
        while self.launcher.poll() is None:
            problem = look()
            if problem:
                self._say(problem)
                self._kill()
                return EXIT_INTERRUPTED if self._interrupts > 1 else EXIT_FAILED
            time.sleep(SECONDS_BETWEEN_LOOKS)
        code = self.launcher.returncode
        return code if code >= 0 else 128 - code

    def _start_metrics(self, argv: Sequence[str]) -> None:
        """From the first node, if somebody has asked for them."""
        namespace = os.environ.get("METRICS_NAMESPACE", "")
        if not namespace or self.settings.node_rank != 0:
            return
        run = next((word.partition("=")[2] for word in argv if word.startswith("run_name=")), "unnamed")
        try:
            put = put_to(namespace)
        except Exception as error:  # whatever it is, the run continues
            self._say(f"no metrics reach CloudWatch: {error}; the run continues")
            return
        CloudMetrics(put, run, lambda: read_heartbeat(self.heartbeat), self._say).start()

    def _look_at_preflight(self) -> str:
        """One round of watching while the machine is looked at; return why that has to be ended at once, or ''."""
        if self._asked_at is not None:
            return "told to end before anything was trained"
        if time.time() - self._started_at > SECONDS_FOR_PREFLIGHT:
            return f"the preflight has taken more than {SECONDS_FOR_PREFLIGHT:g} s"
        return self._lost_peer()

    def _look(self) -> str:
        """One round of watching; return why the run has to be ended at once, or ''."""
        if self._interrupts > 1:
            return "Ctrl-C again: the ranks are killed"
        if self._asked_at is None and self.settings.watches_spot:
            self._look_for_notice()
        if self._asked_at is not None:
            return self._pass_on()
        return self._lost_peer() or self._stall()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._interrupts += number == signal.SIGINT
        self._ask(signal.Signals(number).name)

    def _ask(self, by: str) -> None:
        if self._asked_at is None:
            self._asked_at = time.monotonic()
            self._say(f"{by}: the ranks are told to save and end")

    def _pass_on(self) -> str:
        assert self._asked_at is not None
        if time.monotonic() - self._asked_at > SECONDS_TO_SAVE:
            return f"the ranks have not ended {SECONDS_TO_SAVE:g} s after they were told to; they are killed"
        for rank in self._ranks():
            # Once each: one that still imports torch does not listen yet, and one that has saved and ends no more.
            if rank.pid not in self._told and listens_for(rank.pid, signal.SIGUSR1):
                self._told.add(rank.pid)
                with contextlib.suppress(psutil.NoSuchProcess):
                    rank.send_signal(signal.SIGUSR1)
        return ""

    def _look_for_notice(self) -> None:
        now = time.monotonic()
        if now - self._notice_seen_at > SECONDS_BETWEEN_NOTICE_LOOKS:
            self._notice_seen_at = now
            notice = spot_notice()
            if notice:
                self._ask(f"spot interruption ({notice})")

    def _lost_peer(self) -> str:
        limit_s = self.settings.peer_limit_s
        if limit_s is None:
            return ""
        here, _, _ = select.select([sys.stdin], [], [], 0)
        if here:
            said = os.read(sys.stdin.fileno(), 4096)
            if b"save" in said:
                self._ask(self.settings.launched_from)
            if not said:
                return f"{self.settings.launched_from} has closed the connection; this machine's ranks are ended"
            self._line_at = time.monotonic()
        if time.monotonic() - self._line_at > limit_s:
            peer = self.settings.launched_from
            return f"nothing was heard from {peer} for {limit_s:g} s; this machine's ranks are ended"
        return ""

    def _stall(self) -> str:
        beat = read_heartbeat(self.heartbeat)
        last = beat["unix_time_s"] if beat else self._started_at
        if time.time() - last < self.settings.stall_s:
            return ""
        where = f"after batch {beat['batch']:.0f}" if beat else "before its first batch"
        return f"no sign of life for {self.settings.stall_s:g} s (STALL_S), {where}; the run is ended"

    def _ranks(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self.launcher.pid).children()
        except psutil.NoSuchProcess:
            return []

    def _kill(self) -> None:
        """SIGKILL to the launcher, the ranks and their loader workers: what hangs hears nothing else."""
        with contextlib.suppress(psutil.NoSuchProcess):
            everything = psutil.Process(self.launcher.pid).children(recursive=True)
            for process in [*everything, self.launcher]:
                with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                    process.kill()
        self.launcher.wait()

    def _say(self, text: str) -> None:
        line = f"node {self.settings.node_rank}: {text}"
        path = self.settings.log_dir / f"node-{self.settings.node_rank}.log"
        with contextlib.suppress(OSError), open(path, "a") as log:  # a full disk must not end the watch over the run
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
        with contextlib.suppress(OSError):  # whoever listened may be what is gone
            print(line, file=sys.stderr, flush=True)


def listens_for(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal (SigCgt in /proc/PID/status, a bit for each)."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught, 16) >> (number - 1) & 1)


def read_heartbeat(path: Path) -> dict[str, float] | None:
    """What train/record/heartbeat.py wrote last, or None."""
    try:
        beat: dict[str, float] = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return beat


def spot_notice() -> str:
    """What EC2 is about to do to this instance ("terminate at 2026-01-01T00:00:00Z"), or ''.

    The notice is a 404 until there is one.
    """
    try:
        notice = json.loads(metadata("spot/instance-action"))
    except ValueError:
        return ""
    return f"{notice.get('action')} at {notice.get('time')}"


def count_gpus() -> int:
    """GPUs of this machine by nvidia-smi; 0 where there is none, or a driver that is dead."""
    if shutil.which("nvidia-smi") is None:
        return 0
    try:
        done = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=SECONDS_TO_LIST_GPUS, check=False
        )
    except subprocess.TimeoutExpired:
        return 0
    listed = done.stdout
    return sum(line.startswith("GPU ") for line in listed.splitlines())


def _whole(env: Mapping[str, str], names: Sequence[str], *, default: int | None) -> int:
    """The first of these variables that is set, as a whole number from 0."""
    for name in names:
        if env.get(name):
            if not env[name].isdecimal():
                raise SettingsError(f"{name}={env[name]} must be a whole number")
            return int(env[name])
    if default is None:
        raise SettingsError(f"{' or '.join(names)} is not set")
    return default


def _seconds(env: Mapping[str, str], name: str, *, default: float) -> float:
    """A variable that is set, as a number above 0."""
    text = env.get(name) or str(default)
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise SettingsError(f"{name}={text} must be a number of seconds above 0")
    return seconds


def _ignore_usr1() -> None:
    """Slurm signals every process of a step, and the launcher would die of SIGUSR1 before its ranks have saved.

    What is ignored stays so in the programs it starts, until the ranks set a handler of their own.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def main(argv: Sequence[str]) -> int:
    """Run the command; return its exit status: the ranks' own, or 1 where this machine's part was ended."""
    parser = argparse.ArgumentParser(
        prog="infra/launch/node.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="as for train/main.py")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")
    parser.parse_known_args(argv)  # for --help; what is not known here is train/main.py's
    try:
        settings = Settings.of(os.environ)
        secrets = read_secrets(os.environ)
    except (SettingsError, SecretError) as error:
        print(f"infra/launch/node.py: {error}", file=sys.stderr)
        return EXIT_REFUSED
    return Node(settings, secrets).run(argv)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
