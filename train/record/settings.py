"""What two configurations differ in, and what a configuration says that base.yaml does not."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from train.config.config_file import read_config_tree

BASE = Path(__file__).resolve().parents[2] / "yamls/base.yaml"

Settings = dict[str, str]
"""Values in words, by dotted key."""


def flat(config: Mapping[str, Any]) -> Settings:
    """Return a configuration's values by dotted key; a list of plain values is one of them."""
    return {".".join(path): _in_words(value) for path, value in _leaves(config, ())}


def _leaves(value: Any, path: tuple[str, ...]) -> list[tuple[tuple[str, ...], Any]]:
    if isinstance(value, Mapping) and value:
        return [leaf for key, part in value.items() for leaf in _leaves(part, (*path, str(key)))]
    if isinstance(value, Sequence) and any(isinstance(part, Mapping) for part in value):
        return [leaf for place, part in enumerate(value) for leaf in _leaves(part, (*path, str(place)))]
    return [(path, value)]


def _in_words(value: Any) -> str:
    """Return a value as YAML has it, 10 and 10.0 alike."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return f"{value:.10g}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_in_words(part) for part in value)}]"
    return str(value)


def base_settings() -> Settings:
    """Return what base.yaml says; nothing where it is not there."""
    tree = read_config_tree(BASE).tree
    return flat(tree.plain()) if tree is not None else {}


def own_and_base(config: Mapping[str, Any]) -> tuple[list[tuple[str, str, str]], list[tuple[str, str]]]:
    """Return the settings that differ from base.yaml's, with both values, and those that do not.

    A setting that base.yaml has not has '' there; one that it alone has is left out.
    """
    base = base_settings()
    mine = flat(config)
    own = [(key, value, base.get(key, "")) for key, value in mine.items() if base.get(key) != value]
    return own, [(key, value) for key, value in mine.items() if base.get(key) == value]


def differing(configs: Sequence[Mapping[str, Any]], *, except_for: Sequence[str] = ()) -> dict[str, list[str]]:
    """Return the keys in which configurations differ, with each one's value; '' where one has no such key."""
    all_settings = [flat(config) for config in configs]
    keys = dict.fromkeys(key for settings in all_settings for key in settings if key not in except_for)
    rows = {key: [settings.get(key, "") for settings in all_settings] for key in keys}
    return {key: values for key, values in rows.items() if len(set(values)) > 1}
