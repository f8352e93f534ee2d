"""Whether a machine's GPUs are all there and well, as the driver says it: nvidia-smi and the kernel's log."""

import csv
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

OK, NOTE, UNFIT = "ok", "note", "UNFIT"
SECONDS_TO_ANSWER = 60.0  # a driver that is dead lets nvidia-smi wait for ever

# Xid errors that say that the GPU, its memory or its links are broken (docs.nvidia.com/deploy/xid-errors); the others
# may come from a program: 48 and 95 memory errors that were not contained, 64 no row left to take a bad one's place,
# 74 NVLink, 79 the GPU has fallen off the bus, 119 and 120 its system processor does not answer.
FATAL_XIDS = {48, 64, 74, 79, 95, 119, 120}
RESTART = "reset the GPU or take another machine"
# nvidia-smi's question, its name for the GPU there, the field, and what another value than FINE_VALUES says
# (docs.nvidia.com/deploy/a100-gpu-mem-error-mgmt).
MEMORY_FIELDS = (
    ("gpu", "index", "ecc.errors.uncorrected.volatile.total", "memory errors that were not corrected"),
    ("gpu", "index", "retired_pages.pending", "a page of memory waits to be retired"),
    ("remapped-rows", "gpu_bus_id", "remapped_rows.pending", "a row of memory waits to be replaced"),
    ("remapped-rows", "gpu_bus_id", "remapped_rows.failure", "a row of memory could not be replaced"),
)
FINE_VALUES = ("0", "No", "[N/A]", "N/A", "[Not Supported]")


@dataclass(frozen=True)
class Finding:
    """What was looked at, what was seen and, of something unfit, what to do."""

    level: str
    what: str
    seen: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.level:<6} {self.what:<14} {self.seen}" + (f"; {self.advice}" if self.advice else "")


class DriverError(RuntimeError):
    """nvidia-smi does not answer; the message says how."""


def look_at_gpus(expected: int | None) -> list[Finding]:
    """Everything that the driver can say.

    Args:
        expected: how many GPUs the machine has when it is whole; None where nobody knows.
    """
    try:
        listed = query(["index", "name"])
    except DriverError as error:
        return [Finding(UNFIT, "driver", str(error), RESTART)]
    count = [Finding(OK, "GPUs", f"{len(listed)} x {listed[0][1] if listed else 'none'}")]
    if expected is not None and len(listed) < expected:
        count = [Finding(UNFIT, "GPUs", f"{len(listed)} of {expected} are there", "take another machine")]
    return [*count, memory(), clocks(), xids()]


def memory() -> Finding:
    """Memory errors that were not corrected, and rows or pages that wait for a reset."""
    found = []
    for kind, key, field, words in MEMORY_FIELDS:
        try:
            rows = query([key, field], kind)
        except DriverError:  # a driver that does not know this of its GPUs
            continue
        found += [f"GPU {gpu}: {words} ({field} {value})" for gpu, value in rows if value not in FINE_VALUES]
    if found:
        return Finding(UNFIT, "memory", ", ".join(found), RESTART)
    return Finding(OK, "memory", "no uncorrected errors")


def clocks() -> Finding:
    """Hardware that slows the GPU down while it has nothing to do: heat, or too little power."""
    reasons = ("hw_thermal_slowdown", "hw_power_brake_slowdown")
    for family in ("clocks_event_reasons", "clocks_throttle_reasons"):  # the second is the name before driver 535
        try:
            rows = query(["index", *(f"{family}.{reason}" for reason in reasons)])
        except DriverError:
            continue
        slow = [
            f"GPU {row[0]}: {reason}"
            for row in rows
            for reason, value in zip(reasons, row[1:], strict=True)
            if value == "Active"
        ]
        if slow:
            return Finding(UNFIT, "clocks", ", ".join(slow), "take another machine; this one is too hot or lacks power")
        return Finding(OK, "clocks", "not slowed down")
    return Finding(NOTE, "clocks", "this driver does not say why it slows a GPU down")


def xids() -> Finding:
    """The driver's errors in the kernel's log, since the machine started."""
    if shutil.which("dmesg") is None:
        return Finding(NOTE, "Xid", "there is no dmesg here, so the kernel's log was not looked at")
    done = subprocess.run(["dmesg"], capture_output=True, text=True, errors="replace", timeout=60, check=False)
    if done.returncode != 0:
        return Finding(NOTE, "Xid", "the kernel's log may not be read here (kernel.dmesg_restrict)")
    seen = [(int(match[2]), match[0]) for match in re.finditer(r"NVRM: Xid \(([^)]*)\): (\d+)[^\n]*", done.stdout)]
    fatal = [line for number, line in seen if number in FATAL_XIDS]
    if fatal:
        return Finding(UNFIT, "Xid", f"{len(fatal)} times, the last: {fatal[-1][:200]}", RESTART)
    return Finding(OK, "Xid", f"none of a broken GPU ({len(seen)} of other kinds)")


def query(fields: Sequence[str], kind: str = "gpu") -> list[list[str]]:
    """nvidia-smi's values, a row for each GPU.

    Raises:
        DriverError: it is not there, does not answer, or does not know a field.
    """
    if shutil.which("nvidia-smi") is None:
        raise DriverError(
            "there is no nvidia-smi: the driver is not installed, or the container was not given the GPUs"
        )
    command = ["nvidia-smi", f"--query-{kind}={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_TO_ANSWER, check=False)
    except subprocess.TimeoutExpired:
        raise DriverError(f"nvidia-smi has not answered for {SECONDS_TO_ANSWER:g} s") from None
    if done.returncode != 0:
        said = " ".join((done.stdout + done.stderr).split())[:200]
        raise DriverError(f"nvidia-smi ends with status {done.returncode}: {said}")
    return [[value.strip() for value in row] for row in csv.reader(done.stdout.splitlines()) if row]
