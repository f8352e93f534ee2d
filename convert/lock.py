"""One converter at a time for an output: the lock that the second one finds, and how a dead one's is told apart."""

import json
import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from convert.journal import FOLDER
from imagestream.storage.errors import PlaceError
from imagestream.storage.protocol import Place, read_if_there

logger = logging.getLogger("convert")

LOCK_NAME = f"{FOLDER}/lock"
HEARTBEAT_S = 30
SETTLING_S = 1
STALE_AFTER_S = 600  # without a heartbeat; for locks of other hosts, whose processes cannot be looked up


class LockedError(RuntimeError):
    """Another converter is at work on the same output."""


@contextmanager
def only_converter(output: Place, place: str) -> Iterator[None]:
    """Hold the lock of an output, which is given back at the end.

    The lock of a dead process is taken over: one of this host at once, one of another host when it has given no sign
    of life for STALE_AFTER_S.

    Raises:
        LockedError: another converter holds it; the message names its process and host.
    """
    mine = json.dumps(_identity()).encode()
    if not output.create(LOCK_NAME, mine):
        holder, age_s = _read(output), _age_s(output)
        if holder and age_s is not None and not _is_dead(holder, age_s):
            raise LockedError(_held(holder, age_s, place))
        logger.warning("warning: took over the lock of %s, which is gone", _name(holder))
        output.delete([LOCK_NAME])
        taken = output.create(LOCK_NAME, mine)
        time.sleep(SETTLING_S)  # another may have found the dead lock too, and deleted ours for it
        if not taken or read_if_there(output, LOCK_NAME) != mine:
            raise LockedError(_held(_read(output), 0, place))
    stop = threading.Event()
    heartbeat = threading.Thread(target=_beat, args=(output, mine, stop), daemon=True)
    heartbeat.start()
    try:
        yield
    finally:
        stop.set()
        heartbeat.join(timeout=HEARTBEAT_S)
        if read_if_there(output, LOCK_NAME) == mine:
            # All files beside it: what one that was killed while it asked for the lock has left.
            output.delete([f"{FOLDER}/{name}" for name in output.sizes(FOLDER)])


def _beat(output: Place, content: bytes, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_S):
        try:
            # Another's: this process was asleep for long and has been taken for dead.
            if read_if_there(output, LOCK_NAME) != content:
                logger.error("another converter has taken over the output; this one ends")
                os.kill(os.getpid(), signal.SIGTERM)
                return
            output.write(LOCK_NAME, content)
        except PlaceError as error:  # what the workers write next will tell
            logger.debug("the lock's heartbeat failed: %s", error)


def _identity() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "start": _start_time(os.getpid()), "since": time.time()}


def _read(output: Place) -> dict[str, Any]:
    """Who holds the lock; {} where it is gone, or just being written."""
    try:
        holder = json.loads(read_if_there(output, LOCK_NAME) or b"{}")
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def _age_s(output: Place) -> float | None:
    """Seconds since the lock was written, by the clock of the place, the same for all hosts; None where it is gone."""
    lock = output.stat(LOCK_NAME)
    if lock is None:
        return None
    probe = f"{LOCK_NAME}.{uuid.uuid4().hex[:8]}.clock"
    now_s = output.write(probe, b"").written_s
    output.delete([probe])
    return now_s - lock.written_s


def _is_dead(holder: dict[str, Any], age_s: float) -> bool:
    if holder.get("host") != socket.gethostname():
        return age_s > STALE_AFTER_S
    pid = int(holder.get("pid", 0))
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return bool(_start_time(pid) != holder.get("start"))  # the number may have been given to another process


def _start_time(pid: int) -> str:
    """Clock ticks between boot and the process's start (field 22 of /proc/PID/stat); "" off Linux."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def _name(holder: dict[str, Any]) -> str:
    return f"process {holder.get('pid', '?')} on {holder.get('host', 'an unknown host')}"


def _held(holder: dict[str, Any], age_s: float, place: str) -> str:
    return (
        f"{_name(holder)} is converting to {place} (sign of life {age_s:.0f} s ago). Wait for it, or choose another "
        f"--out. If it is gone for certain, delete {place}/{LOCK_NAME}"
    )
