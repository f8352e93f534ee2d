"""What became of the shards, and how that adds up to a split's index.json and its part of the manifest."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from imagestream.mds.manifest import Identity, MendedFile, RefusedFile, SplitInfo, Spread, index_fingerprint
from imagestream.mds.shards import encode_index


class KeptImage(NamedTuple):
    """What is to be known of one image in a shard."""

    id: int
    label: int
    width_px: int
    height_px: int
    image_bytes: int
    sha256: str  # hexadecimal, of the image as it is stored


@dataclass(slots=True)
class ShardResult:
    """What became of a shard. `entry` is None where none was written, since all its images were refused."""

    split: str
    index: int
    images: int  # looked at, refused ones included
    entry: dict[str, Any] | None = None
    kept: list[KeptImage] = field(default_factory=list)
    mended: list[MendedFile] = field(default_factory=list)
    refused: list[RefusedFile] = field(default_factory=list)
    resized: int = 0
    ignored_turns: int = 0  # images with an EXIF orientation that was not applied
    by_another: bool = False  # another machine has taken it, and nothing is known of it here
    reused: bool = False  # by an earlier run, or by this one just as another of its workers was killed


class SplitTally:
    """What is known of a split so far. Results may be added in any order; the outcome is the same."""

    def __init__(self, num_classes: int) -> None:
        self.histogram = [0] * num_classes
        self.mended: list[MendedFile] = []
        self.refused: list[RefusedFile] = []
        self.resized = self.reused_shards = self.ignored_turns = 0
        self._entries: dict[int, dict[str, Any]] = {}
        self._width_px = _Spreading()
        self._height_px = _Spreading()
        self._image_bytes = _Spreading()

    @property
    def samples(self) -> int:
        return sum(self.histogram)

    @property
    def entries(self) -> list[dict[str, Any]]:
        """The entries of index.json, in the order of the plan."""
        return [self._entries[index] for index in sorted(self._entries)]

    @property
    def shard_bytes(self) -> int:
        """The size of the shards' files."""
        return sum((entry["zip_data"] or entry["raw_data"])["bytes"] for entry in self._entries.values())

    def add(self, result: ShardResult) -> None:
        self.mended += result.mended
        self.refused += result.refused
        self.resized += result.resized
        self.ignored_turns += result.ignored_turns
        self.reused_shards += result.reused
        if result.entry is not None:
            self._entries[result.index] = result.entry
        for image in result.kept:
            self.histogram[image.label] += 1
            self._width_px.add(image.width_px)
            self._height_px.add(image.height_px)
            self._image_bytes.add(image.image_bytes)

    def index_json(self) -> bytes:
        return encode_index(self.entries)

    def info(self, identity: Identity) -> SplitInfo:
        """The split's part of the manifest, once all its shards are added."""
        return SplitInfo(
            samples=self.samples,
            shards=len(self._entries),
            bytes=self.shard_bytes,
            histogram=tuple(self.histogram),
            width_px=self._width_px.spread(),
            height_px=self._height_px.spread(),
            image_bytes=self._image_bytes.spread(),
            fingerprint=index_fingerprint({"shards": self.entries}),
            listing=identity.listing,
            seed=identity.seed,
            options=identity.options,
            tools=identity.tools,
            mended=tuple(sorted(self.mended, key=lambda file: file.id)),
            refused=tuple(sorted(self.refused, key=lambda file: file.id)),
        )


class _Spreading:
    """A Spread that grows. Sums are whole numbers, so the mean does not depend on the order of adding."""

    def __init__(self) -> None:
        self._count = self._sum = self._max = 0
        self._min = 2**63

    def add(self, value: int) -> None:
        self._count += 1
        self._sum += value
        self._min = min(self._min, value)
        self._max = max(self._max, value)

    def spread(self) -> Spread:
        return Spread(min=self._min, mean=round(self._sum / self._count, 2), max=self._max)
