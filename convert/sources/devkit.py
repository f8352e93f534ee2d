"""ILSVRC 2012's development kit: which class each synset number is, and the labels of the validation images."""

import io
import tarfile
from dataclasses import dataclass
from typing import Any

from convert.sources.base import SourceError
from imagestream.storage.protocol import Place

FOLDER = "ILSVRC2012_devkit_t12"
ARCHIVE = f"{FOLDER}.tar.gz"
META = "data/meta.mat"
GROUND_TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"


@dataclass(frozen=True, slots=True)
class Devkit:
    """What the development kit says.

    Attributes:
        wnid_of: ILSVRC2012_ID -> wnid of the classes, which are the synsets without children.
        names: wnid -> readable name.
        truth: the ILSVRC2012_ID of each validation image, in the order of their file names.
        where: the file it was read from, for messages.
    """

    wnid_of: dict[int, str]
    names: dict[str, str]
    truth: tuple[int, ...]
    where: str


def has_devkit(files: Place) -> bool:
    """Whether the development kit lies in this folder, as its archive or unpacked."""
    return files.stat(ARCHIVE) is not None or files.stat(f"{FOLDER}/{META}") is not None


def load_devkit(files: Place) -> Devkit:
    """Read the development kit.

    Raises:
        SourceError: it is missing or damaged; the message says where to get it.
    """
    if files.stat(ARCHIVE) is not None:
        where = f"{files}/{ARCHIVE}"
        meta, truth = _from_archive(files.read(ARCHIVE), where)
    elif files.stat(f"{FOLDER}/{META}") is not None:
        where = f"{files}/{FOLDER}"
        meta, truth = files.read(f"{FOLDER}/{META}"), files.read(f"{FOLDER}/{GROUND_TRUTH}")
    else:
        raise SourceError(
            f"the labels of ILSVRC2012_img_val.tar are in {ARCHIVE}, which is not in {files}. Download it too (2.5 MB, "
            "'Development kit (Task 1 & 2)' on image-net.org), put it beside the tar, or convert --splits train"
        )
    wnid_of, names = _synsets(meta, where)
    return Devkit(wnid_of, names, _truth(truth, wnid_of, where), where)


def _from_archive(archive: bytes, where: str) -> tuple[bytes, bytes]:
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:*") as tar:
            for member in tar:
                for wanted in (META, GROUND_TRUTH):
                    if member.isreg() and member.name.endswith(f"/{wanted}"):
                        content = tar.extractfile(member)
                        assert content is not None
                        found[wanted] = content.read()
    except Exception as error:  # gzip and zlib add OSError, EOFError and zlib.error to tarfile's own
        raise SourceError(f"{where} is damaged ({error}); download it again") from error
    for wanted in (META, GROUND_TRUTH):
        if wanted not in found:
            raise SourceError(f"{where} holds no {wanted}; is it the kit of another year or task?")
    return found[META], found[GROUND_TRUTH]


def _synsets(meta: bytes, where: str) -> tuple[dict[int, str], dict[str, str]]:
    import numpy as np
    from scipy.io import loadmat

    wnid_of: dict[int, str] = {}
    names: dict[str, str] = {}
    try:
        synsets: Any = np.atleast_1d(loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"])
        for synset in synsets:
            if int(synset["num_children"]) == 0:
                wnid_of[int(synset["ILSVRC2012_ID"])] = str(synset["WNID"])
                names[str(synset["WNID"])] = str(synset["words"])
    except Exception as error:  # loadmat raises whatever the damaged bytes lead it to
        raise SourceError(f"{where}: {META} cannot be read: {error!r}. Download it again.") from error
    if not wnid_of or len(set(wnid_of.values())) != len(wnid_of):
        raise SourceError(f"{where}: {META} lists {len(wnid_of):,} classes, some of them twice; download it again")
    return wnid_of, names


def _truth(text: bytes, wnid_of: dict[int, str], where: str) -> tuple[int, ...]:
    numbers = []
    for number, line in enumerate(text.decode("ascii", "replace").split(), start=1):
        if not line.isdecimal() or int(line) not in wnid_of:
            raise SourceError(
                f"{where}: {GROUND_TRUTH}:{number}: {line!r} is not the number of one of the {len(wnid_of):,} classes"
            )
        numbers.append(int(line))
    return tuple(numbers)
