"""What a conversion has done so far, kept beside its shards until it is complete, so that it can go on after any end.

`<out>/.convert/<split>/plan.json` says what is being made, and `<number>.json` beside it what came of each shard; it
is written after the shard. Both are gone once the split is complete.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import xxhash
from pydantic import TypeAdapter, ValidationError

from convert.tally import ShardResult
from imagestream.mds.manifest import Identity
from imagestream.storage.protocol import Place, Stat, read_if_there

FOLDER = ".convert"
PLAN_NAME = "plan.json"


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

    def records(self) -> Iterator[Record]:
        """All that are there and not damaged."""
        for name in sorted(self.output.sizes(self._folder)):
            stem = name.removesuffix(".json")
            record = self.get(int(stem)) if stem.isdecimal() else None
            if record:
                yield record

    def end(self) -> None:
        """Remove it all, the plan first: records without one count for nothing."""
        names = sorted(self.output.sizes(self._folder), key=lambda name: name != PLAN_NAME)
        self.output.delete([f"{self._folder}/{name}" for name in names])

    def _name(self, index: int) -> str:
        return f"{self._folder}/{index:05}.json"
