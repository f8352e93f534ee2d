"""A run's page over HTTP, for browsers of this machine alone."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from imagestream.mds.names import utf8
from imagestream.storage.errors import PlaceError
from imagestream.storage.places import open_place
from imagestream.storage.protocol import read_if_there
from train.record.page import run_page
from train.record.reading import PAGE_NAME, RECORD_NAME, StoredRun, stored_run

LOOPBACK = "127.0.0.1"
RELOAD_S = 15  # between reloads of a page that is still being written
FRESH_S = 5.0  # for which a file is not read again
REQUEST_S = 30.0  # for a browser that has connected and asks nothing
FILES = {"/": PAGE_NAME, f"/{PAGE_NAME}": PAGE_NAME, f"/{RECORD_NAME}": RECORD_NAME}
"""What is served; nothing of a request's path ever becomes a part of a file's name."""
KINDS = {PAGE_NAME: "text/html; charset=utf-8", RECORD_NAME: "application/json"}
NOT_YET = (
    b'<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,"><title>not yet</title>'
    b"<p>There is nothing to see yet: a run writes its record at its first epoch's end or evaluation."
)
POLICY = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"
)
"""What a page may do: draw itself. Whoever can write to a save folder can put another page there, which could otherwise
ask this machine's own servers."""
AWAY = b'<!doctype html><link rel="icon" href="data:,"><title>away</title><p>The folder cannot be read at the moment.'


class PortError(ValueError):
    """The port cannot be used; the message names it."""


class PageServer(ThreadingHTTPServer):
    """Serves the page and the record of one run.

    Attributes:
        is_finished: whether the page is the last one, which needs no reload.
        delivered: set when a page has been sent since then.
    """

    daemon_threads = True

    def __init__(self, folder: str, port: int) -> None:
        super().__init__((LOOPBACK, port), _Handler)
        self.is_finished, self.delivered = False, threading.Event()
        self._folder, self._lock = folder, threading.Lock()
        self._read: dict[str, tuple[float, bytes | None]] = {}

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.server_port}/"

    def content(self, name: str) -> bytes | None:
        """Return a file of the save folder, None where it is not there. In S3 one read serves several requests.

        Raises:
            PlaceError: it cannot be read.
        """
        with self._lock:
            read_at, data = self._read.get(name, (0.0, None))
            if name not in self._read or time.monotonic() - read_at >= FRESH_S:
                data = read_if_there(open_place(self._folder), name)
                self._read[name] = time.monotonic(), data
            return data

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a browser that has gone before it had its answer, as one whose page is reloaded or closed."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)

    def page(self) -> bytes:
        """Return the run's page; before it has written one, its record's, without pictures, or a line that says so.

        Raises:
            PlaceError: see `content`.
        """
        if (page := self.content(PAGE_NAME)) is not None:
            return page
        found = None if (data := self.content(RECORD_NAME)) is None else stored_run(self._folder, data)
        return NOT_YET if not isinstance(found, StoredRun) else utf8(run_page(found.record, {}))

    def note_finished(self) -> None:
        """Send the page without a reload from now on, and read it anew."""
        with self._lock:
            self._read.clear()
        self.is_finished = True


class _Handler(BaseHTTPRequestHandler):
    server: PageServer
    timeout = REQUEST_S

    def do_GET(self) -> None:
        self._answer(has_body=True)

    def do_HEAD(self) -> None:
        self._answer(has_body=False)

    def _answer(self, *, has_body: bool) -> None:
        name = FILES.get(self.path.partition("?")[0])
        # A page of elsewhere, whose name was made to mean this machine, is no reason to tell it about the run.
        if self.headers.get("Host", "").partition(":")[0] not in (LOOPBACK, "localhost"):
            self.send_error(HTTPStatus.FORBIDDEN, "give 127.0.0.1 or localhost")
            return
        if name is None:
            self.send_error(HTTPStatus.NOT_FOUND, f"there are {PAGE_NAME} and {RECORD_NAME}")
            return
        was_finished = self.server.is_finished
        status, body = HTTPStatus.OK, None
        try:
            body = self.server.page() if name == PAGE_NAME else self.server.content(name)
        except PlaceError:
            status, body = HTTPStatus.BAD_GATEWAY, AWAY
        if body is None:
            self.send_error(HTTPStatus.NOT_FOUND, "there is no record yet")
            return
        reloads = name == PAGE_NAME and not was_finished
        self._send(status, body if has_body else b"", KINDS[name], length=len(body), reloads=reloads)
        if name == PAGE_NAME and was_finished and has_body and status is HTTPStatus.OK:
            self.server.delivered.set()

    def _send(self, status: HTTPStatus, body: bytes, kind: str, *, length: int, reloads: bool) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Content-Security-Policy", POLICY)
        if reloads:
            self.send_header("Refresh", str(RELOAD_S))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not worth a line each."""


@contextlib.contextmanager
def serving(folder: str, port: int) -> Iterator[PageServer]:
    """Serve a run's page until the end of the block.

    Args:
        port: 0: any that is free.

    Raises:
        PortError: it is in use, or may not be used.
    """
    try:
        opened = PageServer(folder, port)
    except OSError as error:
        raise PortError(f"port {port} cannot be used: {error.strerror}; give another, 0 for any") from error
    with opened as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.2}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join(10)
