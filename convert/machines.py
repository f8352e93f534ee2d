"""Machines that share one conversion: how each joins and leaves, and how the others see that one is gone.

All of them have one lock in common, which says what is being made; a machine with another plan is refused. Each has a
file beside it, `.convert/machine.<name>`, whose content it changes every BEAT_S seconds. Clocks are not compared: a
machine is gone when another one has seen its file unchanged for GONE_AFTER_S by its own clock, or at once where it is a
process of the same machine, and not there. A machine that is taken for gone by mistake costs work and nothing else.
"""

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

from pydantic import TypeAdapter, ValidationError

from convert.claims import Claims
from convert.journal import FOLDER, Journal
from convert.lock import (
    LOCK_NAME,
    MACHINE_PREFIX,
    SETTLING_S,
    LockedError,
    is_shared,
    live_machine,
    name_of,
    read_lock,
    refuse_live_holder,
    sign_of_life,
)
from convert.parts import Part
from imagestream.mds.manifest import Identity
from imagestream.process_identity import can_be_looked_up, is_gone
from imagestream.storage.errors import PlaceError
from imagestream.storage.protocol import Place, read_if_there

logger = logging.getLogger("convert")

BEAT_S = 10
GONE_AFTER_S = 90  # several beats, and longer than requests to a bucket are repeated
HELD_AT_MOST_S = 1800  # a piece of work that takes longer is done by another machine as well
TRIES_TO_JOIN = 5
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 15.0  # between looks at what the other machines do

_PLAN = TypeAdapter(dict[str, Identity])


class OtherPlanError(ValueError):
    """Other machines are at work on the same output by another plan; the message says what differs."""


class Machine:
    """This machine, as one of those that share a conversion.

    Attributes:
        completed: set once the dataset is known to be complete: what the machines have left is removed at the end.
    """

    def __init__(self, output: Place, part: Part) -> None:
        self.output, self.part, self.completed = output, part, False
        self.name = f"{MACHINE_PREFIX}{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self.session = b""
        self._beats = 0
        self._others: dict[bytes, tuple[bytes, float]] = {}  # by file name: its content, and since when
        self._held: dict[str, tuple[bytes, float]] = {}  # by claim: its holder, and since when
        self._wait_s = FIRST_WAIT_S

    def claims(self, *, free: Mapping[str, bytes] | None = None, checks_made: bool = False) -> Claims:
        """What worker processes take shards by."""
        return Claims(self.output, self.name.encode(), self.session, free or {}, checks_made)

    def take(self, name: str) -> bool:
        """Take a piece of work that is not a shard. Raises SessionOverError."""
        return self.claims(free=self.free([name])).take(name)

    def holds(self, name: str) -> bool:
        """Whether a piece of work that this machine has taken is still its own."""
        return read_if_there(self.output, name) == self.name.encode()

    def give_back(self, name: str) -> None:
        """Let others have a piece of work that this machine has taken."""
        self.output.delete([name])

    def free(self, names: Iterable[str]) -> dict[str, bytes]:
        """Of claims, by file name, those that may be taken over, with the holder that each has now."""
        names = list(names)
        with ThreadPoolExecutor(self.output.concurrency) as pool:
            holders = dict(zip(names, pool.map(lambda name: read_if_there(self.output, name), names), strict=True))
        gone = {holder: self._is_gone(holder) for holder in set(holders.values()) if holder is not None}
        return {
            name: holder for name, holder in holders.items() if holder and (gone[holder] or self._is_late(name, holder))
        }

    def wait(self) -> None:
        """Give the others time, more of it each time until `work_found`."""
        time.sleep(self._wait_s)  # nothing tells a machine of the others but a look; together.py bounds how often
        self._wait_s = min(1.5 * self._wait_s, LONGEST_WAIT_S)

    def work_found(self) -> None:
        """Have the next wait be short again."""
        self._wait_s = FIRST_WAIT_S

    def beat(self) -> None:
        """Give a sign of life."""
        self._beats += 1
        self.output.write(self._file, sign_of_life(part=str(self.part), beat=self._beats))

    def leave(self, splits: Iterable[str]) -> None:
        """Remove this machine's file and, where the dataset is complete, all that the machines have left."""
        if self.completed:
            sweep(self.output, splits)
        if self.completed and read_if_there(self.output, LOCK_NAME) == self.session:
            for split in splits:  # whoever completed it may have been killed at this
                Journal(self.output, split).end()
            names = [f"{FOLDER}/{name}" for name in self.output.sizes(FOLDER)]
            self.output.delete([name for name in names if name not in (LOCK_NAME, self._file)] + [LOCK_NAME])
        self.output.delete([self._file])

    @property
    def _file(self) -> str:
        return f"{FOLDER}/{self.name}"

    def _is_gone(self, holder: bytes) -> bool:
        """Whether the machine that a claim names has left, or has given no sign of life for long."""
        if holder == self.name.encode():  # which has come back from it without a result
            return True
        if not holder.startswith(MACHINE_PREFIX.encode()) or b"/" in holder:
            return True  # no machine has written this, and what it names is not to be read
        content = read_if_there(self.output, f"{FOLDER}/{holder.decode(errors='replace')}")
        if content is None:
            return True
        known = self._others.get(holder)
        if known is None or known[0] != content:
            known = self._others[holder] = (content, time.monotonic())
        machine = _parsed(content)
        return is_gone(machine) if can_be_looked_up(machine) else time.monotonic() - known[1] > GONE_AFTER_S

    def _is_late(self, name: str, holder: bytes) -> bool:
        known = self._held.get(name)
        if known is None or known[0] != holder:
            known = self._held[name] = (holder, time.monotonic())
        return time.monotonic() - known[1] > HELD_AT_MOST_S


def is_session_of(output: Place, plan: Mapping[str, Identity]) -> bool:
    """Whether machines have a common lock at an output, dead or alive, and what they make is `plan`."""
    holder = read_lock(output)
    return is_shared(holder) and not _differences(holder, plan)


def sweep(output: Place, splits: Iterable[str]) -> None:
    """Remove what machines have left that noticed too late that a split was complete."""
    for split in splits:
        Journal(output, split).sweep()
    if output.path is not None:
        with suppress(OSError):  # there is none, or something else lies in it
            (output.path / FOLDER).rmdir()


@contextmanager
def joined(output: Place, place: str, part: Part, plan: Mapping[str, Identity]) -> Iterator[Machine]:
    """Be one of the machines that make `plan` at an output.

    Raises:
        OtherPlanError: those at work there make something else.
        LockedError: a converter that works alone is there.
    """
    machine, stop = Machine(output, part), threading.Event()
    beating = threading.Thread(target=_keep_beating, args=(machine, stop), daemon=True)
    machine.beat()
    try:
        machine.session = _join(machine, place, plan)
        beating.start()
        yield machine
    finally:
        stop.set()
        if beating.is_alive():
            beating.join(timeout=GONE_AFTER_S)
        machine.leave(plan)


def _keep_beating(machine: Machine, stop: threading.Event) -> None:
    while not stop.wait(BEAT_S):
        try:
            if read_if_there(machine.output, LOCK_NAME) != machine.session:
                return  # a worker finds it out before it writes anything
            machine.beat()
        except PlaceError as error:  # what the workers write next will tell
            logger.debug("the sign of life failed: %s", error)


def _join(machine: Machine, place: str, plan: Mapping[str, Identity]) -> bytes:
    """The content of the common lock: the one that is there, or one of this machine's own."""
    output = machine.output
    made = {name: identity.model_dump(mode="json") for name, identity in plan.items()}
    mine = json.dumps({"session": uuid.uuid4().hex, "plan": made}).encode()
    for _ in range(TRIES_TO_JOIN):
        if output.create(LOCK_NAME, mine):
            return mine
        there = read_if_there(output, LOCK_NAME)
        holder = _parsed(there or b"")
        if is_shared(holder):
            differences = _differences(holder, plan)
            if there is not None and not differences:
                return there
            if live := live_machine(output, but=machine.name):
                raise OtherPlanError(_refusal(place, live[0], differences))
        else:
            refuse_live_holder(output, holder, place)
        if there is not None:
            logger.warning("warning: took over the lock of %s, which is gone", name_of(holder))
            output.write(LOCK_NAME, mine)
            time.sleep(SETTLING_S)  # others may do the same at this moment; the last one's stays
    raise LockedError(f"{place}/{LOCK_NAME} changes again and again; give the command once more")


def _differences(holder: dict[str, Any], plan: Mapping[str, Identity]) -> list[str]:
    """What this machine would make otherwise than the plan in a common lock, by split."""
    try:
        there = _PLAN.validate_json(json.dumps(holder.get("plan")))
    except ValidationError:
        return ["the version of this project"]
    if there.keys() != plan.keys():
        return [f"the splits: {', '.join(sorted(there))} there, {', '.join(sorted(plan))} now"]
    return [f"{name}: {text}" for name in plan for text in _of_split(there[name], plan[name])]


def _of_split(there: Identity, now: Identity) -> list[str]:
    named = there.differences(now)
    if there.options.on_bad != now.options.on_bad:
        named.append(f"--on-bad: {there.options.on_bad} there, {now.options.on_bad} now")
    for name in sorted(there.tools.keys() | now.tools.keys()):
        text = f"the version of {name}: {there.tools.get(name)} there, {now.tools.get(name)} now"
        if there.tools.get(name) != now.tools.get(name) and text not in named and name != "format":
            named.append(text)
    return named


def _refusal(place: str, live: dict[str, Any], differences: list[str]) -> str:
    return (
        f"other machines are converting to {place} ({name_of(live)}, part {live.get('part', '?')}), and this one would "
        "make something else:\n  "
        + "\n  ".join(differences)
        + "\nGive all machines the same source, command and versions, or this one another --out"
    )


def _parsed(content: bytes) -> dict[str, Any]:
    try:
        machine = json.loads(content)
    except ValueError:
        return {}
    return machine if isinstance(machine, dict) else {}
