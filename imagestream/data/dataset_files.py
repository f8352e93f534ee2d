"""What a dataset says of itself: each split's index.json and the manifest, read once and checked."""

import functools
import json
import os
from typing import Any

from imagestream.mds.index import DataError, fault_of_index
from imagestream.mds.manifest import MANIFEST_NAME, Manifest, ManifestError, index_fingerprint, parse_manifest
from imagestream.mds.records import IMAGE_AND_LABEL, fault_of_columns
from imagestream.storage.errors import PlaceError
from imagestream.storage.places import open_place
from imagestream.storage.protocol import read_if_there


class DatasetFiles:
    """A dataset of MDS shards: where it is, and what its small files say.

    Args:
        remote: s3://bucket/path or a folder from which shards are fetched; None: `local` holds them.
        local: the folder that shards are read from, the dataset itself or a cache.
        columns: the names of the shards' columns of images and of labels.
    """

    def __init__(self, remote: str | None, local: str, *, columns: tuple[str, str] = IMAGE_AND_LABEL) -> None:
        self.remote, self.local, self.columns = remote, local, columns
        self.index = functools.cache(self._index)
        self.manifest = functools.cache(self._manifest)

    def where(self, name: str) -> str:
        """Return where a split or file of the dataset is, for messages."""
        return os.path.join(self.remote or self.local, name)

    def _index(self, split: str) -> dict[str, Any]:
        """Return a split's index.json.

        Raises:
            DataError: there is none, it is not an MDS index, its shards hold no images with labels, or it is not the
                index of which the manifest says the fingerprint.
        """
        name = os.path.join(split, "index.json")
        text, where = self._read_text(name), self.where(name)
        if text is None:
            raise DataError(f"{where} does not exist; convert the images first, or correct data=", about=("data",))
        try:
            index: dict[str, Any] = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where} is not an MDS index: {error}; copy or convert the dataset again") from error
        if fault := fault_of_index(index):
            raise DataError(f"{where} is not an MDS index: {fault}; copy or convert the dataset again")
        for number, shard in enumerate(index["shards"]):
            encodings = dict(zip(shard["column_names"], shard["column_encodings"], strict=True))
            if fault := fault_of_columns(encodings, *self.columns):
                raise DataError(f"{where}: shard {number} cannot be trained on: {fault}")
        return index

    def check_against_manifest(self, split: str) -> None:
        """Compare a split's index, which has no hash of its own, with the manifest, where there is one.

        Raises:
            DataError: it is another index.
        """
        manifest = self.manifest()
        if manifest is None or split not in manifest.splits:
            return
        if manifest.splits[split].fingerprint != index_fingerprint(self.index(split)):
            raise DataError(
                f"{self.where(os.path.join(split, 'index.json'))} is not the index that {MANIFEST_NAME} describes; "
                f"copy or convert the dataset again, or remove {MANIFEST_NAME} if the shards were changed on purpose"
            )

    def _manifest(self) -> Manifest | None:
        """Return the dataset's manifest, or None for one that this project did not convert."""
        text = self._read_text(MANIFEST_NAME)
        try:
            return None if text is None else parse_manifest(text.encode(), where=self.where(MANIFEST_NAME))
        except ManifestError as error:
            raise DataError(str(error)) from error

    def class_names(self) -> tuple[str, ...] | None:
        """Return the names of the classes (ImageNet's: wnids) by label, or None where there is no manifest."""
        manifest = self.manifest()
        return None if manifest is None else tuple(info.wnid for info in manifest.classes)

    def count(self, split: str) -> int:
        """Return how many samples a split's shards hold."""
        return sum(int(shard["samples"]) for shard in self.index(split)["shards"])

    def fingerprint(self, split: str) -> str:
        """Return the SHA-256 (hex) over what a split's index says of its shards."""
        return index_fingerprint(self.index(split))

    def _read_text(self, name: str) -> str | None:
        """Return a small file of the dataset, or None when it is not there.

        Raises:
            DataError: it cannot be read, or is no text.
        """
        where = self.where(name)
        if "://" not in where and os.path.isdir(where):
            raise DataError(f"{where} is a folder; a file is expected, so copy or convert the dataset again")
        try:
            data = read_if_there(open_place(self.remote or self.local), name)
            return None if data is None else data.decode()
        except PlaceError as error:
            raise DataError(f"{error}; correct its permissions or copy it again") from error
        except UnicodeDecodeError as error:
            raise DataError(f"{where} is damaged: {error}; copy or convert the dataset again") from error
