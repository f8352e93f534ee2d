"""What an audit checks of one shard: its bytes, its records, and its images. This part runs in the worker processes.

A worker holds one shard in memory, and sends back 64 bytes for each record.
"""

import contextlib
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from convert.auditing.findings import Finding, Kind, RecordAt, path_in
from convert.auditing.index import FileEntry, ShardEntry, hash_hex
from convert.images import check_image
from convert.pool import WorkersDied, note
from convert.trials import which_kill
from imagestream.decode.rgb import BadImage
from imagestream.mds.shard_reader import ShardError, decode_record, raw_bytes, record_offsets
from imagestream.storage.protocol import Place

# One row a record.
ROW = np.dtype(
    [
        ("shard", "u4"),
        ("record", "u4"),
        ("id", "i8"),
        ("label", "i4"),  # -1: out of range
        ("bytes", "u4"),
        ("width_px", "u4"),  # 0: not decoded
        ("height_px", "u4"),
        ("sha256", "u8", (4,)),  # of the image, as files.parquet has it
    ]
)
Rows = npt.NDArray[np.void]
MOST_CLASSES = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Rules:
    """What the records of a dataset are held against."""

    num_classes: int | None  # None: no manifest says
    decode_fraction: float
    ours: bool  # made by the converter, which lets no image through that it has not checked
    deadly: dict[RecordAt, str] = field(default_factory=dict)  # images that kill the process that decodes them, and how


@dataclass(frozen=True, slots=True)
class ShardToAudit:
    split: str
    number: int  # in index.json
    first_position: int  # of its first record, in the split
    entry: ShardEntry


@dataclass(slots=True)
class ShardAudit:
    """What was seen of a shard."""

    task: ShardToAudit
    rows: Rows = field(default_factory=lambda: np.empty(0, ROW))
    findings: list[Finding] = field(default_factory=list)
    decoded: int = 0


def audit_shard(task: ShardToAudit, *, files: Place, rules: Rules) -> ShardAudit:
    """Check one shard in full."""
    audit = ShardAudit(task)
    note(_path(task))
    shard = _sound_bytes(files, task, audit.findings)
    if shard is None:
        return audit
    try:
        offsets = record_offsets(shard, samples=task.entry.samples, shard_bytes=len(shard))
    except ShardError as error:
        audit.findings.append(Finding(Kind.FORMAT, _path(task), str(error)))
        return audit
    view = memoryview(shard)
    rows = np.zeros(task.entry.samples, ROW)
    read = 0
    for record in range(task.entry.samples):
        if _check_record(audit, rows[read : read + 1], record, view[offsets[record] : offsets[record + 1]], rules):
            read += 1
    audit.rows = rows[:read]
    return audit


def deadly_images(died: WorkersDied, files: Place, rules: Rules) -> dict[RecordAt, str]:
    """The images of the shards at which workers died that kill a process by themselves, and how."""
    found: dict[RecordAt, str] = {}
    for task in died.unfinished:
        if any(death.note == _path(task) for death in died.deaths):
            killers = which_kill(partial(_images_of, task, files, rules), check_image)
            found |= {RecordAt(task.split, task.number, record): how for record, how in killers.items()}
    return found


def _images_of(task: ShardToAudit, files: Place, rules: Rules) -> Iterator[tuple[int, bytes]]:
    """(record, image) of the records of a shard that can be read and are not known to be deadly."""
    shard = _sound_bytes(files, task, [])
    with contextlib.suppress(ShardError):
        offsets = record_offsets(shard or b"", samples=task.entry.samples, shard_bytes=len(shard or b""))
        for record in range(task.entry.samples):
            if RecordAt(task.split, task.number, record) not in rules.deadly:
                yield (
                    record,
                    decode_record((shard or b"")[offsets[record] : offsets[record + 1]], task.entry.columns)["x"],
                )


def is_chosen(split: str, sample_id: int, fraction: float) -> bool:
    """Whether an image is among the fraction to decode: by a hash of what it is called, so the same every time."""
    key = hashlib.blake2b(f"{split}\0{sample_id}".encode(), digest_size=8).digest()
    return int.from_bytes(key, "little") < fraction * 2**64


def _path(task: ShardToAudit) -> str:
    return path_in(task.split, task.entry.stored.basename)


def _sound_bytes(files: Place, task: ShardToAudit, findings: list[Finding]) -> bytes | None:
    """A shard's bytes before compression; None where there are none of the right size."""
    entry, raw, any_file = task.entry, None, False
    for file in entry.files:
        path = path_in(task.split, file.basename)
        try:
            seen = files.stat(path)
            if seen is None:
                continue
            any_file = True
            if seen.size_bytes != file.bytes:
                what = f"has {seen.size_bytes:,} bytes, index.json says {file.bytes:,}"
                findings.append(Finding(Kind.SIZE, path, what))
                continue
            data = files.read(path)
        except OSError as error:
            findings.append(Finding(Kind.UNREADABLE, path, f"cannot be read: {error}"))
            any_file = True
            continue
        findings += _hash_findings(path, data, file)
        raw = _unpacked(path, data, entry, findings) if file is entry.zip_data else data
    if not any_file:
        findings.append(Finding(Kind.MISSING, _path(task), "does not exist, though index.json lists it"))
    return raw


def _unpacked(path: str, data: bytes, entry: ShardEntry, findings: list[Finding]) -> bytes | None:
    try:
        raw = raw_bytes(data, entry.compression, size_bytes=entry.raw_data.bytes)
    except ShardError as error:
        findings.append(Finding(Kind.FORMAT, path, str(error)))
        return None
    if len(raw) != entry.raw_data.bytes:
        what = f"has {len(raw):,} bytes once unpacked, index.json says {entry.raw_data.bytes:,}"
        findings.append(Finding(Kind.SIZE, path, what))
        return None
    findings += _hash_findings(path, raw, entry.raw_data, " once unpacked")
    return raw


def _hash_findings(path: str, data: bytes, file: FileEntry, when: str = "") -> list[Finding]:
    seen = {name: hash_hex(name, data) for name in sorted(file.hashes)}
    wrong = [
        f"{name}{when} is {value}, index.json says {file.hashes[name]}"
        for name, value in seen.items()
        if value is not None and value != file.hashes[name]
    ]
    return [Finding(Kind.HASH, path, "; ".join(wrong))] if wrong else []


def _check_record(audit: ShardAudit, row: Rows, number: int, record: memoryview, rules: Rules) -> bool:
    """Check a record and fill in its row. False where it cannot be read at all."""
    task = audit.task
    try:
        values = decode_record(record, task.entry.columns)
    except ShardError as error:
        audit.findings.append(Finding(Kind.FORMAT, _path(task), f"record {number}: {error}"))
        return False
    image: bytes = values["x"]
    label: int = values["y"]
    sample_id = values.get("i")
    if not isinstance(sample_id, int):
        sample_id = task.first_position + number  # datasets of others may do without, or call them otherwise
    name = f"record {number} (id {sample_id}, label {label})"
    row["shard"], row["record"], row["bytes"] = task.number, number, len(image)
    row["id"] = min(sample_id, 2**63 - 1)
    row["sha256"] = np.frombuffer(hashlib.sha256(image).digest(), "u8")
    audit.findings += _label_findings(task, name, label, rules)
    row["label"] = label if 0 <= label < (rules.num_classes or MOST_CLASSES) else -1
    if is_chosen(task.split, sample_id, rules.decode_fraction):
        audit.decoded += 1
        at = RecordAt(task.split, task.number, number)
        row["width_px"], row["height_px"] = _check_image(audit, name, image, at, rules)
    return True


def _label_findings(task: ShardToAudit, name: str, label: int, rules: Rules) -> Iterator[Finding]:
    if not 0 <= label < (rules.num_classes or MOST_CLASSES):
        known = f"manifest.json has classes 0 to {rules.num_classes - 1}" if rules.num_classes else "must be 0 or more"
        yield Finding(Kind.LABEL, _path(task), f"{name}: label is {label}, {known}")


def _check_image(audit: ShardAudit, name: str, image: bytes, at: RecordAt, rules: Rules) -> tuple[int, int]:
    """Decode an image; its size in pixels, (0, 0) where it cannot be decoded."""

    def found(kind: Kind, what: str, *images: RecordAt) -> None:
        audit.findings.append(Finding(kind, _path(audit.task), f"{name}: {what}", not rules.ours, images))

    if at in rules.deadly:
        found(Kind.IMAGE, f"it kills the process that decodes it ({rules.deadly[at]})")
        return 0, 0
    try:
        checked = check_image(image)
    except BadImage as error:
        found(Kind.IMAGE, str(error))
        return 0, 0
    if checked.mended:
        found(Kind.UNMENDED, f"not a plain JPEG; the converter would store: {checked.mended}", at)
    return checked.width_px, checked.height_px


def joined(parts: Iterable[Any]) -> Rows:
    """The rows of several shards in one array."""
    parts = list(parts)
    return np.concatenate(parts) if parts else np.empty(0, ROW)
