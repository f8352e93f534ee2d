"""What an index.json must say of its shards before a byte of them is fetched: it may come from anybody."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from imagestream.mds.names import fault_of_name
from imagestream.mds.unpacking import METHODS, can_unpack


class DataError(ValueError):
    """The dataset is not there, not readable or does not fit the settings.

    Attributes:
        about: the library's arguments that the message asks to correct.
    """

    def __init__(self, message: str, *, about: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.about = about


MAX_SHARD_BYTES = 2**32 - 1  # an MDS shard says where its samples are in 32 bits each
KEYS = {  # those that streaming's reader takes; it has a use for no others
    *("version", "format", "compression", "hashes", "raw_data", "zip_data", "samples", "size_limit"),
    *("column_names", "column_encodings", "column_sizes"),
}


def fault_of_index(index: Any) -> str:
    """Return what keeps parsed JSON from being the index of a split's MDS shards, or ''."""
    shards = index.get("shards") if isinstance(index, dict) else None
    if not isinstance(shards, list):
        return "it has no list of shards"
    if not shards:
        return "it lists no shards"
    for number, shard in enumerate(shards):
        if fault := _fault_of_shard(shard):
            return fault.format(n=number)
    names = Counter(file["basename"] for shard in shards for file in _files(shard))
    return next((f"it lists two files of the name {name}" for name, count in names.items() if count > 1), "")


def _fault_of_shard(shard: Any) -> str:
    """Return what is wrong with an entry, `{n}` standing for its number, or ''."""
    if not isinstance(shard, dict) or not isinstance(shard.get("raw_data"), dict):
        return "shard {n} has no file (raw_data)"
    for file in _files(shard):
        if not isinstance(file, dict) or not isinstance(file.get("basename"), str):
            return "a file of shard {n} has no name (basename)"
        if fault := fault_of_name(file["basename"]):
            return f"a file of shard {{n}} is named {_quoted(file['basename'])}: it {fault}"
        if not _is_hashes(file.get("hashes")):
            return "shard {n} does not say its hashes"
    if not all(_is_count(value) for value in (shard.get("samples"), *(file.get("bytes") for file in _files(shard)))):
        return "shard {n} does not say how many samples and bytes it has"
    return _fault_of_format(shard) or _fault_of_columns(shard) or _fault_of_sizes(shard)


def _fault_of_format(shard: Mapping[str, Any]) -> str:
    if shard.get("version") != 2 or shard.get("format") != "mds":
        seen = _quoted([shard.get("format"), shard.get("version")])
        return f"shard {{n}} has format and version {seen}; mds, 2 can be read"
    if odd := sorted(set(shard) ^ KEYS):
        return f"shard {{n}} {'lacks' if odd[0] not in shard else 'has the unknown key'} {_quoted(odd[0])}"
    if (shard["compression"] is None) != (shard["zip_data"] is None):
        return "shard {n} has a compression without a compressed file (zip_data), or the other way round"
    if shard["compression"] is not None and not can_unpack(shard["compression"]):
        return f"shard {{n}} has the compression {_quoted(shard['compression'])}; {', '.join(METHODS)} can be read"
    if not isinstance(shard["hashes"], list) or not all(isinstance(name, str) for name in shard["hashes"]):
        return "shard {n} does not say its hashes"
    return ""


def _fault_of_columns(shard: Mapping[str, Any]) -> str:
    names, encodings, sizes = (shard[f"column_{part}"] for part in ("names", "encodings", "sizes"))
    lists = [part for part in (names, encodings, sizes) if isinstance(part, list)]
    sound = (
        len(lists) == 3
        and len({len(part) for part in lists}) == 1
        and all(isinstance(text, str) for text in (*names, *encodings))
        and all(size is None or (_is_count(size) and size <= MAX_SHARD_BYTES) for size in sizes)
        and len(set(names)) == len(names)
    )
    return "" if sound else "shard {n} does not say a name, an encoding and a size of each column"


def _fault_of_sizes(shard: Mapping[str, Any]) -> str:
    """A count that is not bounded by the bytes has the plan of an epoch take gigabytes of memory."""
    samples, size = shard["samples"], shard["raw_data"]["bytes"]
    if size > MAX_SHARD_BYTES:
        return f"shard {{n}} has {size:,} bytes; a shard has at most {MAX_SHARD_BYTES:,}"
    least = sum(4 if column is None else column for column in shard["column_sizes"])  # 4: the size of a text or image
    if 4 * (samples + 2) + samples * least > size:
        return f"shard {{n}} has {samples:,} samples in {size:,} bytes, too few for them"
    return ""


def _files(shard: Mapping[str, Any]) -> Iterator[Any]:
    yield shard["raw_data"]
    if shard.get("zip_data") is not None:
        yield shard["zip_data"]


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_hashes(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in (*value, *value.values()))


def _quoted(value: Any) -> str:
    """Return a value as JSON text in ASCII, so that nothing in it reaches a terminal as it is."""
    text = json.dumps(value)
    text = text if len(text) <= 80 else text[:77] + "..."
    return text.replace("{", "{{").replace("}", "}}")
