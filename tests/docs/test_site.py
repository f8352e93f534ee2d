"""The site's pages: none is left out, the API's are the library's public classes, links lead where they should."""

import re

import pytest
import yaml

import imagestream
from docs.site_hooks import PAGES_AT_THE_ROOT, with_links_of_the_site
from tests.conftest import REPOSITORY


def test_each_page_is_on_the_site_and_in_its_navigation() -> None:
    text = (REPOSITORY / "mkdocs.yml").read_text()
    (navigation,) = re.findall(r"^nav:\n(.*?)^\S", text, re.MULTILINE | re.DOTALL)
    listed = re.findall(r"([\w-]+\.md)$", navigation, re.MULTILINE)
    assert sorted(PAGES_AT_THE_ROOT) == sorted(path.name for path in REPOSITORY.glob("*.md"))
    assert sorted(listed) == sorted(
        [*PAGES_AT_THE_ROOT.values(), *(path.name for path in REPOSITORY.glob("docs/*.md"))]
    )
    assert yaml.safe_load(f"nav:\n{navigation}")["nav"]


def test_the_api_page_has_the_librarys_public_names_and_no_others() -> None:
    documented = re.findall(r"^::: (\S+)$", (REPOSITORY / "docs/api.md").read_text(), re.MULTILINE)
    assert sorted(documented) == sorted(f"{imagestream._HOMES[name]}.{name}" for name in imagestream.__all__)


@pytest.mark.parametrize(
    ("source", "markdown", "expected"),
    [
        ("README.md", "[data](docs/data.md#s3)", "[data](data.md#s3)"),
        ("README.md", "![a curve](docs/two-runs.png)", "![a curve](two-runs.png)"),
        ("docs/data.md", "[start](../README.md#use)", "[start](index.md#use)"),
        ("docs/data.md", "[shards](overview.md)", "[shards](overview.md)"),
        ("docs/data.md", "[Streaming](https://example.com/a#b)", "[Streaming](https://example.com/a#b)"),
        ("docs/data.md", "[below](#s3)", "[below](#s3)"),
        ("docs/data.md", "[gone](../gone.py)", "[gone](../gone.py)"),
        ("docs/data.md", "```\n[x](../setup.py)\n```", "```\n[x](../setup.py)\n```"),
    ],
)
@pytest.mark.parametrize("repo_url", ["", "https://example.com/me/it"])
def test_a_link_between_pages_leads_to_the_page(source: str, markdown: str, expected: str, repo_url: str) -> None:
    assert with_links_of_the_site(markdown, source, repo_url) == expected


def test_a_link_to_another_file_leads_to_the_repository_or_names_the_file() -> None:
    named, said = "[examples/ddp.py](../examples/ddp.py)", "[the loop](../examples/ddp.py#L3)"
    page, there = "docs/library.md", "https://example.com/me/it/blob/main/examples/ddp.py"
    assert with_links_of_the_site(named, page, "https://example.com/me/it/") == f"[examples/ddp.py]({there})"
    assert with_links_of_the_site(said, page, "https://example.com/me/it") == f"[the loop]({there}#L3)"
    assert with_links_of_the_site(named, page, "") == "examples/ddp.py"
    assert with_links_of_the_site(said, page, "") == "the loop (`examples/ddp.py`)"
