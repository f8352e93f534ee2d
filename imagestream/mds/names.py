"""Which names an index.json may give its files, and how names that others chose are shown.

An index may come from anybody, and a reader joins its names to a folder, deletes files by them and writes to them. The
converter, the audit and the trainer ask the one function here.
"""

import re

MAX_PART_BYTES = 255  # of a file's or folder's name, on Linux's file systems
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_NOT_SHOWN = re.compile(rf"{_CONTROL.pattern}|{_SURROGATE.pattern}")


def fault_of_name(name: object) -> str:
    """Return what keeps `name` from being that of a shard's file below its split's folder, or ''.

    Folders below the split's, as streaming's `merge_index` lists them, are allowed: `part0/shard.00000.mds`.
    """
    if not isinstance(name, str) or not name:
        return "must be text"
    parts = name.split("/")
    if "\\" in name or "" in parts or ".." in parts:
        return "must be a path below the split's folder"
    if any(part.startswith(".") for part in parts):
        return "must not begin with a dot, nor must a folder in it"
    if _CONTROL.search(name) or not name.isprintable():
        return "must not have control characters"
    if max(len(part.encode()) for part in parts) > MAX_PART_BYTES:
        return f"must not have a part of more than {MAX_PART_BYTES} bytes"
    return ""


def printable(name: str) -> str:
    """Return a name as it may stand in a line of text: control characters as `\\x1b`, bytes that are not UTF-8 too."""
    return _NOT_SHOWN.sub(_escaped, name)


def shown(text: str) -> str:
    """Return a message as it may go to a terminal: as `printable` does, but its newlines and tabs stay."""
    return _NOT_SHOWN.sub(lambda found: found[0] if found[0] in "\n\t" else _escaped(found), text)


def utf8(text: str) -> bytes:
    """Return the content of a text file; bytes of names in it that are not UTF-8 are as `printable` shows them."""
    return _SURROGATE.sub(_escaped, text).encode()


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    is_byte = 0xDC80 <= code <= 0xDCFF  # Python's sign for a byte of a file's name that is not UTF-8 (PEP 383)
    return f"\\x{code - 0xDC00:02x}" if is_byte else ascii(found[0])[1:-1]
