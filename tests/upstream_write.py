"""Write shards as MosaicML's own converter does: by MDSWriter, without hashes and without a manifest."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from streaming import MDSWriter


def main(argv: Sequence[str]) -> int:
    """Arguments: folder of images in <split>/<class>/, folder for the shards."""
    for split in ("train", "val"):
        classes = sorted(path for path in (Path(argv[0]) / split).iterdir())
        with MDSWriter(out=f"{argv[1]}/{split}", columns={"i": "int", "x": "jpeg", "y": "int"}) as writer:
            for label, folder in enumerate(classes):
                for index, path in enumerate(sorted(folder.iterdir())):
                    writer.write({"i": index, "x": Image.open(path), "y": label})
    return 0
