"""What the pages say of the project is so: links, configuration keys, messages, verbs."""

import re
import subprocess
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from tests.conftest import REPOSITORY
from tests.docs.pages import PAGES, anchors, code_words, links, prose
from train.config.run_config import Config

FILE_ENDINGS = {"json", "png", "py", "yaml", "txt", "in", "md", "mds", "pt", "sh"} | {
    *("parquet", "safetensors", "onnx", "html", "csv")
}
MODULES = {"imagestream", "loader", "train", "convert", "tests", "streaming", "composer", "torch"}
SECTIONS = {"data", "model", "optimizer", "scheduler", "checkpoint", "loggers"}


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a field may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in models_in(part)]


def is_key(dotted: str) -> bool:
    """Whether there is such a key in the configuration."""
    candidates: list[type[BaseModel]] = [Config]
    for name in dotted.split("."):
        fields = [model.model_fields[name] for model in candidates if name in model.model_fields]
        if not fields:
            return False
        candidates = [model for field in fields for model in models_in(field.annotation)]
    return True


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_relative_link_leads_somewhere(page: Path) -> None:
    relative = [link for link in links(page) if "://" not in link]
    broken = [link for link in relative if not (page.parent / link.partition("#")[0]).exists()]
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_link_to_a_heading_leads_to_one(page: Path) -> None:
    relative = [link.partition("#") for link in links(page) if "://" not in link and "#" in link]
    to_pages = [((page.parent / name).resolve() if name else page, anchor) for name, _, anchor in relative]
    assert [(other.name, anchor) for other, anchor in to_pages if anchor not in anchors(prose(other))] == []


def test_anchors_are_githubs() -> None:
    headings = (
        "# A `code` word: twice\n\n## 2. It's [a link](page.md), S3\n### again-and_again\n## Again\n## Again\n# no"
    )
    expected = {"a-code-word-twice", "2-its-a-link-s3", "again-and_again", "again", "again-1", "no"}
    assert anchors(headings) == expected


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_file_named_in_backticks_exists(page: Path) -> None:
    named = [
        word
        for word in code_words(page)
        if re.fullmatch(r"(imagestream|train|convert|yamls|infra|benchmarks|tests|docs|docker)/[\w./]*", word)
    ]
    own = {"yamls/cats.yaml", "train/", "val/", "train/loss"}  # the reader's, and a figure
    assert [word for word in named if word not in own and not (REPOSITORY / word).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_configuration_key_in_backticks_is_in_the_schema(page: Path) -> None:
    words = [word.removeprefix("--allow-changed ").partition("=")[0].rstrip(":") for word in code_words(page)]
    dotted = [word for word in words if re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", word)]
    keys = [w for w in dotted if w.rpartition(".")[2] not in FILE_ENDINGS and w.partition(".")[0] not in MODULES]
    assert [key for key in keys if key != "key.path" and not is_key(key)] == []


def test_a_key_that_does_not_exist_would_be_found() -> None:
    assert is_key("data.num_workers") and is_key("optimizer.lr") and is_key("loggers.wandb.project")
    assert not is_key("data.workers") and not is_key("optimiser.lr") and not is_key("data.num_workers.x")
    assert {name for name, field in Config.model_fields.items() if models_in(field.annotation)} >= SECTIONS


def test_each_message_in_troubleshooting_is_one_of_the_codes() -> None:
    """A heading's code words are messages; `…` stands for what a message fills in."""
    foreign = {"Reused local directory", "/dev/shm", "Bus error", "No space left on device"}
    sources = [
        path.read_text()
        for name in ("imagestream", "train", "convert")
        for path in sorted((REPOSITORY / name).rglob("*.py"))
    ]
    joined = re.sub(r'"\s*\n\s*(\+ )?f?"', "", "\n".join(sources))  # adjacent literals are one text
    joined = re.sub(r"\{[^{}\"]*(\"[^\"]*\"[^{}\"]*)*\}", "…", joined)
    page = (REPOSITORY / "docs/troubleshooting.md").read_text()
    messages = [word for line in page.splitlines() if line.startswith("### ") for word in re.findall("`([^`]+)`", line)]
    assert len(messages) > 15
    unknown = [
        part
        for message in messages
        for part in re.split(r"[\s;]*…[\s;]*", message)
        if len(part) > 3 and part not in foreign and part not in joined
    ]
    assert unknown == []


def test_make_help_lists_every_verb() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    phony = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    command = ["make", "--no-print-directory", "help"]  # under `make test` it would print where it is
    printed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    listed = [line.split()[0] for line in printed.splitlines()]
    assert listed == [verb for line in phony for verb in line.split()]
    assert all(len(line.split()) > 2 for line in printed.splitlines())
