"""Compare any number of runs in a table: how good, how fast, and what differs between their settings.

    python train/runs.py runs/one runs/other s3://bucket/runs/third
    python train/runs.py runs --sort top1 --csv runs.csv --html runs.html

FOLDER is a run's save folder, local or s3://, or a folder of such folders. Exit status: 0; 1 where a folder has no run
or one that cannot be read, which is named; 2 where none can be read. train/compare.py tells whether two runs are the
same bit for bit.
"""

import argparse
import csv
import io
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

# Started as a script, Python puts this file's own folder on the path; the packages are in the one above.
_HERE = Path(__file__).resolve().parent
if Path(sys.path[0] or ".").resolve() == _HERE:
    sys.path[0] = str(_HERE.parent)

from imagestream.mds.names import shown, utf8
from imagestream.storage.errors import PlaceError
from imagestream.storage.places import folder_and_name, open_place
from train.record.reading import RunError, StoredRun, find_runs
from train.record.settings import differing
from train.record.table import COLUMNS, as_text, figures_of, named_apart, sorted_runs

EXIT_SOME_UNREADABLE, EXIT_NONE = 1, 2
GIVEN = ("run_name", "checkpoint.save_folder")  # other ones in each run, and in the table's first column already


def main(argv: Sequence[str]) -> int:
    """Run the command; return its exit status."""
    args = parse(argv)
    found = [one for folder in args.folders for one in find_runs(folder)]
    runs = [one for one in found if isinstance(one, StoredRun)]
    for error in (one for one in found if isinstance(one, RunError)):
        print(shown(f"runs: {error}"), file=sys.stderr)
    if not runs:
        return EXIT_NONE
    runs = sorted_runs(named_apart(runs), args.sort)
    print(shown(as_text(runs, differences(runs), width=shutil.get_terminal_size((120, 24)).columns)))
    try:
        if args.csv:
            _write(args.csv, as_csv(runs))
        if args.html:
            from train.record.page import runs_page  # here: the table alone needs no templates

            _write(args.html, runs_page(runs, differences(runs)))
    except PlaceError as error:
        print(shown(f"runs: {error}"), file=sys.stderr)
        return EXIT_SOME_UNREADABLE
    return 0 if len(runs) == len(found) else EXIT_SOME_UNREADABLE


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the command's arguments."""
    parser = argparse.ArgumentParser(
        prog="train/runs.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folders", nargs="+", metavar="FOLDER", help="a save folder, or a folder of them; local or s3://"
    )
    parser.add_argument(
        "--sort", choices=[column.key for column in COLUMNS], metavar="KEY",
        help=f"best or largest first: {', '.join(column.key for column in COLUMNS)}; default: as given",
    )  # fmt: skip
    parser.add_argument("--csv", metavar="FILE", help="write the table there too, with all digits; local or s3://")
    parser.add_argument("--html", metavar="FILE", help="write a page there, with the runs' curves; local or s3://")
    return parser.parse_args(argv)


def differences(runs: Sequence[StoredRun]) -> dict[str, list[str]]:
    """Return the settings in which runs differ, with each one's value."""
    return differing([run.record["config"] for run in runs], except_for=GIVEN)


def as_csv(runs: Sequence[StoredRun]) -> str:
    """Return a row for each run: its figures, and the settings in which they differ."""
    settings = differences(runs)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["folder", *(column.key for column in COLUMNS), *settings])
    for at, run in enumerate(runs):
        figures = figures_of(run)
        row = [figures[column.key] for column in COLUMNS]
        writer.writerow(
            [run.folder, *("" if value is None else value for value in row), *(v[at] for v in settings.values())]
        )
    return text.getvalue()


def _write(location: str, text: str) -> None:
    folder, name = folder_and_name(location)
    open_place(folder).write(name, utf8(text))


if __name__ == "__main__":
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # nothing here needs one
    raise SystemExit(main(sys.argv[1:]))
