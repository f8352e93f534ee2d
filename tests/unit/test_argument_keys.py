"""The library names its own arguments, never a run's YAML; a run's refusals name the key that it has there."""

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from imagestream import DataError, Loader, StreamOptions
from imagestream.data.labels import Labels
from tests.conftest import REPOSITORY
from train.config.argument_keys import KEYS, in_yaml
from train.config.run_config import Config

LIBRARY = sorted((REPOSITORY / "imagestream").rglob("*.py"))


def sections(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a field may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in sections(part)]


KEYS_OF_YAML = {
    f"{section}.{key}"
    for section, field in Config.model_fields.items()
    for model in sections(field.annotation)
    for key in model.model_fields
}


def strings(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def keys_named(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w.])[a-z_]+\.[a-z_]+", text)) & KEYS_OF_YAML


def test_no_string_of_the_library_names_a_key_of_yaml() -> None:
    assert {"data.local", "data.num_workers", "model.num_classes", "checkpoint.keep"} <= KEYS_OF_YAML
    assert keys_named("correct data.remote / data.local, not imagestream.data.local") == {"data.remote", "data.local"}
    assert [(path.name, keys) for path in LIBRARY for text in strings(path) if (keys := keys_named(text))] == []


def test_what_an_error_is_about_is_an_argument_of_the_library_and_has_a_key_in_yaml() -> None:
    said = [name for path in LIBRARY for names in re.findall(r"about=\((.+?)\)", path.read_text())
            for name in re.findall(r'"(\w+)"', names)]  # fmt: skip
    arguments = {*inspect.signature(Loader).parameters, *inspect.signature(Labels).parameters}
    options = {*inspect.signature(StreamOptions).parameters}
    assert len(said) > 8 and KEYS.keys() == set(said) & arguments
    assert set(said) - KEYS.keys() <= options & {key.removeprefix("data.") for key in KEYS_OF_YAML}
    assert all(key in KEYS_OF_YAML for text in KEYS.values() for key in re.findall(r"(?:data|model)\.\w+", text))


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ((), "it is not there"),
        (("validate_hash",), "it is not there (in YAML: data.validate_hash)"),
        (("data",), "it is not there (in YAML: data= is data.remote or, where that is null, data.local)"),
    ],
)
def test_a_refusal_names_the_key_once(about: tuple[str, ...], words: str) -> None:
    assert in_yaml(DataError("it is not there", about=about)) == words
    assert in_yaml(ValueError("it is not there")) == "it is not there"
