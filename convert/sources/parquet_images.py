"""One parquet file of images: what its schema says, and its images unpacked, once, into a file of the spool."""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from convert.sources.base import SourceError, size_of
from convert.sources.spool import scratch_file, whole_file
from imagestream.mds.names import printable
from imagestream.storage.protocol import Place
from imagestream.storage.reading import open_file

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

ROWS_AT_ONCE = 64  # of up to some MB each
READ_BUFFER_BYTES = 1024 * 1024
COPY_BYTES = 8 * 1024 * 1024
IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "pixel", "pixels", "pixel_values")
LABEL_COLUMNS = ("label", "labels", "fine_label", "cls", "class", "class_label", "target", "y")
"""What the columns may be called; the first that is there and of the right type counts."""
TAIL_BYTES = 64 * 1024  # of a parquet file; its footer, with the place and size of every part, ends there
SIDECAR_VERSION = 1


@dataclass(frozen=True, slots=True)
class Unpacked:
    """The images of a parquet file, one after another in `<spool>/<stem>.images`; the content of its sidecar.

    Attributes:
        name: of the parquet file, below the source.
        size_bytes: of the parquet file.
        tail_sha256: of its last bytes; with the size it tells a changed file.
        class_names: of the labels, as its schema gives them; None: it gives none.
        labels: of each row.
        paths: of each row, as far as given.
        sizes_bytes: of each row's image.
    """

    name: str
    size_bytes: int
    tail_sha256: str
    class_names: list[str] | None
    labels: list[int]
    paths: list[str | None]
    sizes_bytes: list[int]
    version: int = SIDECAR_VERSION


def unpack(files: Place, name: str, spool: Path) -> Unpacked:
    """The images of a parquet file in the spool, where an earlier run's are used if they are whole.

    Raises:
        SourceError: the parquet file is damaged or holds no images, or the spool's disk is full.
    """
    size_bytes = size_of(files, name)
    tail = files.read(name, max(0, size_bytes - TAIL_BYTES), min(size_bytes, TAIL_BYTES))
    tail_sha256 = hashlib.sha256(tail).hexdigest()
    images_file = images_path(spool, files, name)
    there = _load(images_file)
    if there and (there.size_bytes, there.tail_sha256) == (size_bytes, tail_sha256):
        return there
    where = f"{files}/{name}"
    with _local(files, name, spool) as file, whole_file(images_file) as images:
        parquet = open_parquet(file, where)
        labels, paths, sizes_bytes = [], [], []
        for row, (label, path, data) in enumerate(_rows(parquet, where)):
            if not data:
                raise SourceError(
                    f"{where}: row {row} holds no image but {_external(path)}. The images must be stored in the "
                    "parquet file itself: write it anew with the images embedded."
                )
            if label is None:
                raise SourceError(f"{where}: row {row} has no label")
            images.write(data)
            labels.append(label)
            paths.append(path)
            sizes_bytes.append(len(data))
    names = class_names(parquet)
    unpacked = Unpacked(name, size_bytes, tail_sha256, names, labels, paths, sizes_bytes)
    with whole_file(images_file.with_suffix(".json")) as sidecar:
        sidecar.write(json.dumps(asdict(unpacked)).encode())
    return unpacked


def images_path(spool: Path, files: Place, name: str) -> Path:
    """Where the images of a parquet file are; all files of a spool, of any sources, lie side by side."""
    source = hashlib.blake2b(f"{files}/{name}".encode(), digest_size=8).hexdigest()
    return spool / f"{name.removesuffix('.parquet').replace('/', '-')}.{source}.images"


def open_parquet(file: BinaryIO, where: str) -> "ParquetFile":
    """Open a parquet file and look at its columns.

    Raises:
        SourceError: it is damaged, or has no `image` with bytes, or no integer `label`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # By default a whole row group is fetched ahead and what was read is kept: 700 MB for a file of 500 MB.
        parquet = pq.ParquetFile(file, page_checksum_verification=True, pre_buffer=False, buffer_size=READ_BUFFER_BYTES)
        schema = parquet.schema_arrow
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _damaged(where, error) from error
    if None in (image_column(parquet), label_column(parquet)):
        raise SourceError(
            f"{where} has the columns {', '.join(f'{field.name}: {field.type}' for field in schema)}; needed are the "
            f"encoded image, bytes or a struct with bytes, called {', '.join(IMAGE_COLUMNS[:-1])} or "
            f"{IMAGE_COLUMNS[-1]}, and a whole number, called {', '.join(LABEL_COLUMNS[:-1])} or {LABEL_COLUMNS[-1]}"
        )
    return parquet


def image_column(parquet: "ParquetFile") -> str | None:
    """The name of the column of encoded images; None where there is none."""
    import pyarrow as pa

    def holds_images(kind: Any) -> bool:
        if pa.types.is_struct(kind):
            return bool(kind.get_field_index("bytes") >= 0)
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    return _first(parquet, IMAGE_COLUMNS, holds_images)


def label_column(parquet: "ParquetFile") -> str | None:
    """The name of the column of labels; None where there is none."""
    import pyarrow as pa

    return _first(parquet, LABEL_COLUMNS, pa.types.is_integer)


def _first(parquet: "ParquetFile", called: Sequence[str], fits: Callable[[Any], bool]) -> str | None:
    kinds = {field.name: field.type for field in parquet.schema_arrow}
    return next((name for name in called if name in kinds and fits(kinds[name])), None)


def class_names(parquet: "ParquetFile") -> list[str] | None:
    """The names that Hugging Face's `datasets` leaves in the schema for the labels."""
    text = (parquet.schema_arrow.metadata or {}).get(b"huggingface")
    try:
        names = json.loads(text or b"{}")["info"]["features"][label_column(parquet)]["names"]
        return [str(name) for name in names]
    except (ValueError, KeyError, TypeError):
        return None


def labels_and_paths(parquet: "ParquetFile", where: str) -> Iterator[tuple[int | None, str | None]]:
    """(label, path) of each row, without reading the images."""
    import pyarrow as pa

    image, label_name = image_column(parquet), label_column(parquet)
    kind = parquet.schema_arrow.field(image).type
    has_path = pa.types.is_struct(kind) and kind.get_field_index("path") >= 0
    try:
        for batch in parquet.iter_batches(columns=[label_name, *([f"{image}.path"] if has_path else [])]):
            labels = batch.column(label_name).to_pylist()
            images = batch.column(image).to_pylist() if has_path else [None] * len(labels)
            for label, image in zip(labels, images, strict=True):
                yield label, (image or {}).get("path")
    except (pa.ArrowException, OSError) as error:
        raise _damaged(where, error) from error


def _rows(parquet: "ParquetFile", where: str) -> Iterator[tuple[int | None, str | None, bytes | None]]:
    import pyarrow as pa

    image_name, label_name = image_column(parquet), label_column(parquet)
    batches = parquet.iter_batches(ROWS_AT_ONCE, columns=[image_name, label_name])
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except (pa.ArrowException, OSError) as error:
            raise _damaged(where, error) from error
        images, labels = (batch.column(name).to_pylist() for name in (image_name, label_name))
        for image, label in zip(images, labels, strict=True):
            stored: dict[str, Any] = {"bytes": image} if isinstance(image, bytes) else image or {}
            yield label, stored.get("path"), stored.get("bytes")


def _damaged(where: str, error: Exception) -> SourceError:
    return SourceError(f"{where} is damaged or no parquet file ({error}); fetch it again")


def _external(path: str | None) -> str:
    return f"the path {printable(path)}" if path else "nothing"


@contextlib.contextmanager
def _local(files: Place, name: str, spool: Path) -> Iterator[BinaryIO]:
    """The parquet file open on a local disk: fetched first where it is in a bucket, since it is read all over."""
    if files.path is not None:
        with open_file(files, name) as file:
            yield file
    else:
        with scratch_file(spool) as copy, open_file(files, name, most_of_it=True) as file:
            shutil.copyfileobj(file, copy, COPY_BYTES)
            copy.seek(0)
            yield copy


def _load(images_file: Path) -> Unpacked | None:
    """What an earlier run unpacked into this file; None where there is nothing, or it is not whole."""
    try:
        unpacked = Unpacked(**json.loads(images_file.with_suffix(".json").read_bytes()))
        whole = images_file.stat().st_size == sum(unpacked.sizes_bytes)
        counts = {len(unpacked.labels), len(unpacked.paths), len(unpacked.sizes_bytes)}
    except (OSError, ValueError, TypeError):
        return None
    return unpacked if whole and len(counts) == 1 and unpacked.version == SIDECAR_VERSION else None
