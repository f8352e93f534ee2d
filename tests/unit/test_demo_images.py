"""The demo's images: always the same, of many kinds, each class in each split."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from demo import images

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("images")
    assert images.make_images(out)
    return out


def test_every_class_is_in_both_splits_and_the_counts_are_as_promised(folder: Path) -> None:
    for split, count in images.SAMPLES.items():
        per_class = Counter(path.parent.name for path in (folder / split).rglob("*.jpg"))
        assert per_class.keys() == images.CLASSES.keys()
        assert sum(per_class.values()) == count
        assert max(per_class.values()) - min(per_class.values()) <= 1


def test_some_images_are_greyscale_some_cmyk_and_sizes_and_shapes_are_mixed(folder: Path) -> None:
    modes: Counter[str] = Counter()
    sizes = []
    for path in folder.rglob("*.jpg"):
        with Image.open(path) as image:
            assert image.format == "JPEG"
            modes[image.mode] += 1
            sizes.append(image.size)
    total = sum(modes.values())
    assert modes.keys() == {"RGB", "L", "CMYK"}
    assert 0.03 < modes["L"] / total < 0.07
    assert 0.004 < modes["CMYK"] / total < 0.02
    assert min(map(min, sizes)) >= images.EDGE_PX[0]
    assert max(map(max, sizes)) <= images.EDGE_PX[1]
    assert max(map(max, sizes)) > 350
    wide = sum(width > height for width, height in sizes)
    assert 0.3 < wide / total < 0.7


def test_drawn_again_an_image_has_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    for number, picture in enumerate(images.pictures()):
        if number % 25 == 0:
            again = tmp_path / "again.jpg"
            images.save(images.draw(picture, seed=0), again, images._rng(0, picture, "encoding"))
            assert again.read_bytes() == (folder / picture.path).read_bytes(), picture.path


def test_another_seed_draws_other_images() -> None:
    picture = next(iter(images.pictures()))
    assert images.draw(picture, seed=0).tobytes() != images.draw(picture, seed=1).tobytes()


def test_a_complete_set_is_left_alone_and_an_incomplete_one_is_drawn_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "SAMPLES", {"train": 20, "val": 11})
    assert images.make_images(tmp_path)
    first = {path: path.read_bytes() for path in tmp_path.rglob("*.jpg")}
    assert not images.make_images(tmp_path)
    (tmp_path / images.MARKER).rename(tmp_path / images.BEGUN)  # as if it had been killed before the end
    next(iter(first)).write_bytes(b"half an im")
    (tmp_path / "train" / "disc" / "stray.jpg").write_bytes(b"")
    assert images.make_images(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.jpg")} == first


def test_a_drawing_that_is_killed_may_be_drawn_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "SAMPLES", {"train": 4, "val": 2})
    with monkeypatch.context() as killed:
        killed.setattr(images, "save", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            images.make_images(tmp_path)
    assert images.make_images(tmp_path)
    assert not images.make_images(tmp_path)


@pytest.mark.parametrize("split", ["train", "val"])
def test_photos_of_somebody_else_are_refused_in_one_line_and_stay(
    split: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = tmp_path / split / "cat/cat.jpg"
    photo.parent.mkdir(parents=True)
    photo.write_bytes(b"a photo")
    assert images.main(["--out", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"demo/images.py: {tmp_path / split} is there and was not drawn") and said.count("\n") == 1
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [photo]


@pytest.mark.parametrize(
    ("label", "low", "high"),
    [("horizontal_stripes", 0.6, 1.0), ("vertical_stripes", 0.0, 0.4), ("diagonal_stripes", 0.4, 0.6)],
)
def test_stripes_keep_their_class_in_a_mirror(label: str, low: float, high: float) -> None:
    drawn = [images.draw(images.Picture("train", number, label), seed=0).convert("L") for number in range(12)]
    mirrored = [ImageOps.mirror(image) for image in drawn]
    for some in (drawn, mirrored):
        assert low < np.mean([steepness(image) for image in some]) < high


def steepness(image: Image.Image) -> float:
    """Return the share of brightness change that runs down the image: towards 1 for horizontal stripes."""
    pixels = np.asarray(image.reduce(max(1, min(image.size) // 32)), dtype=np.float64)
    down, across = np.abs(np.diff(pixels, axis=0)).mean(), np.abs(np.diff(pixels, axis=1)).mean()
    return float(down / (down + across))
