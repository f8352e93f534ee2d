"""Make the demo's photos: ten classes of drawn shapes and patterns, as JPEGs in an ImageFolder layout.

    python demo/images.py --out demo/data/images

writes <out>/{train,val}/<class>/<file>.jpg, 1,250 to train on and 251 to validate with. Every image has its own
generator, keyed by its name, so each run writes the same bytes (with the same Pillow). The classes look alike in a
mirror and repeat over the image, so that a crop of a quarter of it still shows what it is.
"""

import argparse
import hashlib
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

SAMPLES = {"train": 1_250, "val": 251}  # the odd one out does not divide into whole evaluation batches
EDGE_PX = (70, 400)
MAX_ASPECT = 2.0
GREYSCALE_FRACTION, CMYK_FRACTION = 0.05, 0.01
SUPERSAMPLING = 2  # shapes are drawn this much larger and scaled down, for smooth edges
MARKER = "complete"  # written last; holds the recipe that the images were made by
BEGUN = "begun"  # there while they are drawn: what lies beside it is ours, and may be drawn anew

FloatArray = npt.NDArray[np.float32]
Points = Sequence[tuple[float, float]]
Drawer = Callable[[ImageDraw.ImageDraw, float, float, float, float], None]


class Picture(NamedTuple):
    """Which image it is; its pixels follow from this and the seed.

    Attributes:
        split: "train" or "val".
        number: position in the split, from 0.
        label: name of its class.
    """

    split: str
    number: int
    label: str

    @property
    def path(self) -> str:
        return f"{self.split}/{self.label}/{self.number:05d}.jpg"


def make_images(out: Path, *, seed: int = 0) -> bool:
    """Write all images below `out`; return False when they are there already.

    Raises:
        FileExistsError: `out` has train/ or val/, and not from here.
    """
    marker, begun = out / MARKER, out / BEGUN
    recipe = f"{_recipe_hash()} seed {seed}\n"
    if marker.exists() and marker.read_text() == recipe:
        return False
    if not (marker.exists() or begun.exists()) and (there := [split for split in SAMPLES if (out / split).exists()]):
        raise FileExistsError(
            f"{out / there[0]} is there and was not drawn by demo/images.py: it would be replaced. Choose another "
            "--out, or remove it"
        )
    out.mkdir(parents=True, exist_ok=True)
    begun.touch()
    for split in SAMPLES:
        shutil.rmtree(out / split, ignore_errors=True)
    marker.unlink(missing_ok=True)
    for picture in pictures():
        path = out / picture.path
        path.parent.mkdir(parents=True, exist_ok=True)
        save(draw(picture, seed=seed), path, _rng(seed, picture, "encoding"))
    part = marker.with_suffix(".part")
    part.write_text(recipe)
    os.replace(part, marker)
    begun.unlink()
    return True


def pictures() -> Iterator[Picture]:
    """Yield every image there is, the classes in turn."""
    labels = sorted(CLASSES)
    for split, count in SAMPLES.items():
        for number in range(count):
            yield Picture(split, number, labels[number % len(labels)])


def draw(picture: Picture, *, seed: int) -> Image.Image:
    """Return an image of its class: RGB, or for a few "L" (greyscale) or "CMYK"."""
    rng = _rng(seed, picture, "content")
    width, height = _size(rng)
    mask = CLASSES[picture.label](rng, width, height)[..., None]  # (H, W, 1), 0-1
    dark, light = _colours(rng)
    pixels = _gradient(rng, width, height, dark) * (1 - mask) + _gradient(rng, width, height, light) * mask
    pixels += _noise(rng, width, height)
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    kind = rng.random()
    if kind < CMYK_FRACTION:
        return image.convert("CMYK")
    return image.convert("L") if kind < CMYK_FRACTION + GREYSCALE_FRACTION else image


def _size(rng: np.random.Generator) -> tuple[int, int]:
    """Return width and height in px: as often upright as not, more small ones than large."""
    low, high = (math.log(edge) for edge in EDGE_PX)
    long_px = math.exp(rng.uniform(low, high))
    short_px = max(EDGE_PX[0], long_px / rng.uniform(1, MAX_ASPECT))
    width, height = round(long_px), round(short_px)
    return (width, height) if rng.random() < 0.5 else (height, width)


def save(image: Image.Image, path: Path, rng: np.random.Generator) -> None:
    """Write a JPEG; the quality and chroma subsampling differ from file to file, as in the wild."""
    image.save(path, "JPEG", quality=int(rng.integers(70, 95)), subsampling=int(rng.choice([0, 2])))


def scattered(shape: Drawer) -> Callable[[np.random.Generator, int, int], FloatArray]:
    """Return the class that shows a few copies of `shape`, each turned, sized and placed at random."""

    def mask(rng: np.random.Generator, width: int, height: int) -> FloatArray:
        canvas = Image.new("L", (width * SUPERSAMPLING, height * SUPERSAMPLING))
        pen = ImageDraw.Draw(canvas)
        for left, top, cell in _cells(rng, *canvas.size):
            radius = cell * rng.uniform(0.36, 0.48)
            x, y = left + cell * rng.uniform(0.4, 0.6), top + cell * rng.uniform(0.4, 0.6)
            shape(pen, x, y, radius, rng.uniform(0, 2 * math.pi))
        small = canvas.resize((width, height), Image.Resampling.BOX)
        return (np.asarray(small, dtype=np.float32) / 255).astype(np.float32)

    return mask


def _cells(rng: np.random.Generator, width: int, height: int) -> Iterator[tuple[float, float, float]]:
    """Yield squares (left, top, edge) that tile the image from a random start, so that shapes hardly overlap."""
    edge = min(width, height) / rng.uniform(1.2, 2)
    left, top = -edge * rng.random(), -edge * rng.random()
    for row in range(math.ceil(height / edge) + 1):
        for column in range(math.ceil(width / edge) + 1):
            yield left + column * edge, top + row * edge, edge


def _polygon(points: Points) -> Drawer:
    """Return a drawer of the polygon whose corners are given as (radius 0-1, angle in radians)."""

    def drawer(pen: ImageDraw.ImageDraw, x: float, y: float, radius: float, turn: float) -> None:
        corners = [(x + radius * r * math.cos(a + turn), y + radius * r * math.sin(a + turn)) for r, a in points]
        pen.polygon(corners, fill=255)

    return drawer


def _disc(pen: ImageDraw.ImageDraw, x: float, y: float, radius: float, turn: float) -> None:
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)


def _ring(pen: ImageDraw.ImageDraw, x: float, y: float, radius: float, turn: float) -> None:
    box = (x - radius, y - radius, x + radius, y + radius)
    pen.ellipse(box, outline=255, width=max(2, round(radius * 0.35)))


def _regular(corners: int) -> Points:
    return [(1.0, 2 * math.pi * k / corners) for k in range(corners)]


def _star(tips: int, waist: float) -> Points:
    return [(1.0 if k % 2 == 0 else waist, math.pi * k / tips) for k in range(2 * tips)]


def _cross(arm: float) -> Points:
    """Return a plus sign's twelve corners; `arm` is half an arm's width as a fraction of its length."""
    ends = [(1.0, -arm), (1.0, arm), (arm, arm)]
    corners = [(x * c - y * s, x * s + y * c) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1)) for x, y in ends]
    return [(math.hypot(x, y), math.atan2(y, x)) for x, y in corners]


def stripes(*angles_degrees: float) -> Callable[[np.random.Generator, int, int], FloatArray]:
    """Return the class of stripes that run at one of these angles, give or take a little."""

    def mask(rng: np.random.Generator, width: int, height: int) -> FloatArray:
        angle = math.radians(rng.choice(angles_degrees) + rng.uniform(-10, 10))
        return _wave(rng, width, height, angle, _period(rng, width, height))

    return mask


def checkerboard(rng: np.random.Generator, width: int, height: int) -> FloatArray:
    """Return the class of chequered images: two sets of stripes, one inverting the other."""
    angle, period = rng.uniform(0, math.pi / 2), _period(rng, width, height)
    one, other = (_wave(rng, width, height, angle + turn, period) for turn in (0, math.pi / 2))
    return one + other - 2 * one * other


def _period(rng: np.random.Generator, width: int, height: int) -> float:
    """Return the px from stripe to stripe: 2 to 4.5 of them over the short side."""
    return min(width, height) / float(rng.uniform(2, 4.5))


def _wave(rng: np.random.Generator, width: int, height: int, angle: float, period: float) -> FloatArray:
    """Return stripes (H, W), 0-1, with edges one pixel soft; `angle` is that of the stripes, 0 being horizontal."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    across = (y * math.cos(angle) - x * math.sin(angle)) / period + rng.random()
    distance = (np.abs(across % 1 - 0.5) - 0.25) * period  # px from the nearest edge
    return (distance + 0.5).clip(0, 1).astype(np.float32)


def _colours(rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    """Return a darker and a lighter RGB colour, 0-255: a greyscale image has nothing but lightness to tell them by."""
    contrast = rng.uniform(60, 140)
    lightness = rng.uniform(25, 230 - contrast)
    return _colour(rng, lightness), _colour(rng, lightness + contrast)


def _colour(rng: np.random.Generator, lightness: float) -> FloatArray:
    """Return a random RGB colour whose mean is `lightness`."""
    colour = rng.uniform(-60, 60, size=3)
    return (colour - colour.mean() + lightness).astype(np.float32)


def _gradient(rng: np.random.Generator, width: int, height: int, colour: FloatArray) -> FloatArray:
    """Return float32 (H, W, 3): `colour`, a little lighter towards one side."""
    angle, strength = rng.uniform(0, 2 * math.pi), rng.uniform(0, 25)
    x, y = np.linspace(-1, 1, width, dtype=np.float32), np.linspace(-1, 1, height, dtype=np.float32)
    slope = (strength * (math.cos(angle) * x[None, :] + math.sin(angle) * y[:, None])).astype(np.float32)
    return slope[..., None] + colour


def _noise(rng: np.random.Generator, width: int, height: int) -> FloatArray:
    """Return grain, float32 (H, W, 1), as coarse as the image is large: it is there at any scale."""
    level, grain = rng.uniform(0, 25), max(1, round(min(width, height) / 100))
    rows, columns = math.ceil(height / grain), math.ceil(width / grain)
    coarse = np.float32(level) * rng.standard_normal((rows, columns), dtype=np.float32)
    return coarse.repeat(grain, axis=0).repeat(grain, axis=1)[:height, :width, None]


CLASSES: dict[str, Callable[[np.random.Generator, int, int], FloatArray]] = {
    "checkerboard": checkerboard,
    "cross": scattered(_polygon(_cross(0.3))),
    "diagonal_stripes": stripes(45, 135),
    "disc": scattered(_disc),
    "horizontal_stripes": stripes(0),
    "ring": scattered(_ring),
    "square": scattered(_polygon(_regular(4))),
    "star": scattered(_polygon(_star(5, 0.42))),
    "triangle": scattered(_polygon(_regular(3))),
    "vertical_stripes": stripes(90),
}


def _rng(seed: int, picture: Picture, purpose: str) -> np.random.Generator:
    key = hashlib.blake2b(f"{seed}/{picture.path}/{purpose}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(key, "little")))


def _recipe_hash() -> str:
    return hashlib.blake2b(Path(__file__).read_bytes(), digest_size=8).hexdigest()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(description="Draw the demo's images.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data" / "images", metavar="DIR")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    args = parser.parse_args(argv)
    try:
        made = make_images(args.out, seed=args.seed)
    except FileExistsError as error:
        print(f"demo/images.py: {error}", file=sys.stderr)
        return 1
    print(f"{sum(SAMPLES.values()):,} images of {len(CLASSES)} classes in {args.out}" + ("" if made else ", as before"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
