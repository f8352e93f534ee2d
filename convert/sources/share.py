"""Which images of a source without splits are for validation."""

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from convert.sources.base import counted, first_few, logger

SHOWN_CLASSES = 20


@dataclass(frozen=True, slots=True)
class Share:
    """A part of the images, drawn by a hash of each: more images move none of those that were there.

    Of SHA-256 over `split`, the seed, the class and the file's path below it, in UTF-8 with a zero byte between, the
    first 8 bytes are taken as a number, the first byte counting most. The image is for validation where that is below
    `fraction` * 2**64.

    Attributes:
        fraction: of the images that are for validation, above 0 and below 1.
        seed: draws others.
    """

    fraction: float
    seed: int

    def split_of(self, class_name: str, name: str) -> str:
        """`val` or `train`, for an image of a class."""
        text = "\0".join(("split", str(self.seed), class_name, name))
        digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
        return "val" if int.from_bytes(digest[:8], "big") < self.fraction * 2**64 else "train"


def warn_of_lonely(images: Iterable[tuple[str, str]]) -> None:
    """Name the classes with a single image, which is in one split alone; given (class, split) of each image."""
    found = list(images)
    counts = Counter(name for name, _ in found)
    lonely = [f"{name} ({split})" for name, split in sorted(found) if counts[name] == 1]
    if lonely:
        logger.warning(
            "warning: %s, and the other split has none: %s",
            counted(len(lonely), "class has one image", "classes have one image"),
            first_few(lonely, SHOWN_CLASSES),
        )
