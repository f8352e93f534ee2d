"""ReaL's labels of ImageNet's validation images: all that fit an image, not the one it was given.

By Beyer et al. 2020 (arXiv:2006.07159). Their file, real.json, has a list of classes for each image, in the order of
the files' names; for some it is empty, and those do not count. Shards hold no names of files, so an image is told by
its sample id, its place in the list that was converted. In shards of `convert/imagenet_to_mds.py` that list is sorted
by class and then by name, whatever the layout; then a list of the files' classes is needed as well.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from imagestream.mds.index import DataError
from imagestream.storage.places import folder_and_name, open_place

Ints = npt.NDArray[np.int64]
LEAST_AGREEMENT = 0.5
"""Of ImageNet's own labels some 90 % are among ReaL's (arXiv:2006.07159, figure 4); in another order hardly any."""


def read_real(location: str) -> list[list[int]]:
    """Read real.json, local or in S3.

    Raises:
        DataError: it is not there, or no list of lists of class numbers.
    """
    try:
        content = json.loads(_text(location, "--real"))
    except ValueError as error:
        raise DataError(f"--real: {location} is not JSON: {error}") from error
    is_list = isinstance(content, list) and all(
        isinstance(row, list) and all(type(number) is int and number >= 0 for number in row) for row in content
    )
    if not is_list:
        raise DataError(
            f"--real: {location} must be a list with a list of class numbers for each image; give real.json"
        )
    return content


def read_classes_of_files(location: str) -> list[tuple[int, str]]:
    """Read each validation image's number and class out of a list such as Kaggle's LOC_val_solution.csv.

    Raises:
        DataError: it is not there, or has no such lines.
    """
    found = re.findall(r"ILSVRC2012_val_(\d{8})[^\s,]*[,\s]+(n\d{8})\b", _text(location, "--val-classes"))
    if not found:
        raise DataError(
            f"--val-classes: {location} has no line such as ILSVRC2012_val_00000001,n01751748; give "
            "LOC_val_solution.csv, or a list like it"
        )
    return [(int(number), wnid) for number, wnid in found]


def image_numbers(
    sample_ids: Ints, labels: Ints, classes_of_files: Sequence[tuple[int, str]], names: Sequence[str]
) -> Ints:
    """Return each sample's image number, from 0, by the order of the source in which every sample has its class.

    Args:
        names: of the model's classes, which `labels` number.

    Raises:
        DataError: in neither order they have.
    """
    number_of = {name: number for number, name in enumerate(names)}
    orders = (sorted(classes_of_files), sorted(classes_of_files, key=lambda entry: (entry[1], entry[0])))
    for order in orders:
        if len(sample_ids) and int(sample_ids.max()) >= len(order):
            continue
        classes = np.array([number_of.get(wnid, -1) for _, wnid in order], np.int64)
        if np.array_equal(classes[sample_ids], labels):
            return np.array([number - 1 for number, _ in order], np.int64)[sample_ids]
    raise DataError(
        "--val-classes: the samples are in the order of the list neither by the files' names nor by class; was the "
        "dataset converted from all of ImageNet's validation images?"
    )


def real_figures(
    real: Sequence[Sequence[int]], numbers: Ints, labels: Ints, predicted: Ints, names: Sequence[str] | None
) -> dict[str, Any]:
    """Return `real_top1`, the share of images whose likeliest class is among ReaL's, and `real_samples`, their number.

    Args:
        numbers: of the samples' images, from 0.
        labels: ImageNet's own, by which it is seen whether the order is right.
        names: of the model's classes, of which ReaL numbers the sorted ones; None: it has them in that order.

    Raises:
        DataError: the samples are not those images, or ReaL's classes are not the model's.
    """
    if len(numbers) and int(numbers.max()) >= len(real):
        raise DataError(f"--real: it has {len(real):,} images, and the dataset one with the id {int(numbers.max()):,}")
    order = None if names is None else sorted(range(len(names)), key=lambda number: names[number])
    highest = max((number for row in real for number in row), default=0)
    if order is not None and highest >= len(order):
        raise DataError(f"--real: it has the class {highest}, and the model {len(order):,} classes")
    right = [{number if order is None else order[number] for number in real[at]} for at in numbers.tolist()]
    counted = [at for at, classes in enumerate(right) if classes]
    agreeing = sum(int(labels[at]) in right[at] for at in counted)
    if agreeing < LEAST_AGREEMENT * len(counted):
        raise DataError(
            f"--real: of {len(counted):,} images it has ImageNet's own class for {agreeing:,} alone, so it is about "
            "others: the samples are not in the order of the files' names. convert/imagenet_to_mds.py sorts them by "
            "class first; give --val-classes LOC_val_solution.csv, which says the class of each file"
        )
    hits = sum(int(predicted[at]) in right[at] for at in counted)
    return {"real_top1": hits / max(1, len(counted)), "real_samples": len(counted)}


def _text(location: str, option: str) -> str:
    folder, name = folder_and_name(location)
    try:
        return open_place(folder).read(name).decode()
    except FileNotFoundError as error:
        raise DataError(f"{option}: {location} is not a file that exists") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{option}: {location} is not text") from error
