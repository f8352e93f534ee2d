"""Where to cut an image and whether to mirror it: pure functions of (seed, epoch, position in the shards).

Nothing here touches pixels or ambient randomness, so a sample looks the same whichever worker, rank or restart
decodes it.
"""

import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from itertools import count
from typing import Literal, NamedTuple, TypeAlias, get_args

ALGORITHM = 2
"""Counts changes of the views that a seed stands for: a run cannot be resumed exactly with another one."""

EVALUATION = 2
"""Counts changes of the pixels that an evaluation sees; a checkpoint notes it."""

MOST_RESIZED_PX = 2**26
"""Of a strip that is resized to more (256 px of its short side, 260,000 of its long one) only the middle is."""

Draw = Callable[[], float]
"""The next number of a stream: uniform in [0, 1)."""

Interpolation: TypeAlias = Literal["bilinear", "bicubic"]

MAX_EDGE_PX = 4096

_EIGHT_WORDS = struct.Struct("<8Q")
_VIEW = struct.Struct("<2q4d2q")


class View(NamedTuple):
    """The part of an image that becomes a model input.

    Attributes:
        box: left, top, right, bottom in source pixels; whole numbers for training crops, fractions for evaluation.
        flip: mirror left to right.
        whole: width and height that the whole image is resized to, and left and top of the part of the result that is
            the view, all in px of the result; only the part is worked out, and the box is about what it shows. None:
            the box is resized by itself.
        cubic: resized bicubically and not bilinearly, both antialiased.
    """

    box: tuple[float, float, float, float]
    flip: bool
    whole: tuple[int, int, int, int] | None = None
    cubic: bool = False


@dataclass(frozen=True)
class RandomResizedCrop:
    """The crop of training: of random area and aspect, resized to a square, and mirrored by chance.

    Args:
        size: the square's edge, px; or a function of the training batch's number, from 0 over the whole run, that
            returns it. It has to depend on that number alone.
        scale: smallest and largest area of the crop, as fractions of the image's.
        ratio: smallest and largest width / height of the crop.
        flip_prob: chance of a mirror, 0 to 1.
        repeats: how often each image comes in its batch, each time cut, mirrored and transformed by draws of its own
            (repeated augmentation, arXiv:1901.09335 and 1902.05509). An epoch keeps its number of batches, and so has
            as many fewer of the images, others each time.
        interpolation: bilinear or bicubic, both antialiased.

    Raises:
        ValueError: one of them is out of range.
    """

    size: int | Callable[[int], int]
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip_prob: float = 0.5
    repeats: int = 1
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        if not callable(self.size):
            _check_edge("size", self.size)
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale: {self.scale} must be (low, high) with 0 < low <= high <= 1")
        if not 0 < self.ratio[0] <= self.ratio[1] < math.inf:
            raise ValueError(f"ratio: {self.ratio} must be (low, high) with 0 < low <= high")
        if not 0 <= self.flip_prob <= 1:
            raise ValueError(f"flip_prob: {self.flip_prob} must be from 0 to 1")
        if not isinstance(self.repeats, int) or self.repeats < 1:
            raise ValueError(f"repeats: {self.repeats!r} must be a whole number from 1")
        _check_interpolation(self.interpolation)

    def size_at(self, step: int) -> int:
        """Return the edge, px, of the images of training batch `step`."""
        if isinstance(self.size, int):
            return self.size
        px = self.size(step)
        _check_edge(f"size({step})", px)
        return px

    def view(self, width: int, height: int, draw: Draw) -> View:
        """Return the part of an image of this size, px, that the draws stand for."""
        view = random_resized_crop(width, height, draw, scale=self.scale, ratio=self.ratio, flip_prob=self.flip_prob)
        return view._replace(cubic=True) if self.interpolation == "bicubic" else view


@dataclass(frozen=True)
class CenterCrop:
    """The crop of evaluation: the short side resized to `resize`, and the middle `size` px kept.

    Args:
        size: the square's edge, px.
        resize: px, at least `size`; None: 256/224 of it, as is usual for ImageNet.
        interpolation: bilinear or bicubic, both antialiased.

    Raises:
        ValueError: one of them is out of range.
    """

    size: int
    resize: int | None = None
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        _check_edge("size", self.size)
        if self.resize is not None:
            _check_edge("resize", self.resize)
            if self.resize < self.size:
                raise ValueError(f"resize: {self.resize} must be at least size, which is {self.size}")
        _check_interpolation(self.interpolation)

    def view(self, width: int, height: int) -> View:
        """Return the part of an image of this size, px."""
        resize = self.resize if self.resize is not None else round(self.size * 256 / 224)
        view = center_view(width, height, resize_size=resize, crop_size=self.size)
        return view._replace(cubic=True) if self.interpolation == "bicubic" else view


def _check_interpolation(interpolation: str) -> None:
    if interpolation not in get_args(Interpolation):
        raise ValueError(f"interpolation: {interpolation!r} must be bilinear or bicubic")


def _check_edge(name: str, px: int) -> None:
    if not isinstance(px, int) or isinstance(px, bool) or not 1 <= px <= MAX_EDGE_PX:
        raise ValueError(f"{name}: {px!r} must be a whole number from 1 to {MAX_EDGE_PX:,} px")


def sample_draws(seed: int, epoch: int, position: int) -> Draw:
    """Return the stream of numbers that alone decides the augmentation of one sample in one epoch.

    Numbers of 53 bits out of BLAKE2b: the same on every platform and in every version of a library.
    """

    def numbers() -> Iterator[float]:
        for block in count():
            digest = blake2b(f"{seed}/{epoch}/{position}/{block}".encode()).digest()
            for word in _EIGHT_WORDS.unpack(digest):
                yield (word >> 11) * 2.0**-53

    return numbers().__next__


def random_resized_crop(
    width: int,
    height: int,
    draw: Draw,
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    flip_prob: float,
) -> View:
    """Draw a crop of random area and aspect, and a mirror.

    The distribution is torchvision's `RandomResizedCrop` (Szegedy et al., "Going deeper with convolutions", 2014):
    up to ten tries, then the largest centred crop of an allowed aspect.

    Args:
        width: of the source image, px.
        height: of the source image, px.
        draw: called in a fixed order; two draws a try for the shape, two for the place, one for the mirror.
        scale: smallest and largest area of the crop as fractions of the image's.
        ratio: smallest and largest width / height of the crop.
        flip_prob: chance of a mirror, 0-1.
    """
    box = _crop_box(width, height, draw, scale, ratio)
    return View(box, draw() < flip_prob)


def _crop_box(
    width: int, height: int, draw: Draw, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int]:
    log_lo, log_hi = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        area = width * height * (scale[0] + (scale[1] - scale[0]) * draw())
        aspect = math.exp(log_lo + (log_hi - log_lo) * draw())
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left = int(draw() * (width - w + 1))
            top = int(draw() * (height - h + 1))
            return left, top, left + w, top + h
    w, h = width, height
    if width < height * ratio[0]:
        h = max(1, min(height, round(width / ratio[0])))
    elif width > height * ratio[1]:
        w = max(1, min(width, round(height * ratio[1])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def center_view(width: int, height: int, *, resize_size: int, crop_size: int) -> View:
    """Return the view that torchvision's `Resize(resize_size)` and `CenterCrop(crop_size)` together make.

    The short side is scaled to `resize_size` px and the middle `crop_size` px are kept; decoders give the same pixels,
    bit for bit, without resizing more than is kept.
    """
    if width <= height:
        scaled_w, scaled_h = resize_size, int(resize_size * height / width)
    else:
        scaled_w, scaled_h = int(resize_size * width / height), resize_size
    left, top = round((scaled_w - crop_size) / 2), round((scaled_h - crop_size) / 2)
    x_scale, y_scale = width / scaled_w, height / scaled_h
    box = (left * x_scale, top * y_scale, (left + crop_size) * x_scale, (top + crop_size) * y_scale)
    fits = left >= 0 and top >= 0 and scaled_w * scaled_h <= MOST_RESIZED_PX
    return View(box, flip=False, whole=(scaled_w, scaled_h, left, top) if fits else None)


def view_hash(epoch: int, position: int, view: View, size_px: int) -> int:
    """Return 64 bits (a signed integer) that identify one sample's augmentation, for the ledger."""
    packed = _VIEW.pack(epoch, position, *view.box, view.flip + 2 * view.cubic, size_px)
    return int.from_bytes(blake2b(packed, digest_size=8).digest(), "little", signed=True)
