"""What an audit checks without opening a shard: each split's index.json, and the files that lie beside it."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import xxhash
from pydantic import AfterValidator, BaseModel, ConfigDict, PositiveInt, ValidationError

from convert.auditing.findings import Finding, Kind, path_in
from imagestream.mds.manifest import MANIFEST_NAME
from imagestream.mds.names import fault_of_name
from imagestream.mds.shard_reader import Columns, ShardError, columns_of
from imagestream.mds.shards import INDEX_NAME
from imagestream.storage.protocol import Place

UNFINISHED_FOLDER = ".convert/"
OUR_COLUMNS = {"i": "int", "x": "jpeg", "y": "int"}

_LIKE_A_SHARD = re.compile(r"shard\.\d+\..+|.+\.mds(\.\w+)?")
_TEMPORARY = re.compile(r"\..+\.tmp|\.part-.+|.+\.(tmp|part|partial)|\.nfs.+|.+~")
_KEPT_PRINTABLE = 60


def _below_the_split(name: str) -> str:
    if fault := fault_of_name(name):
        raise ValueError(fault)
    return name


class _Model(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)  # more keys than these are no fault


class FileEntry(_Model):
    """What index.json says of one file."""

    basename: Annotated[str, AfterValidator(_below_the_split)]
    bytes: PositiveInt
    hashes: dict[str, str]


class ShardEntry(_Model):
    """What index.json says of one shard."""

    version: Literal[2]
    format: Literal["mds"]
    samples: PositiveInt
    raw_data: FileEntry
    zip_data: FileEntry | None
    compression: str | None
    hashes: list[str]
    column_names: list[str]
    column_encodings: list[str]
    column_sizes: list[PositiveInt | None]

    @property
    def stored(self) -> FileEntry:
        """The file that the writer made."""
        return self.zip_data or self.raw_data

    @property
    def files(self) -> list[FileEntry]:
        """The files that a reader may take it from; Streaming unpacks a compressed one beside itself."""
        return [self.raw_data, self.zip_data] if self.zip_data else [self.raw_data]

    @property
    def columns(self) -> Columns:
        return columns_of(self.model_dump())


@dataclass(frozen=True, slots=True)
class SplitIndex:
    """A split's index.json. `shards` maps a shard's place in it to its entry; faulty entries are left out."""

    split: str
    content: Mapping[str, Any]
    shards: dict[int, ShardEntry]
    listed: int  # shards, faulty ones included

    @property
    def samples(self) -> int:
        return sum(entry.samples for entry in self.shards.values())

    @property
    def stored_bytes(self) -> int:
        return sum(entry.stored.bytes for entry in self.shards.values())

    def path(self, shard: int) -> str:
        """A shard's path below the dataset."""
        return path_in(self.split, self.shards[shard].stored.basename)


def find_splits(files: Place) -> list[str]:
    """The folders that have an index.json; [""] where it lies at the root instead. Raises OSError."""
    names = files.names()
    folders = [name.rstrip("/") for name in names if name.endswith("/") and not name.startswith(".")]
    splits = [folder for folder in folders if files.stat(f"{folder}/{INDEX_NAME}") is not None]
    return splits or ([""] if INDEX_NAME in names else [])


def read_index(files: Place, split: str, *, ours: bool) -> tuple[SplitIndex, list[Finding]]:
    """A split's index.json and its faults. What cannot be used of it is left out, so the rest can be looked at."""
    where = path_in(split, INDEX_NAME)
    findings: list[Finding] = []

    def fault(what: str, *, is_warning: bool = False, kind: Kind = Kind.INDEX) -> None:
        findings.append(Finding(kind, where, what, is_warning))

    content: Any = {}
    try:
        content = json.loads(files.read(where))
    except (OSError, ValueError, RecursionError) as error:
        fault(f"cannot be read: {error}")
    entries = content.get("shards") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        if not findings:
            fault("lists no shards")
        return SplitIndex(split, {}, {}, 0), findings
    if content.get("version") != 2:
        fault(f"version is {content.get('version')!r}, must be 2")
    shards: dict[int, ShardEntry] = {}
    for number, entry in enumerate(entries):
        faults, shard = _shard_entry(entry, number)
        for what in faults:
            fault(what)
        if shard:
            shards[number] = shard
    for what in (*_repeated_names(shards.values()), *_differing_columns(shards, ours=ours)):
        fault(what)
    for name, count in _unknown_hashes(shards.values()).items():
        fault(f"{name}, a hash of {count:,} shards, is not known here", is_warning=True, kind=Kind.UNKNOWN_HASH)
    return SplitIndex(split, content, shards, len(entries)), findings


def hash_hex(name: str, data: bytes) -> str | None:
    """The hash that `streaming` calls `name`; None where it is not known."""
    if name in xxhash.algorithms_available:
        return str(getattr(xxhash, name)(data).hexdigest())
    if name in hashlib.algorithms_guaranteed and not name.startswith("shake_"):
        return hashlib.new(name, data, usedforsecurity=False).hexdigest()
    return None


def leftovers(files: Place, splits: Iterable[SplitIndex]) -> Iterator[Finding]:
    """Files that no index.json accounts for. Files of other kinds are nobody's business."""
    indexes = {index.split: index for index in splits}
    names = files.names()
    if UNFINISHED_FOLDER in names:
        yield Finding(
            Kind.UNFINISHED, UNFINISHED_FOLDER, "an unfinished conversion; finish it, or delete the folder", True
        )
    if INDEX_NAME in names and "" not in indexes:
        yield Finding(Kind.LEFTOVER, INDEX_NAME, "not looked at, since the folders have their own", True)
    folders = {name.rstrip("/") for name in names if name.endswith("/") and not name.startswith(".")}
    for folder in sorted({""} | folders | set(indexes)):
        index = indexes.get(folder)
        in_folder = names if not folder else files.names(folder)
        if folder and not index and INDEX_NAME in in_folder:
            continue  # of splits unknown to this call
        known = {file.basename for entry in index.shards.values() for file in entry.files} if index else set()
        yield from _leftovers_in(folder, in_folder, known, has_index=index is not None)


def _leftovers_in(folder: str, names: Iterable[str], known: set[str], *, has_index: bool) -> Iterator[Finding]:
    for name in names:
        path = path_in(folder, name)
        if name in known or name.endswith("/"):
            continue
        if _TEMPORARY.fullmatch(name):
            yield Finding(Kind.LEFTOVER, path, "a temporary file; delete it unless a conversion is under way")
        elif _LIKE_A_SHARD.fullmatch(name):
            index_path = path_in(folder, INDEX_NAME)
            why = f"{index_path} does not list it" if has_index else f"there is no {index_path}"
            yield Finding(Kind.LEFTOVER, path, f"looks like a shard, but {why}")


def _shard_entry(entry: Any, number: int) -> tuple[list[str], ShardEntry | None]:
    """What is wrong with an entry, and the entry unless it is of no use."""
    try:
        shard = ShardEntry.model_validate(entry)
        shard.columns  # noqa: B018  # raises where they cannot be read
    except ValidationError as error:
        return [_said(number, fault["loc"], fault["msg"], fault["input"]) for fault in error.errors()], None
    except ShardError as error:
        return [f"shards.{number}: {error}"], None
    faults = []
    if (shard.zip_data is None) != (shard.compression is None):
        faults.append(f"shards.{number}: compression is {shard.compression!r}, but zip_data is {shard.zip_data!r}")
    for file in shard.files:
        if lacking := sorted(set(shard.hashes) - set(file.hashes)):
            faults.append(f"shards.{number}: {file.basename} lacks its {', '.join(lacking)}, which hashes promises")
    return faults, shard


def _said(number: int, loc: tuple[int | str, ...], message: str, value: Any) -> str:
    seen = repr(value)
    shown = seen if len(seen) <= _KEPT_PRINTABLE else seen[:_KEPT_PRINTABLE] + "..."
    return f"{'.'.join(['shards', str(number), *map(str, loc)])}: {message}, not {shown}"


def _repeated_names(shards: Iterable[ShardEntry]) -> list[str]:
    names = Counter(file.basename for entry in shards for file in entry.files)
    return [f"{name} is listed {count} times" for name, count in sorted(names.items()) if count > 1]


def _differing_columns(shards: Mapping[int, ShardEntry], *, ours: bool) -> Iterator[str]:
    first = next(iter(shards.values()), None)
    for number, entry in shards.items():
        assert first is not None
        seen = dict(zip(entry.column_names, entry.column_encodings, strict=True))
        if ours and seen != OUR_COLUMNS:
            yield f"shards.{number}: columns are {seen}, must be {OUR_COLUMNS} beside a {MANIFEST_NAME}"
        elif entry.columns != first.columns:
            yield f"shards.{number}: columns are {seen}, and not those of the first shard"


def _unknown_hashes(shards: Iterable[ShardEntry]) -> Counter[str]:
    used = Counter(name for entry in shards for name in {name for file in entry.files for name in file.hashes})
    return Counter({name: count for name, count in sorted(used.items()) if hash_hex(name, b"") is None})
