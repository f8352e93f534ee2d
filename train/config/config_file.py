"""Reading a configuration's YAML files and overrides into one tree that knows where each value stands.

`base: other.yaml` in a file names the file it builds on, relative to itself: maps merge, everything else
replaces. An override is `key.path=value`, its value in YAML; of two for one key the later one counts.

The YAML is that of version 1.2: `5e-4` is a float, `on` and `yes` are text, numbers are decimal; and a key
given twice is a fault. Faults are collected, not raised, so that all of them can be reported at once.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

_NULL = re.compile(r"^(?:~|null|Null|NULL|)$")
_BOOL = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")
_INT = re.compile(r"^[-+]?[0-9]+$")
_FLOAT = re.compile(
    r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
_TAG = "tag:yaml.org,2002:"
MAX_VALUES = 10_000  # in a file, each alias counted as what it stands for; full.yaml has some 90


class _Loader(yaml.SafeLoader):
    """Resolves plain scalars by YAML 1.2's core schema (yaml.org/spec/1.2.2, section 10.3.2)."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012  (PyYAML's own class attribute, emptied)


for _name, _pattern in (("null", _NULL), ("bool", _BOOL), ("int", _INT), ("float", _FLOAT)):  # int before float
    _Loader.add_implicit_resolver(_TAG + _name, _pattern, None)


class Dumper(yaml.SafeDumper):
    """Writes YAML that reads the same by version 1.1 and 1.2: the text 5e-4 is put in quotes, and so is on."""


Dumper.add_implicit_resolver(_TAG + "float", _FLOAT, None)


@dataclass(frozen=True, order=True)
class Mark:
    """Where something stands: `source` is a file, or an override as it was given. Sorts files before overrides."""

    is_override: bool
    source: str
    line: int  # from 1; 0: the file as a whole; for an override its position

    def __str__(self) -> str:
        if self.is_override:
            return f"override '{without_passwords(self.source)}'"
        return f"{self.source}:{self.line}" if self.line else self.source


@dataclass(frozen=True, order=True)
class Fault:
    """One thing that is wrong, `key` the dotted path or empty."""

    mark: Mark
    key: str
    words: str

    def __str__(self) -> str:
        return f"{self.mark}: {self.key}: {self.words}" if self.key else f"{self.mark}: {self.words}"


@dataclass(frozen=True)
class Node:
    """A value and where it stands; the values inside a map or a list are nodes too."""

    content: Any
    mark: Mark
    is_of_other_kind: bool = False  # inherited by a map that has another `name` than the one that it was written for

    def plain(self) -> Any:
        """Return the value without marks."""
        if isinstance(self.content, dict):
            return {key: child.plain() for key, child in self.content.items()}
        if isinstance(self.content, list):
            return [child.plain() for child in self.content]
        return self.content

    def find(self, path: Sequence[str | int]) -> tuple[Mark, bool]:
        """Return where the value at `path` stands and True; or its nearest enclosing one, and False."""
        node = self
        for key in path:
            try:
                node = node.content[key]
            except (KeyError, IndexError, TypeError):
                return node.mark, False
        return node.mark, True


@dataclass
class Reading:
    """What was read: the merged tree, the faults met on the way, and whether every base could be read."""

    tree: Node | None = None
    faults: list[Fault] = field(default_factory=list)
    complete: bool = True


def read_config_tree(path: str | Path, overrides: Sequence[str] = ()) -> Reading:
    """Read `path`, the files it builds on and `overrides`. `tree` is None if `path` itself cannot be read."""
    reading = Reading()
    reading.tree = _read_file(Path(path), reading)
    for position, text in enumerate(overrides):
        node = _read_override(text, Mark(True, text, position), reading.faults)
        if node is not None and reading.tree is not None:
            reading.tree = _merge(reading.tree, node, reading.faults)
    return reading


def _read_file(path: Path, reading: Reading, chain: tuple[Path, ...] = ()) -> Node | None:
    faults = reading.faults
    source = os.path.normpath(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        faults.append(Fault(Mark(False, source, 0), "", f"cannot be read: {reason}; give a YAML file that exists"))
        return None
    root = _parse(text, Mark(False, source, 1), faults)
    if root is None:
        return None
    if not isinstance(root.content, dict):
        found = "is empty" if root.content is None else f"holds {describe(root.plain())}"
        faults.append(Fault(root.mark, "", f"the file {found}; a configuration is a map, one `key: value` per line"))
        return None
    base = root.content.pop("base", None)
    return root if base is None else _add_base(root, base, path, reading, (*chain, path.resolve()))


def _add_base(root: Node, base: Node, path: Path, reading: Reading, chain: tuple[Path, ...]) -> Node:
    """Return `root` merged over the file that its `base:` names, or alone if there is no reading that one."""
    problem = ""
    base_path = path.parent / base.content if isinstance(base.content, str) else path
    if not isinstance(base.content, str):
        problem = f"{describe(base.plain())} must be the path of a YAML file"
    elif not base_path.is_file():
        problem = f"'{base.content}' is not a file; the path is relative to {os.path.normpath(path.parent)}/"
    elif base_path.resolve() in chain:
        names = [file.name for file in (*chain, base_path.resolve())]
        problem = f"{' -> '.join(names)} is a circle; remove one of these base keys"
    if problem:
        reading.faults.append(Fault(base.mark, "base", problem))
    below = None if problem else _read_file(base_path, reading, chain)
    if below is None:
        reading.complete = False
        return root
    return _merge(below, root, reading.faults)


def _read_override(text: str, mark: Mark, faults: list[Fault]) -> Node | None:
    path, equals, value = text.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        faults.append(Fault(mark, "", "must be key.path=value, e.g. optimizer.lr=0.1"))
        return None
    node = _literal(value, mark) or _parse(value, mark, faults)
    for key in reversed(keys):
        node = node and Node({key: node}, mark)
    return node


def _literal(value: str, mark: Mark) -> Node | None:
    """Return an override's plain text as it stands, if it has a `#`: it has no comments, but a folder's name may."""
    if "#" not in value:
        return None
    try:
        root = yaml.compose(value, Loader=_Loader)
    except (yaml.YAMLError, RecursionError):
        return None
    is_plain = root is None or (isinstance(root, yaml.ScalarNode) and root.style is None)
    return Node(value.strip(), mark) if is_plain else None


def _merge(below: Node, above: Node, faults: list[Fault]) -> Node:
    if isinstance(below.content, list) and _names_places(above):
        return _merge_into_list(below, above, faults)
    if not (isinstance(below.content, dict) and isinstance(above.content, dict)):
        return above
    merged = dict(below.content)
    if _kind(above) not in (None, _kind(below)):
        merged = {key: replace(value, is_of_other_kind=True) for key, value in merged.items()}
    for key, value in above.content.items():
        merged[key] = _merge(merged[key], value, faults) if key in merged else value
    # A section an override only adds to still stands in its file: a key missing there is not the override's fault.
    return Node(merged, below.mark if above.mark.is_override else above.mark)


def _names_places(override: Node) -> bool:
    """Whether it is a value of a list by its place, as in algorithms.3.start_epoch=17."""
    keys = override.content if isinstance(override.content, dict) else {}
    return override.mark.is_override and bool(keys) and all(key.isdecimal() for key in keys)


def _merge_into_list(below: Node, above: Node, faults: list[Fault]) -> Node:
    merged = list(below.content)
    for key, value in above.content.items():
        if int(key) < len(merged):
            merged[int(key)] = _merge(merged[int(key)], value, faults)
        else:
            last = f"the last one is {len(merged) - 1}" if merged else "it is empty"
            faults.append(Fault(above.mark, "", f"the list has no place {key}; places count from 0, and {last}"))
    return Node(merged, below.mark)


def _kind(section: Node) -> Any:
    name = section.content.get("name")
    return name and name.content


# ---------------------------------------------------------------------------------------------------------
# YAML text to nodes
# ---------------------------------------------------------------------------------------------------------


def _parse(text: str, mark: Mark, faults: list[Fault]) -> Node | None:
    """Parse one YAML document. `mark` is its first line, or the override all of it belongs to."""
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        at = error.problem_mark or error.context_mark
        where = mark if at is None else _mark_of(at, mark)
        faults.append(Fault(where, "", f"not YAML: {', '.join(filter(None, (error.context, error.problem)))}"))
        return None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        where = mark if mark.is_override else Mark(False, mark.source, line)
        faults.append(Fault(where, "", f"not YAML: the character #x{ord(text[error.position]):04x} is not allowed"))
        return None
    except RecursionError:
        faults.append(Fault(mark, "", "not YAML: lists or maps are nested too deeply"))
        return None
    if root is None:
        return Node(None, mark)
    if _count_values(root, {}) > MAX_VALUES:
        faults.append(Fault(mark, "", f"it has more than {MAX_VALUES:,} values, aliases written out"))
        return None
    return Node(_convert(root, mark, faults, ()).content, mark)


def _count_values(node: yaml.Node, known: dict[yaml.Node, int]) -> int:
    """Return how many values a node stands for once each alias in it is written out; in time of its own length."""
    if node not in known:
        known[node] = 1  # while it is counted: an alias inside its own anchor is refused elsewhere
        children = node.value if isinstance(node, yaml.SequenceNode) else []
        if isinstance(node, yaml.MappingNode):
            children = [part for pair in node.value for part in pair]
        known[node] = 1 + sum(_count_values(child, known) for child in children)
    return known[node]


def _convert(node: yaml.Node, within: Mark, faults: list[Fault], parents: tuple[yaml.Node, ...]) -> Node:
    mark = _mark_of(node.start_mark, within)
    if node in parents:
        faults.append(Fault(mark, "", "an alias inside its own anchor; write the value out"))
    elif isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
        return Node(_convert_map(node, within, faults, (*parents, node)), mark)
    elif isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
        return Node([_convert(child, within, faults, (*parents, node)) for child in node.value], mark)
    elif isinstance(node, yaml.ScalarNode):
        try:
            return Node(_scalar(node.tag, node.value), mark)
        except ValueError:
            faults.append(Fault(mark, "", f"the tag in front of '{node.value}' does not fit; remove it"))
    else:
        faults.append(Fault(mark, "", f"the tag {node.tag} is not supported; remove it"))
    return Node(None, mark)


def _convert_map(
    node: yaml.MappingNode, within: Mark, faults: list[Fault], parents: tuple[yaml.Node, ...]
) -> dict[str, Node]:
    content: dict[str, Node] = {}
    for key_node, value_node in node.value:
        key_mark = _mark_of(key_node.start_mark, within)
        if not isinstance(key_node, yaml.ScalarNode):
            faults.append(Fault(key_mark, "", "a key must be plain text"))
            continue
        key = key_node.value
        if key in content:
            first = "" if within.is_override else f", first in line {content[key].mark.line}"
            faults.append(Fault(key_mark, key, f"given twice{first}; remove one of the two"))
            continue
        value = _convert(value_node, within, faults, parents)
        # A map or list begins a line below its key; the key's line is the one to show.
        content[key] = Node(value.content, value.mark if isinstance(value_node, yaml.ScalarNode) else key_mark)
    return content


def _scalar(tag: str, text: str) -> Any:
    """Return the value of a scalar; raises ValueError for a tag that is not YAML's own or does not fit."""
    if tag == _TAG + "str":
        return text
    if tag == _TAG + "null" and _NULL.match(text):
        return None
    if tag == _TAG + "bool" and _BOOL.match(text):
        return text.lower() == "true"
    if tag == _TAG + "int" and _INT.match(text):
        return int(text)
    if tag == _TAG + "float" and _FLOAT.match(text):
        return float(re.sub(r"\.(?=inf|nan)", "", text.lower()))
    raise ValueError(tag)


def _mark_of(at: yaml.Mark, within: Mark) -> Mark:
    return within if within.is_override else Mark(False, within.source, at.line + 1)


def is_number(text: str) -> bool:
    """Say whether YAML reads `text`, written without quotes, as a number."""
    return bool(_INT.match(text) or _FLOAT.match(text))


_PASSWORD = re.compile(r"(://[^/\s:@]*):[^/\s]*@")  # in an address: user:password@host


def without_passwords(text: str) -> str:
    """Return `text` with *** for the password in each of its addresses."""
    return _PASSWORD.sub(r"\1:***@", text)


def describe(value: Any) -> str:
    """Return `value` as a message shows it: as in YAML, text in quotes, long things by their kind, no password."""
    if isinstance(value, dict):
        return "a map"
    if isinstance(value, list):
        items = ", ".join(describe(item) for item in value)
        return f"[{items}]" if len(items) <= 80 else "a list"
    if isinstance(value, str):
        value = without_passwords(value)
        return f"'{value}'" if len(value) <= 80 else f"'{value[:77]}...'"
    if isinstance(value, bool) or value is None:
        return "null" if value is None else str(value).lower()
    return str(value)
