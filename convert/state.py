"""What is to be converted, and what the output holds of it.

A split of the output is in one of three states: new; begun (`.convert/<split>/plan.json` is there); complete (its
index.json is there and the manifest has it).
"""

import json
import time
from dataclasses import dataclass, field
from typing import Any

from convert.arguments import Args
from convert.journal import Journal
from convert.plan import ShardTask
from convert.sources import Listing, Source
from convert.tally import SplitTally
from imagestream.mds.manifest import MANIFEST_NAME, Identity, Manifest, parse_manifest
from imagestream.mds.shards import INDEX_NAME, is_our_name
from imagestream.storage.local import final_name
from imagestream.storage.protocol import Place, Stat, read_if_there


class UsageError(ValueError):
    """The command cannot do what was asked for; nothing has been touched."""


class BadImagesError(RuntimeError):
    """There are images that cannot be converted, and --on-bad says to fail."""


class OutputError(RuntimeError):
    """The output holds something that a conversion cannot continue with."""


@dataclass(slots=True)
class Split:
    """One split on its way from the source to the output."""

    listing: Listing
    identity: Identity
    tasks: list[ShardTask]
    tally: SplitTally
    complete: bool = False

    @property
    def name(self) -> str:
        return self.listing.split


@dataclass(slots=True)
class Conversion:
    """What is to be done: where from and to, the classes, and each split's plan."""

    args: Args
    source: Source
    output: Place
    names: list[str]  # of the classes
    splits: list[Split]
    manifest: Manifest | None  # what the output has so far
    readable: dict[str, str]  # names of classes, as far as the source knows any
    seen: dict[str, Stat]  # of the source's files that hold several images, as they were listed
    started: float = field(default_factory=time.monotonic)
    made_shards: int = 0  # by this run
    made_images: int = 0


def existing_manifest(output: Place, out: str) -> Manifest | None:
    text = read_if_there(output, MANIFEST_NAME)
    return None if text is None else parse_manifest(text, where=f"{out}/{MANIFEST_NAME}")


def our_files(output: Place, split: str) -> list[str]:
    """The files in a split's folder that a conversion, finished or not, has left there."""
    return [name for name in output.sizes(split) if is_our_name(final_name(name))]


def kept_manifest(conversion: Conversion) -> Manifest | None:
    """The output's manifest less the splits that are being made; None where nothing is left of it."""
    manifest = conversion.manifest
    if manifest is None:
        return None
    made = {split.name for split in conversion.splits if not split.complete}
    kept = {name: info for name, info in manifest.splits.items() if name not in made}
    return Manifest.of(manifest.classes, kept) if kept else None


def differences(conversion: Conversion, split: Split, there: Identity) -> list[str]:
    """How the settings of the split that the output holds, or of a part of it, differ from those given now."""
    same_tools = there.tools == split.identity.tools
    return there.differences(split.identity, encoders=not same_tools and _has_encoded(conversion, split))


def _has_encoded(conversion: Conversion, split: Split) -> bool:
    """Whether the output may hold images of a split that were encoded anew."""
    listed = conversion.manifest.splits.get(split.name) if conversion.manifest else None
    if conversion.args.resize is not None or (listed and listed.mended):
        return True
    return any(record.result.mended for record in Journal(conversion.output, split.name).records())


def has_begun(conversion: Conversion, split: Split) -> bool:
    """Whether the output's journal has this split's plan."""
    begun = Journal(conversion.output, split.name).identity()
    return begun is not None and not differences(conversion, split, begun)


def missing_shards(output: Place, split: str) -> set[int]:
    """The numbers of the shards of a complete split that are not there, or are of another size than its index says."""
    there = output.sizes(split)
    return {
        int(entry["raw_data"]["basename"].split(".")[1])
        for entry in index_of(output, split)
        if there.get((entry["zip_data"] or entry["raw_data"])["basename"])
        != (entry["zip_data"] or entry["raw_data"])["bytes"]
    }


def index_of(output: Place, split: str) -> list[dict[str, Any]]:
    try:
        entries: list[dict[str, Any]] = json.loads(read_if_there(output, f"{split}/{INDEX_NAME}") or b"")["shards"]
        return entries
    except (ValueError, KeyError, TypeError) as error:
        raise OutputError(f"{split}/{INDEX_NAME} is damaged ({error}); replace the split with --overwrite") from error
