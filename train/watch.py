"""Watch a run: its page in a browser, or its state in a terminal.

    python train/watch.py runs/one
    python train/watch.py s3://bucket/runs/one --print

RUN is the run's save folder, local or s3://. The page is served on 127.0.0.1 alone, and reloads itself during the
run; over ssh, forward its port (ssh -L 8000:127.0.0.1:8000 HOST) or give --print. It ends when the run is finished, by
Ctrl-C, or when --patience-h hours have passed without news. Exit status: 0 finished or Ctrl-C, 1 no news, 2 the folder
cannot be read or the port cannot be used.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

# Started as a script, Python puts this file's own folder on the path; the packages are in the one above.
_HERE = Path(__file__).resolve().parent
if Path(sys.path[0] or ".").resolve() == _HERE:
    sys.path[0] = str(_HERE.parent)

from imagestream.mds.names import shown
from imagestream.storage.errors import PlaceError
from imagestream.storage.places import open_place
from train.record.reading import RunError, StoredRun, read_run
from train.record.serving import PageServer, PortError, serving
from train.record.summary import state_lines

EXIT_NO_NEWS, EXIT_NOTHING = 1, 2
PORT = 8000
LOOK_EVERY_S = 5.0
SECONDS_TO_FETCH = 600.0  # for a browser to get a finished run's page
SECONDS_AFTER = 2.0  # for that page to be on its way
CLEAR_LINES = "\x1b[{}A\x1b[J"  # up by so many lines, and nothing below


def main(argv: Sequence[str]) -> int:
    """Run the command; return its exit status."""
    args = parse(argv)
    try:
        open_place(args.run).names()
        watch = Watch(args.run, patience_s=args.patience_h * 3600)
        if args.print:
            return watch.until_finished(None)
        with serving(args.run, args.port) as server:
            print(f"{server.url} has the page of {shown(args.run)}; Ctrl-C ends this", flush=True)
            return watch.until_finished(server)
    except (PlaceError, PortError) as error:
        print(shown(f"watch: {error}"), file=sys.stderr)
    except KeyboardInterrupt:
        return 0
    return EXIT_NOTHING


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the command's arguments."""
    parser = argparse.ArgumentParser(
        prog="train/watch.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN", help="a run's checkpoint.save_folder; local or s3://")
    parser.add_argument("--port", type=int, default=PORT, metavar="N", help=f"of the page; 0: any; default: {PORT}")
    parser.add_argument("--print", action="store_true", help="print the state here, and serve nothing")
    parser.add_argument(
        "--patience-h", type=float, default=12.0, metavar="HOURS", help="without news before it ends; default: 12"
    )
    args = parser.parse_args(argv)
    if not 0 <= args.port < 65536:
        parser.error(f"--port: {args.port} must be 0 to 65535")
    if not 0 < args.patience_h <= 24 * 365:
        parser.error(f"--patience-h: {args.patience_h:g} must be above 0, and at most a year")
    if os.path.isfile(args.run):
        parser.error(f"{args.run} is a file; give a run's checkpoint.save_folder")
    return args


class Watch:
    """Looks at a run's record again and again.

    Args:
        patience_s: without a new record before it gives up.
    """

    def __init__(self, folder: str, *, patience_s: float) -> None:
        self._folder, self._patience_s = folder, patience_s
        self._printed: list[str] = []
        self._problem = ""

    def until_finished(self, server: PageServer | None) -> int:
        """Return the exit status once the run is finished or patience is over; print the state where nothing serves."""
        last: StoredRun | None = None
        news_at = time.monotonic()
        while time.monotonic() - news_at < self._patience_s:
            found = self._look()
            if found is not None and (last is None or found.record != last.record):
                last, news_at = found, time.monotonic()
                if server is None:
                    self._print(state_lines(found.record))
                if found.record["status"] == "finished":
                    return self._see_off(server)
            time.sleep(min(LOOK_EVERY_S, self._patience_s))
        why = self._problem or "it may be dead"
        print(shown(f"watch: no news of {self._folder} for {self._patience_s / 3600:g} h: {why}"), file=sys.stderr)
        return EXIT_NO_NEWS

    def _look(self) -> StoredRun | None:
        try:
            found = read_run(self._folder)
        except (RunError, PlaceError) as error:  # a run that has just begun, or a place that is away for a while
            if str(error) != self._problem:
                print(shown(f"watch: {error}; waiting"), file=sys.stderr, flush=True)
            self._problem = str(error)
            return None
        self._problem = ""
        return found

    def _see_off(self, server: PageServer | None) -> int:
        """Let a browser get the last page."""
        if server is not None:
            server.note_finished()
            print(f"the run is finished; this ends when a browser has got its last page from {server.url}", flush=True)
            server.delivered.wait(SECONDS_TO_FETCH)
            time.sleep(SECONDS_AFTER)
        return 0

    def _print(self, lines: list[str]) -> None:
        """Replace the state that was printed before, or add a line where nobody looks at a screen."""
        if not sys.stdout.isatty():
            print(shown("  ".join(lines)), flush=True)
            return
        if self._printed:
            print(CLEAR_LINES.format(len(self._printed)), end="")
        self._printed = lines
        print(shown("\n".join(lines)), flush=True)


if __name__ == "__main__":
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # nothing here needs one
    raise SystemExit(main(sys.argv[1:]))
