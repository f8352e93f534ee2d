"""Where the files of an uncompressed tar lie, so that they can be read in place; a damaged tar is refused."""

import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from convert.sources.base import SourceError, is_hidden

BLOCK_BYTES = 512
COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file in a tar: its path there, and where its bytes are in the file that holds the tar."""

    path: str
    offset_bytes: int
    size_bytes: int

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def folder(self) -> str:
        """The name of the folder it lies in; '' where there is none."""
        folder = self.path.rpartition("/")[0].rpartition("/")[2]
        return "" if folder == "." else folder


def members(
    file: BinaryIO, *, where: str, size_bytes: int, ignored: Counter[str], start_bytes: int = 0
) -> Iterator[Member]:
    """The regular files of the tar that lies in `file` from `start_bytes` on, in order.

    Args:
        where: names the tar in messages.
        size_bytes: of the tar.
        ignored: counts what is left out: hidden files, links and the like. Folders are not counted.

    Raises:
        SourceError: it is compressed or no tar, ends early (most often a download that broke off) or is damaged.
            This may come after members have been yielded: how a tar ends is known at its end.
    """
    if size_bytes < BLOCK_BYTES:
        raise _incomplete(where, size_bytes)
    end = start_bytes + size_bytes
    file.seek(start_bytes)
    _refuse_compressed(file.read(8), where)
    file.seek(start_bytes)
    after_last = start_bytes
    try:
        tar = tarfile.TarFile(fileobj=file, mode="r")
        while (info := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # it would keep every header
            after_last = info.offset_data + _whole_blocks(info.size if info.isreg() else 0)
            if after_last > end:
                raise _incomplete(where, size_bytes)
            if info.isdir():
                continue
            member = Member(info.name, info.offset_data, info.size)
            if not info.isreg() or info.issparse():
                ignored["tar member that is no regular file"] += 1
            elif any(is_hidden(part) for part in member.path.split("/") if part not in (".", "..")):
                ignored["hidden file or folder"] += 1
            else:
                yield member
    except tarfile.TarError as error:
        if "unexpected end of data" not in str(error):
            raise SourceError(f"{where} is not a tar file, or is damaged: {error}") from error
        raise _incomplete(where, size_bytes) from error
    _check_end(file, where=where, at=after_last, start=start_bytes, end=end)


def _check_end(file: BinaryIO, *, where: str, at: int, start: int, end: int) -> None:
    """Refuse a tar without its end mark, a block of zeros: `tarfile` takes any other block for the end as well."""
    if at + BLOCK_BYTES > end:
        raise _incomplete(where, end - start)
    file.seek(at)
    if file.read(BLOCK_BYTES) != bytes(BLOCK_BYTES):
        raise SourceError(f"{where} is damaged: there is no valid header at byte {at - start:,}. Fetch it again.")


def _incomplete(where: str, size_bytes: int) -> SourceError:
    return SourceError(
        f"{where} is incomplete: its {size_bytes:,} bytes end before the tar does. "
        "The download was probably cut off; resume it or fetch the file again."
    )


def _refuse_compressed(head: bytes, where: str) -> None:
    for magic, method in COMPRESSED.items():
        if head.startswith(magic):
            raise SourceError(
                f"{where} is compressed with {method}, so that its images cannot be read in place; decompress it first"
                + (" (gunzip)" if method == "gzip" else "")
            )


def _whole_blocks(size_bytes: int) -> int:
    return -(-size_bytes // BLOCK_BYTES) * BLOCK_BYTES


def keep_last(found: Iterator[Member], ignored: Counter[str], *, by_folder: bool = False) -> list[Member]:
    """Members by file name, or folder and file name. Of two that are the same the later counts, as in unpacking."""
    kept: dict[tuple[str, str], Member] = {}
    for member in found:
        key = (member.folder if by_folder else "", member.name)
        if kept.pop(key, None) is not None:
            ignored["tar member that a later one replaces"] += 1
        kept[key] = member
    return list(kept.values())
