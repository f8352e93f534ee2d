"""ImageNet as image-net.org gives it out: tar files, read in place without unpacking them.

    ILSVRC2012_img_train.tar       a tar of class tars, n01440764.tar with n01440764_10026.JPEG
    ILSVRC2012_img_val.tar         flat, ILSVRC2012_val_00000001.JPEG
    ILSVRC2012_devkit_t12.tar.gz   the labels of val

The class tars inside are not compressed, so each image is a run of bytes of the outer file. train may also be a
folder of class tars, and so may val, or a tar with a folder for each class.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from convert.sources import devkit
from convert.sources.base import (
    DEFAULT_SPLITS,
    Listing,
    Sample,
    SourceError,
    all_but,
    counted,
    each,
    first_few,
    glimpse,
    in_order,
    indexes_of,
    labelled_splits,
    names_of,
    reading,
    size_of,
)
from convert.sources.devkit import has_devkit, load_devkit
from convert.sources.tar_members import Member, keep_last, members
from convert.sources.webdataset_tars import is_webdataset_tar
from imagestream.mds.names import printable
from imagestream.storage.protocol import Place
from imagestream.storage.reading import open_file

TRAIN, VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"


def is_tars(files: Place) -> bool:
    """Whether this folder holds ImageNet's tars."""
    return any(files.stat(name) is not None for name in (TRAIN, VAL)) or any(
        _has_class_tars(files, split) for split in DEFAULT_SPLITS
    )


def _has_class_tars(files: Place, split: str) -> bool:
    folder = _folder_of_class_tars(files, split)
    tars = _walk_folder(files, folder).class_tars if folder else ()
    return bool(tars) and not is_webdataset_tar(files, tars[0].file)


_LABEL_ENDINGS = (".cls", ".cls.txt", ".json", ".cls2")


@dataclass(frozen=True, slots=True)
class ClassTar:
    """A tar with the images of one class; `offset_bytes` where it lies in the file, None: it is the whole file."""

    wnid: str
    file: str
    offset_bytes: int | None = None
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class ByClass:
    """What lies in a split: class tars, or images in class folders (class -> images)."""

    class_tars: tuple[ClassTar, ...]
    images: dict[str, list[Member]]
    ignored: Counter[str]

    @property
    def classes(self) -> list[str]:
        return sorted({*self.images, *(tar.wnid for tar in self.class_tars)})


@dataclass(slots=True)
class Tars:
    """The original tars, local or in a bucket."""

    files: Place
    layout: ClassVar[str] = "tars"
    _walked: dict[str, ByClass] = field(default_factory=dict, repr=False)  # once: 1,000 reads of the outer tar

    def splits(self, requested: Sequence[str] | None) -> list[str]:
        with reading(self.files):
            found = [split for split in requested or DEFAULT_SPLITS if self._has(split)]
            return labelled_splits(requested, found, source=self.files, seen=glimpse(self.files))

    def class_names(self, splits: Sequence[str]) -> list[str]:
        with reading(self.files):
            if self._has("train"):
                return self._walk("train").classes
            if self.files.stat(VAL) is None:
                return self._walk(splits[0]).classes
            return sorted(load_devkit(self.files).wnid_of.values())

    def listing(self, split: str, classes: Sequence[str]) -> Listing:
        with reading(self.files):
            is_flat = split == "val" and self.files.stat(VAL) is not None
            return self._list_val(split, classes) if is_flat else self._list_by_class(split, classes)

    def left_out(self, splits: Sequence[str]) -> list[str]:
        with reading(self.files):
            folders = {_folder_of_class_tars(self.files, split) or split for split in splits if not self._outer(split)}
            outer = {name for split in splits if (name := self._outer(split))}
            return all_but(self.files, folders | outer | {devkit.ARCHIVE, devkit.FOLDER})

    def readable_names(self) -> dict[str, str]:
        with reading(self.files):
            return load_devkit(self.files).names if has_devkit(self.files) else {}

    def _outer(self, split: str) -> str | None:
        """The one tar of a split, where there is one."""
        name = {"train": TRAIN, "val": VAL}.get(split, "")
        return name if name and self.files.stat(name) is not None else None

    def _has(self, split: str) -> bool:
        return self._outer(split) is not None or _folder_of_class_tars(self.files, split) is not None

    def _walk(self, split: str) -> ByClass:
        if split not in self._walked:
            folder = _folder_of_class_tars(self.files, split)
            whole = self._outer(split) is not None or folder is None
            self._walked[split] = _walk_outer(self.files) if whole else _walk_folder(self.files, folder or "")
        return self._walked[split]

    def _list_by_class(self, split: str, classes: Sequence[str]) -> Listing:
        walked = self._walk(split)
        index_of = indexes_of(classes, walked.classes, where=f"{split} of {self.files}")
        ignored = Counter(walked.ignored)
        samples = [_sample(split, wnid, index_of, TRAIN, m) for wnid, found in walked.images.items() for m in found]
        inner = each(self._in_class_tar, walked.class_tars, threads=self.files.concurrency, unit="tars", what=split)
        for tar, (found, left_out) in zip(walked.class_tars, inner, strict=True):
            samples += [_sample(split, tar.wnid, index_of, tar.file, member) for member in found]
            ignored += left_out
        if not samples:
            tars = counted(len(walked.class_tars), "class tar")
            raise SourceError(f"{split} of {self.files}: {tars} without one image")
        return in_order(split, samples, ignored)

    def _in_class_tar(self, tar: ClassTar) -> tuple[list[Member], Counter[str]]:
        ignored: Counter[str] = Counter()
        where = f"{self.files}/{tar.file}" + ("" if tar.offset_bytes is None else f": {tar.wnid}.tar in it")
        size_bytes = tar.size_bytes if tar.offset_bytes is not None else size_of(self.files, tar.file)
        with open_file(self.files, tar.file, most_of_it=True) as file:
            found = members(
                file, where=where, size_bytes=size_bytes, ignored=ignored, start_bytes=tar.offset_bytes or 0
            )
            found = _images_alone(found, where)
            # A class tar has no folders that mean anything: `./x.JPEG` and `n01440764/x.JPEG` are both x.JPEG.
            return keep_last(found, ignored), ignored

    def _list_val(self, split: str, classes: Sequence[str]) -> Listing:
        kit = load_devkit(self.files)
        ignored: Counter[str] = Counter()
        where = f"{self.files}/{VAL}"
        with open_file(self.files, VAL, most_of_it=True) as file:
            found = keep_last(members(file, where=where, size_bytes=size_of(self.files, VAL), ignored=ignored), ignored)
        images = sorted(found, key=lambda member: member.name)
        if len(images) != len(kit.truth) or not images:
            raise SourceError(
                f"{where} holds {counted(len(images), 'image')}, the ground truth of {kit.where} has "
                f"{counted(len(kit.truth), 'line')}. They are matched by order, so the counts must agree: "
                "use the tar and the development kit as image-net.org gives them out."
            )
        wnids = [kit.wnid_of[number] for number in kit.truth]
        index_of = indexes_of(classes, set(wnids), where=where)
        samples = [_sample(split, wnid, index_of, VAL, member) for wnid, member in zip(wnids, images, strict=True)]
        return in_order(split, samples, ignored)


def _images_alone(found: Iterator[Member], where: str) -> Iterator[Member]:
    """Pass the members of a class tar on. Raises SourceError where labels lie beside the images."""
    for member in found:
        if member.name.endswith(_LABEL_ENDINGS):
            raise SourceError(
                f"{where} holds {printable(member.name)} beside the images. A class tar holds images alone, and its "
                "name is their label. In a WebDataset tar each image has its .cls, or a .json with a label, right "
                "beside it: write the tar so, or put the images into <split>/<class>/<file>"
            )
        yield member


def _sample(split: str, wnid: str, index_of: dict[str, int], file: str, member: Member) -> Sample:
    key = f"{split}/{wnid}/{member.name}"
    return Sample(key, index_of[wnid], member.size_bytes, file=file, offset_bytes=member.offset_bytes)


def _walk_outer(files: Place) -> ByClass:
    ignored: Counter[str] = Counter()
    where = f"{files}/{TRAIN}"
    with open_file(files, TRAIN) as file:
        found = keep_last(
            members(file, where=where, size_bytes=size_of(files, TRAIN), ignored=ignored), ignored, by_folder=True
        )
    class_tars: dict[str, ClassTar] = {}
    images: dict[str, list[Member]] = defaultdict(list)
    stray = []
    for member in found:
        stem, _, extension = member.name.rpartition(".")
        if extension == "tar":
            class_tars[stem] = ClassTar(stem, TRAIN, member.offset_bytes, member.size_bytes)
        elif member.folder:
            images[member.folder].append(member)
        else:
            stray.append(member.name)
    if stray:
        raise SourceError(
            f"{where} holds {counted(len(stray), 'file')} that are neither class tars nor in a class folder: "
            f"{first_few(stray)}. Expected is a tar of tars such as n01440764.tar."
        )
    if not found:
        raise SourceError(f"{where} is an empty tar; fetch it again")
    return ByClass(tuple(class_tars[wnid] for wnid in sorted(class_tars)), dict(images), ignored)


def _walk_folder(files: Place, folder: str) -> ByClass:
    names = files.names(folder)
    tars = [name for name in names if name.endswith(".tar") and not name.startswith(".")]
    ignored = Counter({"file that is no class tar": len(names) - len(tars)} if len(names) > len(tars) else {})
    return ByClass(tuple(ClassTar(name.removesuffix(".tar"), f"{folder}/{name}") for name in tars), {}, ignored)


def _folder_of_class_tars(files: Place, split: str) -> str | None:
    for folder in (f"ILSVRC2012_img_{split}", *names_of(split)):
        if any(name.endswith(".tar") for name in files.names(folder)):
            return folder
    return None
