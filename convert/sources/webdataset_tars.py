"""The samples of one WebDataset tar: members with one key, such as 000017.jpg and 000017.cls."""

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from typing import BinaryIO

from convert.sources.base import SourceError, counted, first_few, size_of
from convert.sources.tar_members import Member, members
from imagestream.mds.names import printable
from imagestream.storage.protocol import Place
from imagestream.storage.reading import open_file

IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "heic", "heif")
JSON_LABELS = ("label", "cls")  # `label` is that of timm/imagenet-1k-wds
MAX_CLS_BYTES = 32
MAX_JSON_BYTES = 1024 * 1024
MEMBERS_LOOKED_AT = 32  # the members of a sample lie side by side, so the first few show what a tar is
LEFT_OUT = "tar member that is neither image nor label"


@dataclass(frozen=True, slots=True)
class Row:
    """A sample: its image's path in the tar, where its bytes are in the tar, and its label."""

    path: str
    label: int
    offset_bytes: int
    size_bytes: int

    @property
    def key(self) -> str:
        return _key_and_kind(self.path)[0]


@dataclass(slots=True)
class _Tar:
    """What has been found in a tar so far, by key."""

    where: str
    images: dict[str, Member] = field(default_factory=dict)
    label_members: dict[tuple[str, str], str] = field(default_factory=dict)  # (key, cls or json) -> its path
    labels: dict[str, tuple[int, str]] = field(default_factory=dict)  # key -> label, and which file says so
    unusable: dict[str, str] = field(default_factory=dict)  # key -> why its .json gives no label

    def add_image(self, key: str, member: Member) -> None:
        if key in self.images:
            raise self._twice(key, "images", self.images[key].path, member.path)
        self.images[key] = member

    def add_label_member(self, key: str, kind: str, path: str) -> None:
        if (key, kind) in self.label_members:
            raise self._twice(key, "labels", self.label_members[key, kind], path)
        self.label_members[key, kind] = path

    def add_label(self, key: str, label: int, says: str) -> None:
        if label < 0:
            hint = " (the labels of ImageNet's test images are not public)" if label == -1 else ""
            raise SourceError(f"{self.where}: {printable(says)} gives the label {label}; labels begin at 0{hint}")
        known, said_by = self.labels.setdefault(key, (label, says))
        if known != label:
            raise SourceError(
                f"{self.where}: sample {printable(key)} has the label {known} by {printable(said_by)} and {label} by "
                f"{printable(says)}. Correct the one that is wrong"
            )

    def _twice(self, key: str, what: str, first: str, second: str) -> SourceError:
        return SourceError(
            f"{self.where}: sample {printable(key)} has two {what}, {printable(first)} and {printable(second)}. "
            "Remove one, or give it a key of its own"
        )


def rows_of(file: BinaryIO, *, where: str, size_bytes: int, ignored: Counter[str]) -> list[Row]:
    """The samples of a tar, in the order of their images.

    Args:
        where: names the tar in messages.
        ignored: counts the members that are neither image nor label.

    Raises:
        SourceError: the tar is not whole, or a sample lacks its image or its label, or has two that differ.
    """
    tar = _Tar(where)
    for member in members(file, where=where, size_bytes=size_bytes, ignored=ignored):
        key, kind = _key_and_kind(member.path)
        if kind in IMAGES:
            tar.add_image(key, member)
        elif kind == "cls":
            tar.add_label_member(key, kind, member.path)
            tar.add_label(key, _cls(file, member, where), member.path)
        elif kind == "json":
            tar.add_label_member(key, kind, member.path)
            _read_json(file, member, key, tar)
        else:
            ignored[LEFT_OUT] += 1
    _refuse_half_samples(tar, ignored)
    return [
        Row(_plain(member.path), tar.labels[key][0], member.offset_bytes, member.size_bytes)
        for key, member in tar.images.items()
    ]


def is_webdataset_tar(files: Place, name: str) -> bool:
    """Whether labels lie beside the first images of a tar. False for what is no tar, or is cut off before that."""
    with open_file(files, name) as file:
        found = members(file, where=name, size_bytes=size_of(files, name), ignored=Counter())
        try:
            return any(_is_label(file, member) for member in islice(found, MEMBERS_LOOKED_AT))
        except SourceError:
            return False


def _is_label(file: BinaryIO, member: Member) -> bool:
    key, kind = _key_and_kind(member.path)
    if kind != "json":
        return kind == "cls"
    tar = _Tar("")
    _read_json(file, member, key, tar)
    return bool(tar.labels)


def _key_and_kind(path: str) -> tuple[str, str]:
    """WebDataset's own rule: a file name is its key up to the first dot, and its kind after that, in small letters."""
    folder, slash, name = _plain(path).rpartition("/")
    stem, _, kind = name.partition(".")
    return folder + slash + stem, kind.lower()


def _plain(path: str) -> str:
    return "/".join(part for part in path.split("/") if part not in ("", "."))


def _cls(file: BinaryIO, member: Member, where: str) -> int:
    if member.size_bytes > MAX_CLS_BYTES:
        seen = f"has {member.size_bytes:,} bytes"
    else:
        data = _content(file, member)
        if re.fullmatch(rb"\s*-?[0-9]+\s*", data):
            return int(data)
        seen = f"holds {data!r}"
    raise SourceError(
        f"{where}: {printable(member.path)} {seen}; it must hold a label, a whole number such as 17, in at most "
        f"{MAX_CLS_BYTES} bytes"
    )


def _read_json(file: BinaryIO, member: Member, key: str, tar: _Tar) -> None:
    """Add the label that a .json gives, or note why it gives none: with a .cls it needs none."""
    if member.size_bytes > MAX_JSON_BYTES:
        tar.unusable[key] = f"has {member.size_bytes:,} bytes, of which at most {MAX_JSON_BYTES:,} are read"
        return
    try:
        content = json.loads(_content(file, member))
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{tar.where}: {printable(member.path)} is no JSON ({error}); write the tar anew") from None
    given = {name: content[name] for name in JSON_LABELS if name in content} if isinstance(content, dict) else {}
    for name, value in given.items():
        if type(value) is int:
            tar.add_label(key, value, f"`{name}` in {member.path}")
        else:
            tar.unusable[key] = f"has {value!r} for `{name}`, which is no whole number"[:200]
    if not given:
        tar.unusable[key] = f"has no {' or '.join(f'`{name}`' for name in JSON_LABELS)}"


def _content(file: BinaryIO, member: Member) -> bytes:
    file.seek(member.offset_bytes)
    return file.read(member.size_bytes)


def _refuse_half_samples(tar: _Tar, ignored: Counter[str]) -> None:
    """Raise SourceError for an image without a label, or a label without an image."""
    unlabelled = [key for key in tar.images if key not in tar.labels]
    if unlabelled:
        key = unlabelled[0]
        why = f"; its .json {tar.unusable[key]}" if key in tar.unusable else ""
        raise SourceError(
            f"{tar.where}: {counted(len(unlabelled), 'image')} without a label: "
            f"{first_few([tar.images[key].path for key in unlabelled])}{why}. Each needs a .cls with a whole number, "
            f"or a .json with {' or '.join(f'`{name}`' for name in JSON_LABELS)}, of the same name"
        )
    imageless = [path for (key, _), path in tar.label_members.items() if key in tar.labels and key not in tar.images]
    if imageless:
        raise SourceError(
            f"{tar.where}: {counted(len(imageless), 'label')} without an image: {first_few(imageless)}. Each needs an "
            f"image of the same name that ends in {', '.join(f'.{kind}' for kind in IMAGES)}"
        )
    others = sum(key not in tar.images for key, _ in tar.label_members)  # a .json of something else
    ignored.update({LEFT_OUT: others} if others else {})
