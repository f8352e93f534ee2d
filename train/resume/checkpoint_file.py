"""One checkpoint file: written with a hash over its bytes, and read only after the hash has been checked.

torch.save writes a zip archive. The CRC-32s in it cover what is stored and not the archive's own structure: with one
flipped bit in its directory torch 2.7 returns memory that it never filled, without an error. So a checkpoint ends in
the SHA-256 of every byte before it. It is the archive's comment, a field that zip files have at their very end, so that
torch.load, zipfile and unzip read the file as before, and that the file and its hash are always replaced together.
"""

import datetime
import hashlib
import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from imagestream.storage.errors import cannot_be_written

MAGIC = b"resnet-streaming checkpoint, sha256 of all bytes before the hash: "
HASH_BYTES = 64  # hexadecimal
END_RECORD = b"PK\x05\x06"  # APPNOTE.TXT 4.3.16, end of central directory record: 22 bytes and the comment
END_RECORD_BYTES = 22
CHUNK_BYTES = 1 << 20

SAFE_GLOBALS: list[Any] = [
    torch.torch_version.TorchVersion,  # the version that wrote it; a str
    datetime.timedelta,  # wall-clock times in Composer's timestamps
    np.ndarray,  # numpy's generator state
    np.dtype,
    np.dtypes.UInt32DType,
    np._core.multiarray._reconstruct,  # type: ignore[attr-defined]  # how numpy pickles an array
]


class CheckpointError(ValueError):
    """A checkpoint is damaged, unsafe or not one of ours; the message names it."""


def write(content: dict[str, Any], path: Path, *, final: str | None = None) -> None:
    """Write a checkpoint that carries its hash; nothing is left of it when that fails.

    Args:
        final: what it will be called, for the error; by default `path`.

    Raises:
        PlaceError: it cannot be written; where the disk is full, the bytes that it needs are said.
    """
    try:
        with open(path, "wb", buffering=0) as file:
            sealing = _SealingFile(file)
            torch.save(content, sealing)  # type: ignore[arg-type]  # it calls `write` and `flush` alone
            sealing.seal()
        if sealing.error is not None:
            raise sealing.error
    except OSError as error:
        path.unlink(missing_ok=True)
        raise cannot_be_written(path, error, needed_bytes=sealing.size_bytes, final=final) from error
    except BaseException:
        path.unlink(missing_ok=True)
        raise


class _SealingFile:
    """What torch.save writes to: it passes the bytes on, hashes them, and ends with the hash.

    An error is noted rather than raised, and what follows is only counted. torch's writer in C++ (caffe2's
    `PyTorchStreamWriter`) answers an exception out of `write` with one of its own, "unexpected pos 64 vs 0", and the
    cause is lost.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.error: OSError | None = None
        self.size_bytes = 0
        self._file, self._digest = file, hashlib.sha256()
        self._held = b""  # the last bytes so far: the end record says how long the comment after it is

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        if len(view) < END_RECORD_BYTES:
            view = memoryview(self._held + bytes(view))
        else:
            self._put(self._held)
        self._put(view[:-END_RECORD_BYTES])
        self._held = bytes(view[-END_RECORD_BYTES:])
        return len(data)

    def flush(self) -> None:
        """Nothing is buffered; torch.save asks for it."""

    def seal(self) -> None:
        """Write what is still held, and the hash."""
        assert self._held.startswith(END_RECORD) and self._held.endswith(b"\0\0"), "torch.save wrote no zip archive"
        self._put(self._held[:-2] + (len(MAGIC) + HASH_BYTES).to_bytes(2, "little") + MAGIC)
        self._put(self._digest.hexdigest().encode())

    def _put(self, data: bytes | memoryview) -> None:
        self._digest.update(data)
        self.size_bytes += len(data)
        left = memoryview(data)
        while left and self.error is None:
            try:
                left = left[self._file.write(left) :]
            except OSError as error:
                self.error = error


def load(path: Path) -> dict[str, Any]:
    """Return a checkpoint's content after checking that it is whole and holds plain data only.

    Raises:
        CheckpointError: naming the damage, or the type that a checkpoint has no business to hold.
    """
    return load_with_hash(path)[0]


def load_with_hash(path: Path) -> tuple[dict[str, Any], str]:
    """Return what `load` does, and the SHA-256 of the file that it was read from.

    Raises:
        CheckpointError: as `load` does.
    """
    with _opened(path) as file:
        sha256 = check_hash(file, path)
        _check_types(file, path)
        try:
            with torch.serialization.safe_globals(SAFE_GLOBALS):
                content: dict[str, Any] = torch.load(_rewound(file), map_location="cpu", weights_only=True)
        except MemoryError:  # this machine's fault
            raise
        except Exception as error:
            raise CheckpointError(f"{path} cannot be loaded: {one_line(error)}") from error
    if not isinstance(content, dict) or "state" not in content:
        raise CheckpointError(f"{path} is not a Composer checkpoint: it has no 'state'")
    return content, sha256


def hash_of(path: Path) -> str:
    """Return the SHA-256 that a checkpoint carries, after checking that it is that of its bytes.

    Raises:
        CheckpointError: it is not, or there is none.
    """
    with _opened(path) as file:
        return check_hash(file, path)


def check_hash(file: BinaryIO, path: Path) -> str:
    """Return the hash that an open checkpoint ends in, the same that its bytes have. The first thing done with it.

    Raises:
        CheckpointError: see `hash_of`.
    """
    try:
        size = os.fstat(file.fileno()).st_size
        hashed = max(0, size - HASH_BYTES)
        file.seek(max(0, hashed - len(MAGIC)))
        if file.read(len(MAGIC)) != MAGIC:
            raise CheckpointError(
                f"{path} does not end in its hash: it is damaged, cut short, or was written before checkpoints "
                f"carried one ({size:,} bytes)"
            )
        carried = file.read(HASH_BYTES)
        digest, left = hashlib.sha256(), hashed
        file.seek(0)
        while left and (chunk := file.read(min(CHUNK_BYTES, left))):
            digest.update(chunk)
            left -= len(chunk)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    if carried != digest.hexdigest().encode():
        raise CheckpointError(
            f"{path} is damaged: its SHA-256 is {digest.hexdigest()}, and {carried.decode('ascii', 'replace')} was "
            "written into it"
        )
    return digest.hexdigest()


def _check_types(file: BinaryIO, path: Path) -> None:
    try:
        with torch.serialization.safe_globals(SAFE_GLOBALS):
            foreign = torch.serialization.get_unsafe_globals_in_checkpoint(_rewound(file))
    except Exception as error:
        raise CheckpointError(f"{path} cannot be loaded: {one_line(error)}") from error
    if foreign:
        raise CheckpointError(f"{path} holds {', '.join(sorted(foreign))}; loading it could run code, so it is refused")


def is_valid(path: str | Path, _specs: Any = None) -> bool:
    """Composer calls this before it loads a checkpoint; see `only_load_safely`.

    Raises:
        CheckpointError: it is damaged, or loading it could run code.
    """
    with _opened(Path(path)) as file:
        check_hash(file, Path(path))
        _check_types(file, Path(path))
    return True


def only_load_safely() -> None:
    """Have Composer check each checkpoint by `is_valid`, through its own hook, before unpickling it."""
    os.environ["CHECKPOINT_VALIDATION_FUNCTION"] = f"{__name__}.is_valid"


def _opened(path: Path) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


def _rewound(file: BinaryIO) -> BinaryIO:
    file.seek(0)
    return file


def one_line(error: Exception) -> str:
    """Return an error as a part of a message."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
