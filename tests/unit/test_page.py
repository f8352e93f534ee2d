"""The page shows what is known, in one file, whatever classes and runs are called."""

import hashlib
import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from tests.records import HOSTILE, a_record, the_pictures
from train.record.page import TEMPLATES, run_page
from train.record.summary import duration, headline

LINKS = {"src", "href", "data", "action", "poster", "srcset"}


class Parsed(HTMLParser):
    """A page's elements and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.handlers: list[str] = []
        self.texts: list[str] = []
        self._inside: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._inside.append(tag)
        self.links += [value or "" for name, value in attrs if name in LINKS]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]

    def handle_endtag(self, tag: str) -> None:
        while self._inside and self._inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self._inside):
            self.texts.append(data)


def chart_data(page: str) -> Any:
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return json.loads(text)


def test_hostile_names_are_text_and_nothing_else() -> None:
    record = a_record(classes=[HOSTILE, "dog", "owl"], run_name=HOSTILE)
    record["starts"][1]["first_host"] = HOSTILE
    record["changes"] = [{"batch": 3, "key": HOSTILE, "before": HOSTILE, "after": 1}]
    harmless, hostile = (Parsed(run_page(one, the_pictures())) for one in (a_record(), record))
    assert hostile.tags.count("script") == 3
    assert hostile.handlers == []
    assert set(hostile.tags) == set(harmless.tags) | {"th"}
    assert sum(HOSTILE in text for text in hostile.texts) >= 6


def test_nothing_on_the_page_is_elsewhere() -> None:
    page = run_page(a_record(), the_pictures())
    assert all(link.startswith("data:") for link in Parsed(page).links)
    assert "Content-Security-Policy\" content=\"default-src 'none';" in page
    assert not re.search(r"@import|url\((?!['\"]?data:)", page)


def test_no_inlined_script_can_end_its_own_element() -> None:
    assert not any("</script" in (TEMPLATES / name).read_text() for name in ("page.js", "uplot.js"))
    assert not any("</style" in (TEMPLATES / name).read_text() for name in ("page.css", "uplot.css"))


def test_the_charts_library_is_as_published_and_its_notice_is_on_the_page() -> None:
    """uPlot 1.6.32 from npm: dist/uPlot.iife.min.js and dist/uPlot.min.css."""
    hashes = [hashlib.sha256((TEMPLATES / name).read_bytes()).hexdigest()[:16] for name in ("uplot.js", "uplot.css")]
    assert hashes == ["19c8d4c6ad88929a", "df630c6a8d6f8eea"]
    page = run_page(a_record(), {})
    assert "The MIT License" in page and "Copyright (c) 2022 Leon Sorokin" in page


def test_the_page_of_a_thousand_classes_is_small() -> None:
    names = [f"n{number:08} a name of a class" for number in range(1_000)]
    page = run_page(a_record(batches=500, classes=names), the_pictures(len(names)))
    assert len(page.encode()) < 1_000_000  # without pictures: 72 of 5 KB come on top


def test_before_the_first_evaluation_nothing_empty_is_drawn() -> None:
    page = run_page(a_record(batches=3, evaluations=0), {"crops": {}, "evaluated": {}})
    found = Parsed(page)
    assert not {"figure", "svg", "img"} & set(found.tags)
    assert "Accuracy" not in " ".join(found.texts)
    assert [chart["title"] for chart in chart_data(page)["charts"]] == [
        "Loss", "Learning rate", "Speed", "Waiting for data", "Image size", "Memory of the first rank's machine",
    ]  # fmt: skip
    assert not re.search(r"\b(None|nan|undefined)\b", " ".join(found.texts))


def test_the_record_of_an_older_version_has_a_page_too() -> None:
    record = a_record()
    for key in ("progress", "time", "starts"):
        del record[key]
    record["curve"] = [{k: v for k, v in point.items() if "memory" not in k and "wait" not in k}
                       for point in record["curve"]]  # fmt: skip
    page = run_page(record, {})
    assert [chart["title"] for chart in chart_data(page)["charts"]] == [
        "Loss", "Accuracy", "Learning rate", "Speed", "Image size",
    ]  # fmt: skip
    assert chart_data(page)["marks"] == []


def test_curves_and_marks_are_the_records() -> None:
    data = chart_data(run_page(a_record(), {}))
    loss, accuracy = data["charts"][:2]
    assert [(one["label"], one["x"][-1]) for one in loss["series"]] == [("train", 40), ("val", 40)]
    assert loss["series"][0]["y"] == [3.0 / batch for batch in range(1, 41)]
    assert accuracy["series"][0]["y"] == [25.0, 50.0]
    assert data["marks"] == [{"batch": 15, "label": "resumed on 2 rank(s)"}]
    assert (data["steps_per_epoch"], data["global_batch_size"]) == (20.0, 8.0)


def test_a_run_that_an_older_version_began_is_marked_where_it_was_resumed() -> None:
    record = a_record()
    del record["starts"][0]
    assert [mark["batch"] for mark in chart_data(run_page(record, {}))["marks"]] == [15]


def test_a_loss_that_is_not_finite_is_left_out() -> None:
    record = a_record()
    record["curve"][3]["loss"] = float("nan")
    record["evaluations"][0]["loss"] = float("inf")
    loss = chart_data(run_page(record, {}))["charts"][0]
    assert 4 not in loss["series"][0]["x"] and loss["series"][1]["x"] == [40]


def test_what_differs_from_the_base_comes_first() -> None:
    text = " ".join(" ".join(Parsed(run_page(a_record(seed=5), {})).texts).split())
    assert re.search(r"differs from base.yaml.*\bglobal_batch_size\b.*\b8\b.*\b256\b.*settings as in base", text)
    assert re.search(r"\bseed 5 17\b", text)


def test_more_classes_than_a_matrix_or_the_table_can_show() -> None:
    names = [f"class{number}" for number in range(1_203)]
    pictures = the_pictures(len(names))
    del pictures["evaluated"]["matrix"]  # as it is gathered of so many
    page = run_page(a_record(classes=names), pictures)
    assert "Confusion" not in page
    assert page.count("<tr><td>class") == 1_000 + len(pictures["evaluated"]["pairs"])
    assert "The 1,000 classes with the lowest top-1, of 1,203." in page


def test_the_headline_has_counts_and_leaves_out_what_is_not_known() -> None:
    record = a_record(batches=30)
    found = {figure.label: (figure.value, figure.note) for figure in headline(record)}
    assert found == {
        "top-1": ("50.00%", "50 of 100, after batch 40"),
        "top-5": ("50.00%", "50 of 100, after batch 40"),
        "epochs": ("1.5 of 2", "batch 30 of 40"),
        "images/s": ("100", "25% of the time waiting for data"),
        "trained": ("2 h", "in 2 starts"),
        "left": ("1 h", "as of 2023-11-14 22:13 UTC"),
    }
    record["time"]["usd_per_hour"] = 12.5
    assert headline(record)[-1] == ("training's cost", "$25.00", "at $12.5 an hour")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "0 s"), (59.4, "59 s"), (60, "1 min"), (61, "1 min 1 s"), (7_260, "2 h 1 min"), (90_000, "1 d 1 h")],
)
def test_a_duration_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words
