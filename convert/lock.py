"""One converter at a time for an output: the lock that the second one finds, and how a dead one's is told apart.

Machines that share a conversion (convert/machines.py) have one lock in common, which names its session instead of a
process, and a file each, which they renew as a sign of life.
"""

import json
import logging
import os
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from convert.journal import FOLDER
from imagestream.process_identity import can_be_looked_up, is_gone, process_identity
from imagestream.storage.errors import PlaceError
from imagestream.storage.protocol import Place, read_if_there

logger = logging.getLogger("convert")

LOCK_NAME = f"{FOLDER}/lock"
MACHINE_PREFIX = "machine."  # of the files of machines that share a conversion, beside the lock
HEARTBEAT_S = 30
SETTLING_S = 1
STALE_AFTER_S = 600  # without a heartbeat; for processes that cannot be looked up


class LockedError(RuntimeError):
    """Another converter is at work on the same output."""


@contextmanager
def only_converter(output: Place, place: str) -> Iterator[None]:
    """Hold the lock of an output, which is given back at the end.

    The lock of a dead process is taken over: at once where it can be looked up, and when it has given no sign of life
    for STALE_AFTER_S where it is of another host, of another container, or from before a reboot.

    Raises:
        LockedError: another converter holds it; the message names its process and host.
    """
    mine = json.dumps(_identity()).encode()
    if not output.create(LOCK_NAME, mine):
        holder = read_lock(output)
        refuse_live_holder(output, holder, place)
        logger.warning("warning: took over the lock of %s, which is gone", name_of(holder))
        output.delete([LOCK_NAME])
        taken = output.create(LOCK_NAME, mine)
        time.sleep(SETTLING_S)  # another may have found the dead lock too, and deleted ours for it
        if not taken or read_if_there(output, LOCK_NAME) != mine:
            raise LockedError(_held(read_lock(output), 0, place))
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


def refuse_live_holder(output: Place, holder: dict[str, Any], place: str) -> None:
    """Raise LockedError where what holds the lock is alive: one process, or any of several machines."""
    if is_shared(holder):
        if live := live_machine(output):
            raise LockedError(_held(*live, place))
        return
    age_s = _age_s(output)
    if holder and age_s is not None and not _is_dead(holder, age_s):
        raise LockedError(_held(holder, age_s, place))


def is_shared(holder: dict[str, Any]) -> bool:
    """Whether a lock is that of machines that share a conversion."""
    return "session" in holder


def live_machine(output: Place, *, but: str = "") -> tuple[dict[str, Any], float] | None:
    """One of the machines that share a conversion and are alive, and the age of its sign of life in seconds.

    Args:
        but: the name of a machine's file that does not count.
    """
    for name in output.sizes(FOLDER):
        if not name.startswith(MACHINE_PREFIX) or name == but:
            continue
        machine, age_s = read_json(output, f"{FOLDER}/{name}"), _age_s(output, f"{FOLDER}/{name}")
        if machine and age_s is not None and not _is_dead(machine, age_s):
            return machine, age_s
    return None


def _identity() -> dict[str, Any]:
    return {**process_identity(), "since": time.time()}


def sign_of_life(**more: Any) -> bytes:
    """What a machine's file holds: which process it is, and what else is to be known of it."""
    return json.dumps({**_identity(), **more}).encode()


def read_lock(output: Place) -> dict[str, Any]:
    """Who holds the lock; {} where it is gone, or just being written."""
    return read_json(output, LOCK_NAME)


def read_json(output: Place, name: str) -> dict[str, Any]:
    """The content of a small file; {} where it is gone, or just being written."""
    try:
        content = json.loads(read_if_there(output, name) or b"{}")
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _age_s(output: Place, name: str = LOCK_NAME) -> float | None:
    """Seconds since a file was written, by the clock of the place, the same for all hosts; None where it is gone."""
    file = output.stat(name)
    if file is None:
        return None
    probe = f"{LOCK_NAME}.{uuid.uuid4().hex[:8]}.clock"
    now_s = output.write(probe, b"").written_s
    output.delete([probe])
    return now_s - file.written_s


def _is_dead(holder: dict[str, Any], age_s: float) -> bool:
    """Whether a process is gone, by its number here or, elsewhere, by the age of its sign of life."""
    return is_gone(holder) if can_be_looked_up(holder) else age_s > STALE_AFTER_S


def name_of(holder: dict[str, Any]) -> str:
    """Who it is, for messages."""
    if is_shared(holder):
        return "several machines"
    return f"process {holder.get('pid', '?')} on {holder.get('host', 'an unknown host')}"


def _held(holder: dict[str, Any], age_s: float, place: str) -> str:
    return (
        f"{name_of(holder)} is converting to {place} (sign of life {age_s:.0f} s ago). Wait for it, or choose another "
        f"--out. If it is gone for certain, delete {place}/{LOCK_NAME}"
    )
