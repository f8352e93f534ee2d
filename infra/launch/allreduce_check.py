"""How fast the ranks add up their numbers together, held against what is known of the machine."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from imagestream.data.worker import end_with_parent
from infra.launch.fabric import EFA_NETWORK, EFA_NETWORK_NAMES
from infra.launch.gpu_checks import NOTE, OK, UNFIT, Finding
from infra.launch.verdicts import unfit_nodes
from infra.plan.machines import Machine

PROGRAM = Path(__file__).with_name("allreduce.py")
# Of what the table says of an all-reduce on a machine; it was said of other software, or is an estimate.
LEAST_FRACTION_ON_A_MACHINE = 0.5
# Of what the network cards can do: half of what infra/plan/speed.py takes NCCL to get of them with EFA. TCP, which NCCL
# takes if EFA is not there, has some GB/s, far below it on any machine with several cards.
LEAST_FRACTION_OVER_ALL = 0.3
SECONDS_FOR_ALL = 300.0
SECONDS_BETWEEN_LOOKS = 0.5


class NotMetError(RuntimeError):
    """The ranks could not measure; the message says why."""


def look_at_allreduce(env: Mapping[str, str], this: Machine | None) -> list[Finding]:
    """What the ranks get on this machine and over all, held against what is known of the type. Collective.

    Raises:
        NotMetError: they could not measure.
    """
    nodes, ranks = int(env.get("NODES", "1")), int(env.get("RANKS", "1"))
    if nodes * ranks == 1:
        return []
    result = measured(env, nodes, ranks)
    findings = []
    own, of_all = result["machine_gb_per_sec"], result["all_gb_per_sec"]
    least_own = LEAST_FRACTION_ON_A_MACHINE * (this.allreduce_gb_per_sec or 0.0) if this and ranks == this.gpus else 0.0
    if own is not None:
        is_slow = own < least_own
        seen = f"{own:.3g} GB/s over this machine's {ranks} ranks"
        if is_slow:
            seen += f", at least {least_own:.3g} expected"
        advice = "take another machine" if is_slow else ""
        findings.append(Finding(UNFIT if is_slow else OK, "all-reduce", seen, advice))
    if nodes > 1 and of_all is not None:
        least = LEAST_FRACTION_OVER_ALL * this.network_gbit / 8 if this and this.efa and _uses_gpus(env) else 0.0
        seen = f"{of_all:.3g} GB/s over all {nodes * ranks} ranks of {nodes} machines{_network(env)}"
        if of_all < least:
            seen = (
                f"SLOW: {seen}, at least {least:.3g} expected; the run continues (docs/cloud.md, It is slow over ...)"
            )
        findings.append(Finding(NOTE if of_all < least else OK, "all-reduce", seen))
    return findings


def _uses_gpus(env: Mapping[str, str]) -> bool:
    return env.get("CUDA_VISIBLE_DEVICES") != ""


def _network(env: Mapping[str, str]) -> str:
    """Which network NCCL says that it uses, for the text.

    Raises:
        NotMetError: another one than EFA, where it was told to use that.
    """
    log = _nccl_log(env)
    if not log.is_file():
        return ""
    lines = log.read_text(errors="replace").splitlines()
    names = sorted({name.strip() for line in lines if (name := line.partition("Using network ")[2])})
    if env.get("NCCL_NET") == EFA_NETWORK and not set(names) <= set(EFA_NETWORK_NAMES):
        raise NotMetError(
            f"NCCL says that it uses {' and '.join(names)}, and was told to use EFA (NCCL_NET={EFA_NETWORK})"
        )
    return f", by {' and '.join(names)}" if names else ", by a network that NCCL does not name"


def _nccl_log(env: Mapping[str, str]) -> Path:
    return Path(env.get("LOG_DIR") or ".") / f"nccl-preflight-node{env.get('NODE_RANK', '0')}.log"


def measured(env: Mapping[str, str], nodes: int, ranks: int) -> dict[str, float | None]:
    """Start this machine's ranks, and return what its first one found.

    Raises:
        NotMetError: one of them failed, it took too long, or another machine is unfit.
    """
    port = _port(env, nodes)
    started = [_start(env, nodes, ranks, local_rank, port) for local_rank in range(ranks)]
    try:
        _wait_for(started, env)
    finally:
        for process in started:
            process.kill()
        said = [process.communicate() for process in started]
    for process, (_, error) in zip(started, said, strict=True):
        if process.returncode != 0:
            raise NotMetError(f"a rank has ended with status {process.returncode}: {_last_line(error)}")
    result: dict[str, float | None] = json.loads(said[0][0].splitlines()[-1])
    return result


def _start(env: Mapping[str, str], nodes: int, ranks: int, local_rank: int, port: int) -> "subprocess.Popen[str]":
    own = {
        "RANK": str(int(env.get("NODE_RANK", "0")) * ranks + local_rank),
        "WORLD_SIZE": str(nodes * ranks),
        "LOCAL_RANK": str(local_rank),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": env.get("MASTER_ADDR", "127.0.0.1"),
        "MASTER_PORT": str(port),
    }
    # Nobody reads what the others print until they end, and more than a pipe holds would have them wait.
    own["NCCL_DEBUG"] = "WARN"
    if local_rank == 0:
        own |= {"NCCL_DEBUG": "INFO", "NCCL_DEBUG_SUBSYS": "INIT,NET", "NCCL_DEBUG_FILE": str(_nccl_log(env))}
    parent = os.getpid()
    return subprocess.Popen(
        [sys.executable, str(PROGRAM)],
        env={**env, **own},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: end_with_parent(parent),
    )


def _port(env: Mapping[str, str], nodes: int) -> int:
    """Where the ranks meet: beside the run's own port, at which a machine that is done already looks for the run."""
    return int(env["MASTER_PORT"]) + 1 if nodes > 1 else _free_port()


def _wait_for(started: Sequence["subprocess.Popen[str]"], env: Mapping[str, str]) -> None:
    """Wait until all have ended, or one has failed.

    Raises:
        NotMetError: it takes too long, or another machine of the run is unfit.
    """
    deadline = time.monotonic() + SECONDS_FOR_ALL
    while any(process.poll() is None for process in started):
        if any(process.poll() for process in started):
            return
        if others := unfit_nodes(env):
            raise NotMetError(f"unfit: {', '.join(others)}")
        if time.monotonic() > deadline:
            raise NotMetError(f"it has taken more than {SECONDS_FOR_ALL:g} s")
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
    return port
