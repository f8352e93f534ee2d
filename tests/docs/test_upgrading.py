"""UPGRADING.md has every number that stored data carries, with the value and the file of the code."""

import ast
import re
from collections.abc import Iterator

from tests.conftest import REPOSITORY

ROW = re.compile(r"^\| `([\w.]+)` \| (\d+) \|.*\[([\w/.]+)\]\(\3\) \|$", re.MULTILINE)
NUMBER = re.compile(r"(\w+_)?(FORMAT|ALGORITHM|EVALUATION|VERSION)|STEP|version")
OLDEST = "FIRST_FORMAT"  # what a manifest without the number has; it never changes


def numbers_of(path: str) -> Iterator[tuple[str, str, str]]:
    """(name, value, file) of each constant and field of a module that counts a format."""
    tree = ast.parse((REPOSITORY / path).read_text())
    scopes = [("", tree.body), *((f"{n.name}.", n.body) for n in tree.body if isinstance(n, ast.ClassDef))]
    for scope, body in scopes:
        for statement in body:
            match statement:
                case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=value)):
                    pass
                case ast.AnnAssign(target=ast.Name(id=name), value=ast.Constant(value=value)):
                    pass
                case _:
                    continue
            if NUMBER.fullmatch(name) and str(value).isdecimal() and name != OLDEST:
                yield scope + name, str(value), path


def test_the_table_has_the_codes_numbers_and_all_of_them() -> None:
    modules = sorted(path for top in ("imagestream", "convert", "train") for path in (REPOSITORY / top).rglob("*.py"))
    in_code = {number for path in modules for number in numbers_of(str(path.relative_to(REPOSITORY)))}
    on_page = set(ROW.findall((REPOSITORY / "UPGRADING.md").read_text()))
    assert on_page == in_code


def test_each_number_has_a_section_on_what_happens_at_another() -> None:
    page = (REPOSITORY / "UPGRADING.md").read_text()
    headings = " ".join(re.findall(r"^### (.*)$", page, re.MULTILINE))
    assert [name for name, *_ in ROW.findall(page) if f"`{name}`" not in headings] == []


def test_the_shards_version_is_that_of_the_index() -> None:
    (version,) = re.findall(r"MDS, version (\d+)", (REPOSITORY / "UPGRADING.md").read_text())
    assert f'shard.get("version") != {version} ' in (REPOSITORY / "imagestream/mds/index.py").read_text()
