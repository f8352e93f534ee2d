"""What goes wrong at a place of files."""

import errno


class OutputError(RuntimeError):
    """The output could not be read or written; the message says what and why."""


def all_of(data: bytes, size_bytes: int) -> bytes:
    """`data`, which must be `size_bytes` long; else an OSError."""
    if len(data) != size_bytes:
        raise OSError(errno.EIO, f"it ends after {len(data):,} of {size_bytes:,} bytes; has it changed meanwhile?")
    return data
