"""The audit's report, as a browser would read it."""

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from imagestream.mds.manifest import load_manifest
from tests.audits import FIRST, SECOND, as_png, edit_manifest, records_of, rewrite

pytestmark = pytest.mark.slow


class Page(HTMLParser):
    """What a page refers to, and whether its tags are closed in order."""

    VOID = ("meta", "img", "br", "link", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            assert not (name in ("src", "href") and "//" in str(value))
            if name == "src":
                self.images.append(str(value))
        if tag == "img":
            assert {"src", "alt", "width", "height", "loading"} <= {name for name, _ in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data


def test_the_report_shows_classes_findings_and_mended_files(audit: Any, dataset: Path, tmp_path: Path) -> None:
    (id0, image, label), *_ = records_of(dataset / FIRST)
    rewrite(dataset, FIRST, as_png)
    copy = next(n for n, (_, _, other) in enumerate(records_of(dataset / SECOND)) if other != label)
    rewrite(dataset, SECOND, lambda records: records.__setitem__(copy, (records[copy][0], image, records[copy][2])))
    path = "train/class<0>/a&b.jpg"
    mended = {"id": id0, "path": path, "label": label, "what": "CMYK JPEG re-encoded as RGB"}
    refused = {"id": 100, "path": "train/class0/gone.jpg", "label": 0, "reason": "empty file (0 bytes)"}
    edit_manifest(dataset, lambda manifest: manifest["splits"]["train"].update(mended=[mended], refused=[refused]))
    original = tmp_path / "source" / path
    original.parent.mkdir(parents=True)
    original.write_bytes(image)

    report = tmp_path / "report"
    for _ in range(2):  # an earlier report is replaced
        code, lines = audit("--report", str(report), "--source", str(tmp_path / "source"))
    assert (code, len(lines)) == (1, 2)
    page = Page((report / "index.html").read_text())
    assert all((report / path).is_file() for path in page.images)
    written = {f"pictures/{path.name}" for path in (report / "pictures").iterdir()}
    assert written == set(page.images)
    sheets = [f"pictures/class-{label:05}.jpg" for label in range(4)]
    plots = [f"pictures/{name}.png" for name in ("class-counts", "image-sizes", "image-bytes")]
    pairs = ["pictures/record-train-0-2.jpg", "pictures/record-train-0-0.jpg", f"pictures/record-train-1-{copy}.jpg"]
    assert page.images == [*pairs, *plots, f"pictures/original-train-{id0}.jpg", pairs[1], *sheets]
    assert Image.open(report / sheets[0]).size == (6 * 96 + 2 * 96 + 6 * 4 + 20, 96)
    for text in (
        *(line.split(": ", 1)[1].removeprefix(f"{FIRST}: ") for line in lines[:1]),
        "1 finding, 1 warning.",
        "Images that are not plain JPEGs: 1",
        "Images stored again with another label: 1",
        "1 mended file",
        mended["path"],
        "1 refused file",
        refused["path"],
        refused["reason"],
        "0 class0: train 25, val 6",
        load_manifest(dataset).fingerprint,
    ):
        assert text in page.text


def test_the_report_of_a_dataset_where_nothing_can_be_read_is_still_written(
    audit: Any, dataset: Path, tmp_path: Path
) -> None:
    for shard in dataset.glob("*/*.mds"):
        shard.unlink()
    assert audit("--report", str(tmp_path / "report"))[0] == 1
    assert "Missing shards: " in Page((tmp_path / "report" / "index.html").read_text()).text
