"""One run at a time in a save folder: `owner.json` says which, and a run that finds another's name there ends.

A run claims the folder before it changes anything in it, and looks before each change whether it still has it. Nobody
can tell whether a run on another machine is alive. Such a one is not waited for: the folder is taken over, and the
other run, if it lives, finds that out at its next save and ends. So do the orphans of a lost launcher, and a machine
that was cut off or suspended and comes back.

What remains is the moment between that look and the change itself: one rename on a disk, one request to S3.
"""

import dataclasses
import datetime
import json
import logging
import os
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imagestream.process_identity import can_be_looked_up, is_gone, process_identity
from imagestream.storage.errors import PlaceError
from imagestream.storage.local import LocalPlace
from imagestream.storage.protocol import Check, Place, Stat, read_if_there

log = logging.getLogger(__name__)

OWNER_NAME = "owner.json"
PATIENCE_S = 10.0  # for a run on this machine that is about to end: it may be saving its last checkpoint
PAUSE_S = 0.2

Owner = dict[str, Any]


class HeldError(PlaceError):
    """Another run on this machine has the save folder; the message names it."""


class TakenOverError(PlaceError):
    """Another run has taken over the save folder from this one; the message names it."""


class FencedFolder:
    """A place that changes only as long as this run holds it.

    Raises:
        TakenOverError: from each method that changes something, when another run has the folder.
    """

    def __init__(self, inner: Place, nonce: str) -> None:
        self.inner, self.nonce = inner, nonce

    def __str__(self) -> str:
        return str(self.inner)

    @property
    def path(self) -> Path | None:
        return self.inner.path

    def check(self) -> None:
        """Raise TakenOverError unless this run still holds the folder."""
        owner = read_owner(self.inner)
        if owner is None:
            raise TakenOverError(
                f"{self.inner}/{OWNER_NAME}, which said that this run has the folder, is gone: another run has taken "
                "over and is done, or the file was deleted. Nothing there was touched since"
            )
        if owner.get("nonce") != self.nonce:
            raise TakenOverError(
                f"{self.inner} has been taken over by {describe(owner)}. Nothing of that run was touched; where this "
                "one is to have the folder, end that one first"
            )

    def release(self) -> None:
        """Give the folder back, if it is still this run's."""
        try:
            self.delete([OWNER_NAME])
        except PlaceError as error:
            log.warning("%s", error)

    @property
    def concurrency(self) -> int:
        return self.inner.concurrency

    def names(self, folder: str = "") -> list[str]:
        return self.inner.names(folder)

    def sizes(self, folder: str = "") -> dict[str, int]:
        return self.inner.sizes(folder)

    def stat(self, name: str) -> Stat | None:
        return self.inner.stat(name)

    def read(
        self, name: str, offset_bytes: int = 0, size_bytes: int | None = None, *, seen: Stat | None = None
    ) -> bytes:
        return self.inner.read(name, offset_bytes, size_bytes, seen=seen)

    def get(self, name: str, into: Path) -> Path:
        return self.inner.get(name, into)

    def write(self, name: str, data: bytes) -> Stat:
        self.check()
        return self.inner.write(name, data)

    def put(self, name: str, source: Path, *, check: Check | None = None) -> None:
        self.check()
        self.inner.put(name, source, check=check or self.check)

    def create(self, name: str, data: bytes) -> bool:
        self.check()
        return self.inner.create(name, data)

    def rename(self, name: str, new: str) -> None:
        self.check()
        self.inner.rename(name, new)

    def delete(self, names: Sequence[str]) -> None:
        self.check()
        self.inner.delete(names)

    def check_writable(self) -> None:
        self.check()
        self.inner.check_writable()


def claim(folder: Place, *, run_name: str, patience_s: float = PATIENCE_S) -> FencedFolder:
    """Take a save folder for this process, from a run that is dead or on another machine if need be.

    Raises:
        HeldError: a run that lives on this machine has it, and still had it after `patience_s`.
        PlaceError: the folder cannot be read or written.
    """
    if isinstance(folder, LocalPlace):  # a run that is suspended here would write to the same temporary files
        folder = dataclasses.replace(folder, several_writers=True)
    mine = _identity(run_name)
    data = (json.dumps(mine, indent=2) + "\n").encode()
    until, told = time.monotonic() + patience_s, False
    while not folder.create(OWNER_NAME, data):
        owner = read_owner(folder)
        if owner is not None and not lives_here(owner):
            folder.write(OWNER_NAME, data)
            log.warning("%s is taken over from %s, which %s", folder, describe(owner), _why(owner))
            break
        if time.monotonic() > until:
            raise HeldError(
                f"{folder} is in use by {describe(owner or {})}. One run at a time can save there: wait for it, end "
                "it, or give this one another checkpoint.save_folder"
            )
        if owner is not None and not told:
            log.warning("%s is in use by %s; waiting %.0f s for its end", folder, describe(owner), patience_s)
            told = True
        time.sleep(PAUSE_S)
    return FencedFolder(folder, str(mine["nonce"]))


def release(folder: Place) -> None:
    """Give a folder back that was claimed; on the ranks that have claimed nothing there is nothing to do."""
    if isinstance(folder, FencedFolder):
        folder.release()


def read_owner(folder: Place) -> Owner | None:
    """Return who has a folder: None when nobody has, {} when the file is not to be understood."""
    data = read_if_there(folder, OWNER_NAME)
    if data is None:
        return None
    try:
        owner = json.loads(data)
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def lives_here(owner: Owner) -> bool:
    """Return whether an owner is for certain a live process of this machine (and of this container)."""
    return can_be_looked_up(owner) and not is_gone(owner)


def describe(owner: Owner) -> str:
    """Return an owner's name for a message."""
    began = owner.get("unix_time_s")
    since = datetime.datetime.fromtimestamp(began, datetime.UTC) if isinstance(began, (int, float)) else None
    job = f", Slurm job {owner['slurm_job_id']}" if owner.get("slurm_job_id") else ""
    return (
        f"run {owner.get('run_name', '(unknown)')} (process {owner.get('pid', '?')} on {owner.get('host', '?')}, "
        f"started {f'{since:%Y-%m-%d %H:%M:%S} UTC' if since else 'at an unknown time'}{job})"
    )


def _why(owner: Owner) -> str:
    if can_be_looked_up(owner):
        return "is dead"
    return "ends at its next save if it still runs: it is on another machine, or in another container"


def _identity(run_name: str) -> Owner:
    return {
        "nonce": uuid.uuid4().hex,
        "run_name": run_name,
        **process_identity(),
        "unix_time_s": round(time.time(), 1),
        "slurm_job_id": os.environ.get("SLURM_JOB_ID"),
    }
