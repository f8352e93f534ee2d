"""The same images in the forms that the loaders of benchmarks/loader.py read."""

import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

from convert.images import check_image, parse_resize

ROOT = Path(__file__).resolve().parents[1]
IMAGES_PER_TAR = 500  # or fewer, for WebDataset wants a tar for each worker


class Stores:
    """The same images in the forms that the loaders read, each made once."""

    def __init__(self, images: Path, scratch: Path, copies: int) -> None:
        files = sorted(path for path in (images / "train").rglob("*") if path.is_file())
        if not files:
            raise SystemExit(f"--images: {images}/train holds no files; give an ImageFolder")
        self.scratch, self.copies, self.count = scratch, copies, len(files) * copies
        self.folder = scratch / "folder"
        for number in range(copies):
            for path in files:
                target = self.folder / "train" / path.parent.name / f"{number}_{path.stem}.jpeg"
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
        self.bytes_per_image: dict[str, float] = {}
        self.images_of: dict[str, list[bytes]] = {}
        self._made: dict[str, Path] = {}

    def for_loader(self, loader: str, storage: str, pythons: dict[str, str]) -> Path:
        """Where a loader's data is."""
        if loader in ("imagefolder", "dali"):
            return self.folder
        form = {"webdataset": "tar", "litdata": "litdata"}.get(loader, storage)
        if form not in self._made:
            makers: dict[str, Callable[[Path], None]] = {
                "tar": self._tars,
                "ffcv": lambda out: self._beton(out, pythons["ffcv"]),
                "litdata": lambda out: self._chunks(out, pythons["litdata"]),
            }
            out = self.scratch / form.replace("=", "-")
            out.mkdir()
            make = makers.get(form)
            if make is None:
                self._shards(out, form)
            else:
                make(out)
            self._made[form] = out
        self._weigh(storage)
        return self._made[form]

    def _shards(self, out: Path, storage: str) -> None:
        options = [] if storage == "original" else ["--resize", storage]
        command = [sys.executable, str(ROOT / "convert/imagenet_to_mds.py"), "--source", str(self.folder)]
        command += ["--out", str(out), "--splits", "train", "--overwrite", "--part", "0/1", *options]
        subprocess.run(command, check=True, capture_output=True)

    def _tars(self, out: Path) -> None:
        paths = sorted((self.folder / "train").rglob("*.jpeg"))
        classes = sorted({path.parent.name for path in paths})
        per_tar = min(IMAGES_PER_TAR, max(1, len(paths) // (os.cpu_count() or 1)))
        for start in range(0, len(paths), per_tar):
            with tarfile.open(out / f"{start // per_tar:05}.tar", "w") as tar:
                for number, path in enumerate(paths[start : start + per_tar], start):
                    label = str(classes.index(path.parent.name)).encode()
                    for ending, data in (("jpg", path.read_bytes()), ("cls", label)):
                        member = tarfile.TarInfo(f"{number:08}.{ending}")
                        member.size = len(data)
                        tar.addfile(member, BytesIO(data))

    def _chunks(self, out: Path, python: str) -> None:
        """LitData's format, of the files' own bytes."""
        code = (
            "import sys\nfrom litdata.streaming.writer import BinaryWriter\nfrom PIL import Image\n"
            "from torchvision.datasets import ImageFolder\n"
            "writer = BinaryWriter(sys.argv[2], chunk_bytes='64MB')\n"
            "for number, (path, label) in enumerate(ImageFolder(sys.argv[1]).samples):\n"
            "    writer[number] = (Image.open(path), label)\n"
            "writer.done()\nwriter.merge()"
        )
        subprocess.run([python, "-c", code, str(self.folder / "train"), str(out)], check=True, capture_output=True)

    def _beton(self, out: Path, python: str) -> None:
        """FFCV's format as its ImageNet scripts write it: at most 400 px, half of the images JPEGs of quality 90."""
        code = (
            "import sys\nfrom torchvision.datasets import ImageFolder\n"
            "from ffcv.fields import IntField, RGBImageField\n"
            "from ffcv.writer import DatasetWriter\n"
            "fields = {'image': RGBImageField(write_mode='proportion', max_resolution=400, compress_probability=0.5, "
            "jpeg_quality=90), 'label': IntField()}\n"
            "DatasetWriter(sys.argv[2], fields, num_workers=2).from_indexed_dataset(ImageFolder(sys.argv[1]))"
        )
        subprocess.run([python, "-c", code, str(self.folder / "train"), str(out / "train.beton")], check=True)

    def _weigh(self, storage: str) -> None:
        if storage in self.bytes_per_image:
            return
        if storage == "ffcv":
            self.bytes_per_image[storage] = next(self._made[storage].glob("*.beton")).stat().st_size / self.count
            return
        resize = None if storage == "original" else parse_resize(storage, quality=90, subsampling="4:2:0")
        paths = sorted((self.folder / "train").rglob("0_*.jpeg"))
        self.images_of[storage] = [check_image(path.read_bytes(), resize).data for path in paths]
        self.bytes_per_image[storage] = sum(map(len, self.images_of[storage])) / len(paths)
