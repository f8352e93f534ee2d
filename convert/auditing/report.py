"""The page of an audit: DIR/index.html and DIR/pictures/, which need nothing else and no network to be read."""

import html
import os
import shutil
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from itertools import chain
from pathlib import Path
from urllib.parse import quote

from PIL import Image
from tqdm import tqdm

from convert.auditing.findings import SHOWN_PER_KIND, Finding, RecordAt
from convert.auditing.pictures import (
    PER_CLASS,
    PicturesOfShard,
    Wanted,
    by_shard,
    choose,
    contact_sheet,
    pictures,
    small,
    tiles_of,
)
from convert.auditing.splits import Audited, SplitRows, class_counts, range_of
from convert.pool import WorkersDied, in_order
from imagestream.decode.limits import MAX_FILE_BYTES
from imagestream.mds.manifest import MendedFile
from imagestream.mds.names import printable
from imagestream.storage.protocol import Place

PAGE, PICTURES = "index.html", "pictures"
MENDED_SHOWN = 100  # of each split
CLASSES_PER_LINK = 100
_MARK = '<meta name="generator" content="convert/audit.py">'
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 0 auto; max-width: 1240px; padding: 1rem; color: #1a1a1a; }
h1 { font-size: 1.5rem; overflow-wrap: anywhere; } h2 { margin-top: 2.2rem; border-bottom: 1px solid #ccc; }
table { border-collapse: collapse; margin: .6rem 0; } caption { text-align: left; font-weight: 600; }
th, td { border: 1px solid #d5d5d5; padding: .25rem .55rem; text-align: left; vertical-align: top; }
td { overflow-wrap: break-word; } td.number { text-align: right; white-space: nowrap; }
thead th { background: #f3f3f3; } img { max-width: 100%; height: auto; }
.verdict { padding: .6rem .9rem; border-left: 6px solid; } .good { border-color: #009E73; background: #eef8f4; }
.bad { border-color: #D55E00; background: #fdf1ea; } code { font-size: .85em; overflow-wrap: anywhere; }
.classes { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(580px, 100%), 1fr)); gap: .9rem; }
.classes figure, td figure { margin: 0; } figcaption { font-size: .85rem; }
td figure { display: inline-block; margin-right: .5rem; }
"""


class ReportError(ValueError):
    """The report cannot be written where it is asked for."""


def check_report_folder(folder: Path, dataset: Place) -> None:
    """Raise ReportError now, rather than after hours of reading, where a report must not or cannot be written."""
    if dataset.path is not None and folder.resolve().is_relative_to(dataset.path.resolve()):
        raise ReportError(f"--report {folder} lies inside the dataset {dataset}; choose a folder outside of it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        page = folder / PAGE
        if any(folder.iterdir()) and not (page.is_file() and _MARK in page.read_text(errors="replace")[:1000]):
            raise ReportError(f"--report {folder} holds something else than an earlier report; choose another folder")
        (folder / PICTURES).mkdir(exist_ok=True)
        if not os.access(folder / PICTURES, os.W_OK | os.X_OK):
            raise ReportError(f"--report {folder} cannot be written to; choose another folder")
    except OSError as error:
        raise ReportError(f"--report {folder} cannot be used: {error}") from error


def write_report(audited: Audited, folder: Path, *, source: Path | None) -> None:
    """Write the page and its pictures, in place of an earlier report.

    Args:
        source: the folder of the original images, for pictures of those that were mended.

    Raises:
        ReportError: the disk is full, or such like.
    """
    try:
        (folder / PAGE).unlink(missing_ok=True)
        shutil.rmtree(folder / PICTURES, ignore_errors=True)
        (folder / PICTURES).mkdir(parents=True)
        text = "\n".join(_Page(audited, folder, source).parts()) + "\n"
        unfinished = folder / f".{PAGE}.tmp"
        with open(unfinished, "w", encoding="utf-8") as file:
            file.write(text)
            os.fsync(file.fileno())
        unfinished.rename(folder / PAGE)
    except OSError as error:
        raise ReportError(f"the report in {folder} cannot be written: {error}") from error


class _Page:
    """The page while it is put together; pictures are written as they come up."""

    def __init__(self, audited: Audited, folder: Path, source: Path | None) -> None:
        self._audited, self._folder, self._source = audited, folder, source
        self._places = _places_of_mended(audited)
        self._classes = choose(audited.splits)
        self._made = self._read_pictures()

    def parts(self) -> Iterator[str]:
        """The page, piece by piece."""
        title = f"Audit of {_text(self._audited.dataset)}"
        yield f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n{_MARK}'
        yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
        yield f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>"
        yield from self._verdict()
        yield from self._splits()
        yield from self._findings()
        yield from self._plots()
        yield from self._files()
        yield from self._class_sheets()
        yield "</body>\n</html>"

    def _verdict(self) -> Iterator[str]:
        audited, findings = self._audited, self._audited.findings
        decoded = "all of them" if audited.decoded == audited.images else f"{audited.decoded:,} of them"
        found = f"{_counted(findings.errors, 'finding')}, {_counted(findings.warnings, 'warning')}"
        sound = "bad" if findings.errors else "good"
        promised = sum(split.index.samples for split in audited.splits)
        yield f'<p class="verdict {sound}"><strong>{found}.</strong> {audited.images:,} of {promised:,} images were'
        yield f"read in {_counted(len(audited.splits), 'split')}, and {decoded} decoded.</p>"
        if audited.manifest:
            yield f"<p>Fingerprint of the dataset: <code>{_text(audited.manifest.fingerprint)}</code></p>"
        else:
            yield "<p>There is no sound manifest.json to compare with.</p>"

    def _splits(self) -> Iterator[str]:
        yield "<h2>Splits</h2>"
        heads = ("split", "samples", "shards", "MB", "classes", "samples per class", "decoded", "mended", "refused")
        rows = [[_text(_name(split)), *self._numbers(split)] for split in self._audited.splits]
        yield from _table(heads, rows, numbers_from=1)

    def _numbers(self, split: SplitRows) -> list[str]:
        counts = [count for count in class_counts(split.rows) if count] or [0]
        manifest = self._audited.manifest
        info = manifest.splits.get(split.split) if manifest else None
        return [
            f"{split.index.samples:,}",
            f"{split.index.listed:,}",
            f"{split.index.stored_bytes / 1e6:,.1f}",
            f"{sum(map(bool, counts)):,}",
            range_of(counts),
            f"{int((split.rows['width_px'] > 0).sum()):,}",
            f"{len(info.mended):,}" if info else "unknown",
            f"{len(info.refused):,}" if info else "unknown",
        ]

    def _findings(self) -> Iterator[str]:
        for warnings, title in ((False, "Findings"), (True, "Warnings")):
            yield f"<h2>{title}</h2>"
            groups = list(self._audited.findings.groups(warnings=warnings))
            if not groups:
                yield "<p>None.</p>"
            for kind, kept, count in groups:
                with_images = any(finding.images for finding in kept)
                heads = ("where", "what", *(["images"] if with_images else []))
                rows = [self._finding(finding, with_images=with_images) for finding in kept]
                more = f", of which the first {len(kept):,}" if count > len(kept) else ""
                yield from _table(heads, rows, caption=f"{kind[0].upper()}{kind[1:]}: {count:,}{more}")

    def _finding(self, finding: Finding, *, with_images: bool) -> list[str]:
        row = [f"<code>{_text(finding.where)}</code>", _text(finding.what)]
        if with_images:
            row.append("".join(self._record(at) for at in finding.images))
        return row

    def _plots(self) -> Iterator[str]:
        from convert.auditing.plots import plot_bytes, plot_class_counts, plot_sizes  # matplotlib takes a second

        splits = self._audited.splits
        for title, name, data in (
            ("Samples per class", "class-counts.png", plot_class_counts(splits, self._audited.manifest)),
            ("Image sizes", "image-sizes.png", plot_sizes(splits)),
            ("Bytes per image", "image-bytes.png", plot_bytes(splits)),
        ):
            yield f"<h2>{title}</h2>\n<p>{self._picture(name, data, f'{title}, a panel for each split')}</p>"

    def _files(self) -> Iterator[str]:
        """The files that the converter mended or refused."""
        for split, info in sorted(self._audited.manifest.splits.items()) if self._audited.manifest else ():
            if info.mended:
                yield f"<h2>{_text(split)}: {_counted(len(info.mended), 'mended file')}</h2>"
                before = ["file"] if self._source else []
                rows = [self._mended(split, file) for file in info.mended[:MENDED_SHOWN]]
                more = f"The first {MENDED_SHOWN} of them; all are in manifest.json"
                caption = more if len(info.mended) > MENDED_SHOWN else ""
                yield from _table(("id", "path", "label", "what", *before, "stored"), rows, caption=caption)
            if info.refused:
                yield f"<h2>{_text(split)}: {_counted(len(info.refused), 'refused file')}</h2>"
                refused = [[str(f.id), _text(f.path), str(f.label), _text(f.reason)] for f in info.refused]
                yield from _table(("id", "path", "label", "reason"), refused)

    def _mended(self, split: str, file: MendedFile) -> list[str]:
        at = self._places.get((split, file.id))
        row = [str(file.id), f"<code>{_text(file.path)}</code>", str(file.label), _text(file.what)]
        if self._source:
            row.append(self._original(self._source, split, file))
        return [*row, self._record(at) if at else "no record has this id"]

    def _original(self, source: Path, split: str, file: MendedFile) -> str:
        path = (source / file.path).resolve()
        if not path.is_relative_to(source.resolve()) or not path.is_file():
            return "not found below --source"
        if path.stat().st_size > MAX_FILE_BYTES:
            return "too large"
        data = small(path.read_bytes(), square=False)
        if data is None:
            return "does not decode"
        return self._picture(f"original-{split}-{file.id}.jpg", data, f"original of id {file.id}")

    def _class_sheets(self) -> Iterator[str]:
        splits = self._audited.splits
        order = f"; those of {', then '.join(_text(_name(split)) for split in splits)}" if len(splits) > 1 else ""
        yield f"<h2>Classes</h2>\n<p>Up to {PER_CLASS} images of each, cut to squares{order}.</p>"
        labels = list(self._classes)
        if len(labels) > CLASSES_PER_LINK:
            links = (f'<a href="#class-{label}">{label}</a>' for label in labels[::CLASSES_PER_LINK])
            yield f"<p>Go to class {', '.join(links)}.</p>"
        counts = {split.split: class_counts(split.rows, max(labels, default=0) + 1) for split in splits}
        yield '<div class="classes">'
        for label, groups in self._classes.items():
            name = self._class_name(label)
            numbers = ", ".join(f"{_text(split or 'samples')} {of[label]:,}" for split, of in counts.items())
            data, (width, height) = contact_sheet(tiles_of(groups, self._made))
            shown = self._picture(f"class-{label:05}.jpg", data, f"images of class {label}", (width, height))
            caption = f"<figcaption>{label} {_text(name)}: {numbers}</figcaption>"
            yield f'<figure id="class-{label}">{caption}{shown}</figure>'
        yield "</div>"

    def _class_name(self, label: int) -> str:
        manifest = self._audited.manifest
        if not manifest:
            return ""
        info = manifest.classes[label]
        return info.wnid if info.name == info.wnid else f"{info.wnid} {info.name}"

    def _read_pictures(self) -> dict[Wanted, bytes]:
        """All pictures of records that the page shows, read shard by shard."""
        audited = self._audited
        wanted = [Wanted(at, True) for groups in self._classes.values() for group in groups for at in group]
        wanted += [Wanted(at, False) for at in _shown_places(audited, self._places)]
        tasks = by_shard(wanted, audited.splits)
        made: dict[Wanted, bytes] = {}
        results = _pictures(tasks, audited)
        with closing(results), tqdm(results, total=len(tasks), desc="pictures", unit=" shards", disable=None) as bar:
            for result in bar:
                made.update(result)
        return made

    def _record(self, at: RecordAt) -> str:
        """A record's picture, whole."""
        data = self._made.get(Wanted(at, False))
        if data is None:
            return ""
        where = f"{at.split or 'dataset'}, shard {at.shard}, record {at.record}"
        shown = self._picture(f"record-{at.split}-{at.shard}-{at.record}.jpg", data, where)
        return f"<figure>{shown}<figcaption>{_text(where)}</figcaption></figure>"

    def _picture(self, name: str, data: bytes, alt: str, size_px: tuple[int, int] | None = None) -> str:
        """Write a picture; return the tag that shows it."""
        path = self._folder / PICTURES / name
        path.write_bytes(data)
        if size_px is None:
            with Image.open(path) as image:
                size_px = image.size
        size = f'width="{size_px[0]}" height="{size_px[1]}"'
        return f'<img src="{PICTURES}/{quote(name)}" alt="{_text(alt)}" {size} loading="lazy">'


def _pictures(tasks: Sequence[PicturesOfShard], audited: Audited) -> Generator[dict[Wanted, bytes], None, None]:
    """The pictures of each shard; a shard at which a worker died has none, as the audit has named the image."""
    workers = max(1, min(audited.workers, len(tasks)))
    waiting = iter(tasks)
    while True:
        try:
            yield from in_order(partial(pictures, files=audited.files), waiting, workers=workers)
            return
        except WorkersDied as died:
            yield from died.finished
            at_hand = {death.note for death in died.deaths}
            left = [task for task in died.unfinished if task.name not in at_hand]
            if len(left) == len(died.unfinished):
                raise
            waiting = chain(left, waiting)


def _places_of_mended(audited: Audited) -> dict[tuple[str, int], RecordAt]:
    """Where the mended files are that the page shows: (split, id) -> record."""
    places: dict[tuple[str, int], RecordAt] = {}
    for split in audited.splits:
        info = audited.manifest.splits.get(split.split) if audited.manifest else None
        wanted = {file.id for file in info.mended[:MENDED_SHOWN]} if info else set()
        if wanted:
            for position, sample_id in enumerate(split.rows["id"].tolist()):
                if sample_id in wanted:
                    places[split.split, sample_id] = split.at(position)
    return places


def _shown_places(audited: Audited, mended: Mapping[tuple[str, int], RecordAt]) -> Iterator[RecordAt]:
    """The records that the page shows one by one: mended files, and the first images of each kind of finding."""
    yield from mended.values()
    for warnings in (False, True):
        for _, kept, _ in audited.findings.groups(warnings=warnings):
            for finding in kept[:SHOWN_PER_KIND]:
                yield from finding.images


def _table(
    heads: Sequence[str], rows: Iterable[Sequence[str]], *, caption: str = "", numbers_from: int | None = None
) -> Iterator[str]:
    yield "<table>" + (f"<caption>{_text(caption)}</caption>" if caption else "")
    yield "<thead><tr>" + "".join(f'<th scope="col">{_text(head)}</th>' for head in heads) + "</tr></thead><tbody>"
    for row in rows:
        kinds = [' class="number"' if numbers_from is not None and n >= numbers_from else "" for n in range(len(row))]
        yield "<tr>" + "".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds, row, strict=True)) + "</tr>"
    yield "</tbody></table>"


def _name(split: SplitRows) -> str:
    return split.split or "the dataset"


def _counted(count: int, one: str) -> str:
    return f"{count:,} {one}" if count == 1 else f"{count:,} {one}s"


def _text(text: str) -> str:
    """Text fit for HTML; what a terminal would not show is written as it is there."""
    return html.escape(printable(text))
