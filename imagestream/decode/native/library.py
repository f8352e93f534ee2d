"""The C library: found, loaded and declared; nothing here needs torch."""

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imagestream.decode.build import HOW_TO, library_path


class NotBuiltError(RuntimeError):
    """The library is not there or cannot be loaded."""


def is_built() -> bool:
    """Return whether the library can be used."""
    try:
        open_library()
    except NotBuiltError:
        return False
    return True


def is_sound(data: bytes) -> bool:
    """Return whether an image is a baseline JPEG, RGB or greyscale, whose every code is right up to its end marker.

    Reads the entropy-coded data without decoding a pixel. False says nothing: it may be good, or another kind.

    Raises:
        NotBuiltError: with how to build the library.
    """
    return bool(open_library().is_sound(data, len(data)))


def pointers_to(jpegs: Sequence[bytes]) -> tuple[Any, Any]:
    count = len(jpegs)
    return (ctypes.c_char_p * count)(*jpegs), (ctypes.c_size_t * count)(*map(len, jpegs))


@functools.cache
def open_library() -> Any:
    return load_library(library_path())


def load_library(path: Path) -> Any:
    """Load a build of the sources, with its functions declared.

    Raises:
        NotBuiltError: with how to build it.
    """
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        why = f"cannot be loaded: {error}" if path.exists() else "is not built"
        raise NotBuiltError(f"the native decoder {why}; {HOW_TO}") from error
    pointer, number = ctypes.c_void_p, ctypes.c_int
    library.decode_batch.argtypes = [pointer] * 6 + [number] * 6 + [pointer] * 3
    library.decode_batch.restype = number
    library.image_sizes.argtypes = [pointer, pointer, number, pointer]
    library.image_sizes.restype = None
    library.is_sound.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
    library.is_sound.restype = number
    library.augment_batch.argtypes = [pointer, number, number, number, pointer, pointer, number]
    library.augment_batch.restype = ctypes.c_long
    library.decoder_library.restype = ctypes.c_char_p
    return library
