"""Hosts that are network namespaces: each with an address, a name, and files of its own; a link that can be cut.

They need root and iproute2. Processes of a host are found by its namespace, so that all of them can be killed at once,
as when a machine loses its power.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest


class Host:
    """One namespace, its address, and a folder that is its own (a tmpfs) for whatever is started in it."""

    def __init__(self, name: str, address: str, lab: str, known: Path) -> None:
        self.name, self.address, self.namespace, self.known = name, address, f"{lab}-{name}", known
        self.outer = f"v{lab[-4:]}{address.rpartition('.')[2]}"
        self.core = int(address.rpartition(".")[2]) % (os.cpu_count() or 1)

    def command(self, argv: Sequence[str], private: Path) -> list[str]:
        """A command line that runs `argv` in this host, with a hostname, /dev/shm, a core and `private` its own."""
        setup = (
            f"set -e; hostname {self.name}; mount --bind {self.known} /etc/hosts; "
            'mount -t tmpfs tmpfs /dev/shm; mount -t tmpfs tmpfs "$0"; exec "$@"'
        )
        # Not `ip netns exec`, which hides /sys/fs/cgroup; slurmd wants it.
        enter = ["nsenter", f"--net=/run/netns/{self.namespace}", "unshare", "--uts", "--mount"]
        return [*enter, "taskset", "--cpu-list", str(self.core), "bash", "-c", setup, str(private), *argv]

    def pids(self) -> list[int]:
        listed = subprocess.run(["ip", "netns", "pids", self.namespace], capture_output=True, text=True, check=False)
        return [int(pid) for pid in listed.stdout.split()]

    def kill_everything(self) -> None:
        """SIGKILL to each process, until there is none: the machine is lost."""
        for _ in range(100):
            pids = self.pids()
            if not pids:
                return
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)
        raise AssertionError(f"{self.name} still has processes {self.pids()}")

    def set_link(self, up: bool) -> None:
        _ip("link", "set", self.outer, "up" if up else "down")


@contextlib.contextmanager
def running_hosts(names: Sequence[str]) -> Iterator[tuple[list[Host], str]]:
    """Hosts on one bridge, and the bridge's own address, which is this machine's as they see it."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.fail("this test makes network namespaces: run it as root, with iproute2 installed")
    lab = f"lab{uuid.uuid4().hex[:4]}"
    prefix = f"10.77.{os.getpid() % 250}"  # another process's lab has another
    gateway = f"{prefix}.1"
    known = Path(tempfile.gettempdir()) / f"{lab}-hosts"
    hosts = [Host(name, f"{prefix}.{11 + index}", lab, known) for index, name in enumerate(names)]
    known.write_text("127.0.0.1 localhost\n" + "".join(f"{host.address} {host.name}\n" for host in hosts))
    try:
        _ip("link", "add", lab, "type", "bridge")
        _ip("addr", "add", f"{gateway}/24", "dev", lab)
        _ip("link", "set", lab, "up")
        for host in hosts:
            _make(host, lab)
        yield hosts, gateway
    finally:
        for host in hosts:
            host.kill_everything()
            subprocess.run(["ip", "netns", "del", host.namespace], capture_output=True, check=False)
        subprocess.run(["ip", "link", "del", lab], capture_output=True, check=False)
        known.unlink(missing_ok=True)


def _make(host: Host, bridge: str) -> None:
    _ip("netns", "add", host.namespace)
    _ip("link", "add", host.outer, "type", "veth", "peer", "name", "eth0", "netns", host.namespace)
    _ip("link", "set", host.outer, "master", bridge)
    _ip("link", "set", host.outer, "up")
    for arguments in (["addr", "add", f"{host.address}/24", "dev", "eth0"], ["link", "set", "eth0", "up"]):
        _ip("-n", host.namespace, *arguments)
    _ip("-n", host.namespace, "link", "set", "lo", "up")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=20)


@contextlib.contextmanager
def forwarded(address: str, port: int) -> Iterator[str]:
    """Let hosts reach a server of this machine's loopback by the bridge's address; yields its address and port."""
    started = threading.Event()
    loop = asyncio.new_event_loop()
    places: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            to, back = await asyncio.open_connection("127.0.0.1", port)
            await asyncio.gather(_copy(reader, back), _copy(to, writer))

    async def start() -> None:
        server = await asyncio.start_server(serve, address, 0)
        host, own_port = server.sockets[0].getsockname()[:2]
        places.append(f"{host}:{own_port}")
        started.set()

    def run() -> None:
        loop.run_until_complete(start())
        loop.run_forever()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert started.wait(10)
    try:
        yield places[0]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(1 << 16):
            sink.write(data)
            await sink.drain()
    sink.close()
