"""Write the layouts that ImageNet comes in, given the same images as an ImageFolder tree.

Each `write_*` keeps the images' bytes and file names, so all of them must list the same samples.
"""

import io
import json
import random
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from scipy.io import savemat

WNIDS = ("n01440764", "n01443537", "n02105855", "n07831146")


def write_folder(out: Path, *, train: int = 3, val: int = 2, wnids: Sequence[str] = WNIDS) -> Path:
    """A small ImageFolder tree with file names such as ImageNet's; classes differ in their counts."""
    rng = np.random.default_rng(0)
    number = 0
    for place, wnid in enumerate(wnids):
        for split, count in (("train", train + place % 2), ("val", val)):
            for _ in range(count):
                number += 1
                # val is numbered across the classes, in an order that is not theirs
                name = f"{wnid}_{number}" if split == "train" else f"ILSVRC2012_val_{number * 37 % 1009:08}"
                path = out / split / wnid / f"{name}.JPEG"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = rng.integers(0, 255, size=(20 + number, 30, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(path, quality=80)
    return out


def images(folder: Path, split: str) -> Iterator[tuple[str, Path]]:
    """(wnid, path) of each image, sorted."""
    for path in sorted((folder / split).glob("*/*")):
        yield path.parent.name, path


def classes(folder: Path) -> list[str]:
    return sorted({wnid for split in ("train", "val") for wnid, _ in images(folder, split)})


def write_tars(folder: Path, out: Path, *, devkit: bool = True) -> Path:
    """ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz."""
    out.mkdir(parents=True, exist_ok=True)
    with tarfile.open(out / "ILSVRC2012_img_train.tar", "w") as outer:
        for wnid in sorted({wnid for wnid, _ in images(folder, "train")}, reverse=True):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as tar:
                for _, path in images(folder, "train"):
                    if path.parent.name == wnid:
                        add(tar, path.name, path.read_bytes())
            add(outer, f"{wnid}.tar", inner.getvalue())
    flat = sorted((path.name, wnid, path) for wnid, path in images(folder, "val"))
    with tarfile.open(out / "ILSVRC2012_img_val.tar", "w") as tar:
        for name, _, path in flat:
            add(tar, name, path.read_bytes())
    if devkit:
        write_devkit(out, classes(folder), [wnid for _, wnid, _ in flat])
    return out


def write_devkit(out: Path, wnids: Sequence[str], truth: Sequence[str]) -> None:
    """The development kit: its numbers are, as in the real one, not in the order of the wnids."""
    shuffled = random.Random(0).sample(wnids, len(wnids))
    id_of = {wnid: number for number, wnid in enumerate(shuffled, start=1)}
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O")]
    rows = [(id_of[wnid], wnid, f"name of {wnid}", "", 0) for wnid in shuffled]
    rows.append((len(wnids) + 1, "n00001740", "entity", "", len(wnids)))  # an inner node of the tree
    meta = io.BytesIO()
    savemat(meta, {"synsets": np.array(rows, dtype=kinds).reshape(-1, 1)})
    with tarfile.open(out / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as tar:
        add(tar, "ILSVRC2012_devkit_t12/data/meta.mat", meta.getvalue())
        lines = "".join(f"{id_of[wnid]}\n" for wnid in truth)
        add(tar, "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", lines.encode())


def write_kaggle(folder: Path, out: Path) -> Path:
    """ILSVRC/Data/CLS-LOC, LOC_synset_mapping.txt and LOC_val_solution.csv."""
    root = out / "ILSVRC/Data/CLS-LOC"
    copy_classes(folder, root)
    put(root / "test/ILSVRC2012_test_00000001.JPEG", b"no label")
    rows = []
    for wnid, path in images(folder, "val"):
        put(root / "val" / path.name, path.read_bytes())
        rows.append(f"{path.stem},{wnid} 85 1 499 272 {wnid} 1 2 3 4 ")
    random.Random(0).shuffle(rows)
    put(out / "LOC_val_solution.csv", "\n".join(["ImageId,PredictionString", *rows, ""]).encode())
    mapping = "".join(f"{wnid} name of {wnid}, another\n" for wnid in classes(folder))
    put(out / "LOC_synset_mapping.txt", mapping.encode())
    return out


def write_annotated(folder: Path, out: Path) -> Path:
    """Tiny-ImageNet's: images/ folders, boxes beside, val flat with val_annotations.txt."""
    lines = []
    for wnid, path in images(folder, "train"):
        put(out / "train" / wnid / "images" / path.name, path.read_bytes())
        put(out / "train" / wnid / f"{wnid}_boxes.txt", b"x.JPEG\t0\t0\t62\t62\n")
    for wnid, path in images(folder, "val"):
        put(out / "val/images" / path.name, path.read_bytes())
        lines.append(f"{path.name}\t{wnid}\t0\t32\t44\t62\n")
    put(out / "val/val_annotations.txt", "".join(lines).encode())
    put(out / "words.txt", "".join(f"{wnid}\tname of {wnid}\n" for wnid in classes(folder)).encode())
    put(out / "wnids.txt", "\n".join(reversed(classes(folder))).encode())
    return out


def write_parquet(
    folder: Path, out: Path, *, files: int = 2, names: Sequence[str] | None = None, wnid_in_path: bool = True
) -> Path:
    """Hugging Face's shards, their rows in random order.

    Args:
        names: what the schema calls the labels, in the order of the sorted wnids; by default `name of <wnid>`.
        wnid_in_path: whether paths end in the wnid, as imagenet-1k's do.
    """
    wnids = classes(folder)
    names = names or [f"name of {wnid}" for wnid in wnids]
    for split, theirs in (("train", "train"), ("val", "validation")):
        rows = []
        for wnid, path in images(folder, split):
            name = f"{path.stem}_{wnid}.JPEG" if wnid_in_path else path.name
            rows.append(({"bytes": path.read_bytes(), "path": name}, wnids.index(wnid)))
        random.Random(0).shuffle(rows)
        for index in range(files):
            target = out / f"data/{theirs}-{index:05}-of-{files:05}.parquet"
            write_parquet_file(target, rows[index::files], names=names)
    return out


def write_parquet_file(path: Path, rows: Sequence[tuple[Any, Any]], *, names: Sequence[str] | None) -> None:
    """One parquet file of (image, label) rows, in row groups of 5."""
    label = {"names": list(names), "_type": "ClassLabel"} if names is not None else {"dtype": "int64"}
    info = {"info": {"features": {"image": {"_type": "Image"}, "label": label}}}
    schema = pa.schema(
        [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())],
        metadata={"huggingface": json.dumps(info)},
    )
    table = pa.table({"image": [row[0] for row in rows], "label": [row[1] for row in rows]}, schema=schema)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=5, write_page_checksum=True)


def write_webdataset(
    folder: Path,
    out: Path,
    *,
    tars: int = 2,
    name: str = "imagenet-{split}-{index:06}.tar",
    label: str = "cls",
    wnid_in_key: bool = True,
) -> Path:
    """WebDataset tars, their samples in random order, and classnames.txt.

    Args:
        name: of a tar, below `out`.
        label: where labels are: `cls` or `json`, or `both`.
        wnid_in_key: whether keys end in the wnid; without, none has it.
    """
    wnids = classes(folder)
    for split in ("train", "val"):
        samples: list[dict[str, bytes]] = []
        for wnid, path in images(folder, split):
            key = f"{path.stem}_{wnid}" if wnid_in_key else path.stem.removeprefix(f"{wnid}_")
            sample = {f"{key}{path.suffix}": path.read_bytes()}
            if label in ("cls", "both"):
                sample[f"{key}.cls"] = f"{wnids.index(wnid)}\n".encode()
            if label in ("json", "both"):
                sample[f"{key}.json"] = json.dumps({"label": wnids.index(wnid), "filename": path.name}).encode()
            samples.append(sample)
        random.Random(0).shuffle(samples)
        for index in range(tars):
            write_tar(out / name.format(split=split, index=index), samples[index::tars])
    put(out / "classnames.txt", "".join(f"name of {wnid}\n" for wnid in wnids).encode())
    return out


def write_tar(path: Path, samples: Sequence[dict[str, bytes]]) -> None:
    """A tar of the files of these samples, one sample after another."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for sample in samples:
            for name, data in sample.items():
                add(tar, name, data)


def copy_classes(folder: Path, root: Path, split: str = "train") -> None:
    for wnid, path in images(folder, split):
        put(root / split / wnid / path.name, path.read_bytes())


def put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add a regular file to a tar."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
