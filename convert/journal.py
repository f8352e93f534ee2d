"""What a conversion has done so far, kept beside its shards until it is complete, so that it can resume after any end.

`<out>/.convert/<split>/plan.json` says what is being made, and `<number>.json` beside it what came of each shard; it
is written after the shard. `<number>.claim` says which of several machines has taken it. All are gone once the split is
complete.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import xxhash
from pydantic import TypeAdapter, ValidationError

from convert.tally import ShardResult
from imagestream.mds.manifest import Identity
from imagestream.storage.protocol import Place, Stat, read_if_there

FOLDER = ".convert"
PLAN_NAME = "plan.json"
CLAIM_ENDING = ".claim"


@dataclass(frozen=True)
class Record:
    """One finished shard. By its `receipt` the file is known again."""

    result: ShardResult
    file: str | None  # None: all of its images were refused
    file_bytes: int
    receipt: str


_RECORD = TypeAdapter(Record)


def receipt_of(stored: Stat, data: bytes) -> str:
    """What a file that was written is known again by: the tag that a bucket gives its content, or a hash."""
    return stored.tag or xxhash.xxh64(data).hexdigest()


def is_as_written(output: Place, record: Record) -> bool:
    """Whether a shard's file is there just as it was written."""
    if record.file is None:
        return True
    seen = output.stat(record.file)
    if seen is None or seen.size_bytes != record.file_bytes:
        return False
    return record.receipt == receipt_of(seen, b"" if seen.tag else output.read(record.file))


class Found(NamedTuple):
    """Numbers of shards: those with a record, and those that a machine has taken at some time."""

    made: frozenset[int]
    claimed: frozenset[int]


class RecordsGoneError(RuntimeError):
    """Records of shards that are made are gone: the split was completed meanwhile, or somebody removed them."""


class Journal:
    """The records of one split. Instances are pickled into worker processes."""

    def __init__(self, output: Place, split: str) -> None:
        self.output, self.split = output, split
        self._folder = f"{FOLDER}/{split}"

    def identity(self) -> Identity | None:
        """What is being made there; None where nothing is, or nothing that can be gone on with."""
        text = read_if_there(self.output, f"{self._folder}/{PLAN_NAME}")
        try:
            return None if text is None else Identity.model_validate_json(text)
        except ValidationError:
            return None

    def begin(self, identity: Identity) -> None:
        self.output.write(f"{self._folder}/{PLAN_NAME}", identity.model_dump_json(indent=1).encode())

    def add(self, record: Record) -> None:
        self.output.write(self._name(record.result.index), _RECORD.dump_json(record))

    def get(self, index: int) -> Record | None:
        """The record of a shard; None where there is none, or a damaged one."""
        text = read_if_there(self.output, self._name(index))
        try:
            return None if text is None else _RECORD.validate_json(text)
        except ValidationError:
            return None

    def get_each(self, indices: Iterable[int]) -> Iterator[tuple[int, Record | None]]:
        """The records of many shards, in order; from a place that takes its time to answer, several at once."""
        with ThreadPoolExecutor(self.output.concurrency) as pool:
            ahead: deque[tuple[int, Future[Record | None]]] = deque()
            for index in indices:
                ahead.append((index, pool.submit(self.get, index)))
                if len(ahead) > self.output.concurrency:
                    first, answer = ahead.popleft()
                    yield first, answer.result()
            for index, answer in ahead:
                yield index, answer.result()

    def records(self) -> Iterator[Record]:
        """All that are there and not damaged."""
        for name in sorted(self.output.sizes(self._folder)):
            stem = name.removesuffix(".json")
            record = self.get(int(stem)) if stem.isdecimal() else None
            if record:
                yield record

    def found(self) -> Found | None:
        """What a listing shows, without reading the records; None where the plan is gone, so nothing is made here."""
        names = self.output.sizes(self._folder)
        if not self.is_open():  # asked last: `end` removes the plan first, so that a listing before it was whole
            return None
        made, claimed = (
            {int(name.removesuffix(ending)) for name in names if name.removesuffix(ending).isdecimal()}
            for ending in (".json", CLAIM_ENDING)
        )
        return Found(frozenset(made), frozenset(claimed))

    def is_open(self) -> bool:
        """Whether something is being made here."""
        return self.output.stat(f"{self._folder}/{PLAN_NAME}") is not None

    def claim_name(self, index: int) -> str:
        """The file by which one of several machines takes a shard."""
        return f"{self._folder}/{index:05}{CLAIM_ENDING}"

    def forget(self, index: int) -> None:
        """Remove a shard's record and claim: it is to be made anew."""
        self.output.delete([self._name(index), self.claim_name(index)])

    def end(self) -> None:
        """Remove it all, the plan first: records without one count for nothing."""
        self.output.delete([f"{self._folder}/{PLAN_NAME}"])
        names = self.output.sizes(self._folder)
        if names:
            self.output.delete([f"{self._folder}/{name}" for name in names])

    def sweep(self) -> None:
        """Remove what a machine that came too late has left here after `end`; where there is a plan, nothing."""
        names = self.output.sizes(self._folder)
        if names and not self.is_open():  # asked last: what a new plan brings is not among the names
            self.output.delete([f"{self._folder}/{name}" for name in names])

    def _name(self, index: int) -> str:
        return f"{self._folder}/{index:05}.json"
