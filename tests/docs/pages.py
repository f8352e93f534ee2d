"""What the tests need of the project's Markdown: its commands, code blocks, links and code words."""

import re
from pathlib import Path
from typing import NamedTuple

from tests.conftest import REPOSITORY

PAGES = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md")])

_BLOCK = re.compile(
    r"(?P<reason><!-- not run: [^>]+ -->\n)?^```(?P<language>\w*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL
)


class Block(NamedTuple):
    """A fenced block. `exempt`: a comment right above it says why it is not run."""

    page: Path
    language: str
    body: str
    exempt: bool


def blocks(page: Path) -> list[Block]:
    return [
        Block(page, match["language"], match["body"], match["reason"] is not None)
        for match in _BLOCK.finditer(page.read_text())
    ]


def commands(block: Block) -> list[str]:
    """The commands of a bash block, or of a console block's lines that begin with `$`, each on one line."""
    lines = block.body.replace("\\\n", " ").splitlines()
    if block.language == "console":
        lines = [line[2:] for line in lines if line.startswith("$ ")]
    return [" ".join(line.split()) for line in lines if line.strip() and not line.startswith("#")]


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return _BLOCK.sub("", page.read_text())


def links(page: Path) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", prose(page))


def anchors(text: str) -> set[str]:
    """What a link may name behind `#`, by GitHub's rule: a heading's words in small letters, joined by hyphens."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading.strip())  # of a link, what is shown
        anchor = again = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
        count = 0
        while again in found:  # a second heading of the same words
            count += 1
            again = f"{anchor}-{count}"
        found.add(again)
    return found


def code_words(page: Path) -> list[str]:
    """What stands in backticks."""
    return [" ".join(word.split()) for word in re.findall(r"`([^`]+)`", prose(page))]
