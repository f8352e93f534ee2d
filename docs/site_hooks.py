"""What the site needs beside docs/: the pages at the repository's root, and links to files that are no pages.

MkDocs knows only the folder docs/. README.md becomes the site's first page. A link to a file that is no page leads to
that file in `repo_url` where it is set; elsewhere the file is only named. A link to a file that does not exist stays as
it is, and MkDocs refuses it.
"""

import re
from pathlib import Path, PurePosixPath
from posixpath import normpath
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGES_AT_THE_ROOT = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "UPGRADING.md": "upgrading.md",
}
_FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\[\]]*)\]\((?P<target>[^)\s]+)\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that lie at the repository's root."""
    from mkdocs.structure.files import File

    for source, page in PAGES_AT_THE_ROOT.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Lead each link of a page to where its target is on the site, or in the repository."""
    at_the_root = {name: source for source, name in PAGES_AT_THE_ROOT.items()}
    source = at_the_root.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    return with_links_of_the_site(markdown, source, config["repo_url"])


def with_links_of_the_site(markdown: str, source: str, repo_url: str | None) -> str:
    """The text of a file, given by its path in the repository, with its links changed; fenced blocks are left alone."""
    parts = _FENCE.split(markdown)  # every second one is a fence
    parts[::2] = [_LINK.sub(lambda link: _link_of_the_site(link, source, repo_url), part) for part in parts[::2]]
    return "".join(parts)


def _link_of_the_site(link: re.Match[str], source: str, repo_url: str | None) -> str:
    path, mark, anchor = link["target"].partition("#")
    target = normpath(PurePosixPath(source).parent / path)
    if "://" in path or not path or not (ROOT / target).exists():
        return link[0]
    here = PAGES_AT_THE_ROOT.get(target) or _page_or_picture(target)
    if here:
        return f"{link['image']}[{link['text']}]({here}{mark}{anchor})"
    if repo_url:
        return f"[{link['text']}]({repo_url.rstrip('/')}/blob/main/{target}{mark}{anchor})"
    return link["text"] if target in link["text"] else f"{link['text']} (`{target}`)"


def _page_or_picture(target: str) -> str | None:
    is_there = target.startswith("docs/") and target.endswith((".md", ".png"))
    return target.removeprefix("docs/") if is_there else None
