"""How many images a run has, and how large: the dataset's own counts, or ImageNet's."""

from dataclasses import dataclass
from pathlib import Path

from imagestream.mds.index import DataError
from imagestream.mds.manifest import MANIFEST_NAME
from train.config.run_config import Config

# ImageNet-1k (image-net.org); the sizes that docs/data.md has measured for each --resize of the converter.
TRAIN_IMAGES, VAL_IMAGES = 1_281_167, 50_000
KB_PER_IMAGE = {"original": 113.1, "max=400": 40.4, "short=256": 32.5}


@dataclass(frozen=True)
class Dataset:
    """What of a dataset decides a run's speed.

    Attributes:
        shown: where the figures are from.
        stored: how the images were converted, a key of KB_PER_IMAGE.
    """

    shown: str
    train_images: int
    val_images: int
    bytes_per_image: float
    stored: str


def imagenet(stored: str) -> Dataset:
    """Return ImageNet-1k as it is stored so."""
    return Dataset("ImageNet-1k", TRAIN_IMAGES, VAL_IMAGES, KB_PER_IMAGE[stored] * 1e3, stored)


def dataset_of(cfg: Config, data: str | None, stored: str | None) -> Dataset:
    """Return the dataset at `data`, or in the run's own data.local if its manifest is there; else ImageNet-1k.

    Args:
        stored: how the images were converted; None: as the manifest says, or the original bytes.

    Raises:
        DataError: `data` has no manifest, or lacks a split of the run.
    """
    where = data or str(cfg.data.local)
    if data is None and not Path(where, MANIFEST_NAME).is_file():
        return imagenet(stored or "original")
    from imagestream.data.dataset_files import DatasetFiles  # here: it imports torch, which takes seconds

    manifest = DatasetFiles(None, where).manifest()
    if manifest is None:
        raise DataError(f"{where} holds no {MANIFEST_NAME}, which says how many images there are")
    if missing := [name for name in (cfg.data.train_split, cfg.data.val_split) if name not in manifest.splits]:
        raise DataError(f"{where} has no split {missing[0]}, but {', '.join(manifest.splits)}")
    train, val = manifest.splits[cfg.data.train_split], manifest.splits[cfg.data.val_split]
    resize = train.options.resize
    known = stored or (resize if resize in KB_PER_IMAGE else "original")
    return Dataset(where, train.samples, val.samples, train.image_bytes.mean, known)
