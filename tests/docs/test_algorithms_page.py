"""The page of algorithms has each of them, and says what their sections say."""

import re

from train.config import algorithms_page


def test_the_page_is_as_the_sections_have_it() -> None:
    assert algorithms_page.PAGE.read_text() == algorithms_page.page(), "run python -m train.config.algorithms_page"


def test_each_algorithm_stands_there_once_with_each_argument() -> None:
    text = algorithms_page.page()
    assert sorted(re.findall(r"^### (\w+)$", text, re.MULTILINE)) == sorted(algorithms_page.CLASSES)
    for name, kind in algorithms_page.CLASSES.items():
        entry = text.partition(f"\n### {name}\n")[2].partition("\n#")[0]
        arguments = re.findall(r"^\| `(\w+)` \|", entry, re.MULTILINE)
        assert sorted(["name", *arguments]) == sorted(kind.model_fields), name


def test_what_is_allowed_is_said_in_words() -> None:
    text = algorithms_page.page()
    for row in (
        "| `clipping_type` | must be given | `norm`, `value`, `adaptive` |",
        "| `min_channels` | `16` | from 1, at most 256 |",
        "| `half_life` | `null` | a time |",
        "| `scale` | `[0.02, 0.33]` | two numbers |",
        "| `blur_first` | `true` | `true`, `false` |",
    ):
        assert row in text
