"""manifest.json: what a converted dataset holds, how it was made, and the fingerprint it is known by.

`convert` and `train` share it, so it imports nothing heavy.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from imagestream.mds.names import shown

MANIFEST_NAME = "manifest.json"
FIRST_FORMAT = "1"  # of manifests from before it was noted
ENCODERS = frozenset({"libjpeg", "pillow"})
READERS = frozenset({"libavif", "libheif"})  # noted where they are there; earlier versions noted none


class ManifestError(ValueError):
    """A manifest or index that is missing, damaged or at odds with itself; the message names the file."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ClassInfo(_Model):
    index: int  # the label, 0 to classes - 1
    wnid: str  # the class folder's name; for ImageNet its WordNet id, such as n01440764
    name: str  # readable, where something more readable than the wnid is known


class Spread(_Model):
    """Smallest, mean and largest of a quantity over the samples of a split."""

    min: int
    mean: float
    max: int


class MendedFile(_Model):
    id: int  # sample id
    path: str  # below the source folder
    label: int
    what: str  # how the stored image differs from the file


class RefusedFile(_Model):
    id: int  # the sample id it would have had; no sample has it now
    path: str
    label: int
    reason: str


class Options(_Model):
    """What was asked for, beside the seed. All but `on_bad` decide what the shards hold."""

    on_bad: Literal["fail", "skip"]
    size_limit_bytes: int
    hashes: tuple[str, ...]
    compression: str | None
    resize: str | None  # as --resize takes it; None: original bytes
    quality: int  # of the images that are resized
    subsampling: str
    exif: Literal["ignore", "apply"] = "ignore"  # the orientation that it gives
    classes: int | tuple[str, ...] | None  # --classes; None: all of them
    per_class: int | None
    val_fraction: float | None = None  # of a source without splits


class Identity(_Model):
    """All that decides the bytes of a split's shards: two conversions of equal identity give equal shards."""

    listing: str  # SHA-256 (hex) over the source's files: name, label and size of each, in order
    samples: int  # in the listing, those that will be refused included
    seed: int
    options: Options
    tools: dict[str, str]  # name -> version; `format` counts what a conversion makes of the same images and options

    def differences(self, now: "Identity", *, encoders: bool = True) -> list[str]:
        """What `now` has otherwise, each as `--seed: 0 there, 1 now`. `--on-bad` changes no shard that is whole.

        Args:
            encoders: whether an image was encoded anew, so that the versions of what encodes decide the shards' bytes.
        """
        there, here = self._named(encoders), now._named(encoders)
        named = [f"{name}: {there[name]} there, {here[name]} now" for name in there if there[name] != here[name]]
        for name in sorted(READERS & self.tools.keys() & now.tools.keys()) if encoders else ():
            if self.tools[name] != now.tools[name]:
                named.append(f"the version of {name}: {self.tools[name]} there, {now.tools[name]} now")
        if self.listing != now.listing:
            what = f"{self.samples:,} files there, {now.samples:,} now"
            named.insert(0, f"the source: {what if self.samples != now.samples else 'other names, classes or sizes'}")
        return named

    def _named(self, encoders: bool) -> dict[str, Any]:
        options = self.options.model_dump(exclude={"on_bad"})
        return {
            "--seed": self.seed,
            **{f"--{name.removesuffix('_bytes').replace('_', '-')}": value for name, value in options.items()},
            "the format of conversions": self.tools.get("format", FIRST_FORMAT),
            **{f"the version of {name}": self.tools.get(name) for name in sorted(ENCODERS) if encoders},
        }


class SplitInfo(_Model):
    """One split. How it was made is kept per split: a later run may add another with other settings."""

    samples: int
    shards: int
    bytes: int  # of all shard files
    histogram: tuple[int, ...]  # samples per class index
    width_px: Spread
    height_px: Spread
    image_bytes: Spread
    fingerprint: str  # index_fingerprint() of the split's index.json
    listing: str  # SHA-256 (hex) over the source's files: name, label and size of each, in order
    seed: int
    options: Options
    tools: dict[str, str]  # name -> version
    mended: tuple[MendedFile, ...]
    refused: tuple[RefusedFile, ...]

    @property
    def identity(self) -> Identity:
        return Identity(
            listing=self.listing,
            samples=self.samples + len(self.refused),
            seed=self.seed,
            options=self.options,
            tools=self.tools,
        )


class Manifest(_Model):
    """The whole of manifest.json. Build one with `Manifest.of`, read one with `load_manifest`."""

    version: Literal[1] = 1
    classes: tuple[ClassInfo, ...]
    splits: dict[str, SplitInfo]
    fingerprint: str  # dataset_fingerprint() of the classes and splits

    @classmethod
    def of(cls, classes: tuple[ClassInfo, ...], splits: dict[str, SplitInfo]) -> Self:
        """A manifest with its fingerprint worked out."""
        return cls(classes=classes, splits=splits, fingerprint=dataset_fingerprint(classes, splits))

    def to_json(self) -> bytes:
        """Stable bytes: the same manifest is the same file."""
        return (json.dumps(self.model_dump(mode="json"), indent=2, sort_keys=True) + "\n").encode()

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if [info.index for info in self.classes] != list(range(len(self.classes))):
            raise ValueError("classes must be listed by index, from 0 without gaps")
        for name, split in self.splits.items():
            if len(split.histogram) != len(self.classes):
                raise ValueError(
                    f"splits.{name}.histogram has {len(split.histogram)} entries for {len(self.classes)} classes"
                )
            if sum(split.histogram) != split.samples:
                raise ValueError(f"splits.{name}.histogram adds up to {sum(split.histogram)}, not {split.samples}")
        expected = dataset_fingerprint(self.classes, self.splits)
        if self.fingerprint != expected:
            raise ValueError(f"fingerprint is {self.fingerprint}, but the content gives {expected}")
        return self


def load_manifest(path: str | Path) -> Manifest:
    """Read and check a manifest, given its path or that of the dataset's folder.

    Raises:
        ManifestError: it is missing, not JSON, or not a sound manifest; every fault is listed.
    """
    path = Path(path)
    if path.is_dir():
        path = path / MANIFEST_NAME
    try:
        return parse_manifest(path.read_bytes(), where=str(path))
    except FileNotFoundError:
        raise ManifestError(f"{path} does not exist; was the dataset made by convert/imagenet_to_mds.py?") from None
    except OSError as error:
        raise ManifestError(f"{path} cannot be read: {error.strerror}") from error


def parse_manifest(text: bytes, *, where: str) -> Manifest:
    """The manifest in `text`; `where` names it in errors. For manifests that come out of a bucket."""
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, fault['loc'])) or 'manifest'}: {fault['msg']}" for fault in error.errors()]
        raise ManifestError(f"{where} is not a valid manifest:\n  " + "\n  ".join(map(shown, faults))) from None


def index_fingerprint(index: Mapping[str, Any]) -> str:
    """SHA-256 (hex) over what an index.json says of its shards: name, size, samples and hashes, in order.

    It needs the parsed index alone, so it works for MDS datasets that others made, compressed or not. Where an
    index carries no hashes, equal fingerprints mean equal sizes and counts, not equal bytes.

    Raises:
        ManifestError: `index` is not the content of an MDS index.json.
    """
    try:
        shards = [
            [shard["raw_data"]["basename"], shard["raw_data"]["bytes"], shard["samples"], shard["raw_data"]["hashes"]]
            for shard in index["shards"]
        ]
    except (KeyError, TypeError) as error:
        raise ManifestError(f"not an MDS index: {error!r} in its list of shards") from error
    return _sha256_of_json(shards)


def dataset_fingerprint(classes: tuple[ClassInfo, ...], splits: Mapping[str, SplitInfo]) -> str:
    """SHA-256 (hex) over the class list (it gives the labels their meaning) and each split's fingerprint."""
    return _sha256_of_json(
        [[info.wnid for info in classes], {name: split.fingerprint for name, split in splits.items()}]
    )


def _sha256_of_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
