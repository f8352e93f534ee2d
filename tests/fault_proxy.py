"""A proxy before the S3 server that answers wrongly, late or not at all, as the test tells it to.

It passes requests on byte for byte, so that signatures stay valid, and answers every fault as a real endpoint does.
"""

import http.client
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SILENCE_LIMIT_S = 120
ERROR_CODES = {
    "500": "InternalError",
    "503": "SlowDown",
    "403": "AccessDenied",
    "404": "NoSuchKey",
    "501": "NotImplemented",
}


@dataclass(frozen=True)
class Request:
    """What a fault is chosen by."""

    method: str
    path: str
    number: int  # from 0, over all that came
    headers: Mapping[str, str]  # by their names in small letters

    @property
    def range(self) -> str:
        """`bytes=100-`, of a file that has come in part."""
        return self.headers.get("range", "")

    @property
    def has_checksum(self) -> bool:
        """Whether it has, or asks for, a checksum as boto3 sends them since 1.36."""
        return any(
            name.startswith(("x-amz-checksum-", "x-amz-sdk-checksum-", "x-amz-trailer")) for name in self.headers
        )


Fault = str
"""One of: `` (none), `500`, `503`, `403`, `404`, `501`, `<status>:<S3's code>`, `reset`, `truncate`, `flip`,
`silence:<seconds>`, `delay:<seconds>` (a right answer, late), `drip:<bytes>` (so many bytes a second).
"""


class FaultProxy:
    """Passes requests on to `upstream_port`; `choose` says, for each one, which fault to answer with."""

    def __init__(self, upstream_port: int) -> None:
        self.upstream_port = upstream_port
        self.choose: Callable[[Request], Fault] = lambda request: ""
        self.seen: list[tuple[Request, Fault]] = []
        self.stopped = threading.Event()
        self._lock = threading.Lock()
        proxy = self

        class Handler(_Handler):
            faults = proxy

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint_url = f"http://127.0.0.1:{self._server.server_port}"

    def fault_for(self, method: str, path: str, headers: Mapping[str, str]) -> Fault:
        with self._lock:
            request = Request(method, path, len(self.seen), headers)
            fault = self.choose(request)
            self.seen.append((request, fault))
        return fault

    @property
    def faults_given(self) -> int:
        return sum(bool(fault) for _, fault in self.seen)

    @contextmanager
    def running(self) -> Iterator["FaultProxy"]:
        thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.stopped.set()
            self._server.shutdown()
            self._server.server_close()
            thread.join(timeout=10)


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # its clients are killed all the time
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    faults: FaultProxy

    def _handle(self) -> None:
        size = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(size)
        fault = self.faults.fault_for(
            self.command, self.path, {name.lower(): value for name, value in self.headers.items()}
        )
        if fault.startswith("silence"):
            self.faults.stopped.wait(min(float(fault.partition(":")[2]), SILENCE_LIMIT_S))
            self._hang_up()
        elif fault.startswith("delay"):
            self.faults.stopped.wait(float(fault.partition(":")[2]))
            self._pass_on(body, "")
        elif fault[:3].isdigit():
            status, _, code = fault.partition(":")
            text = f"<Error><Code>{code or ERROR_CODES[status]}</Code></Error>"
            self._send(int(status), [("Content-Type", "application/xml")], text.encode())
        elif fault == "reset":
            self._hang_up()
        else:
            self._pass_on(body, fault)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _handle

    def _pass_on(self, body: bytes, fault: Fault) -> None:
        upstream = http.client.HTTPConnection("127.0.0.1", self.faults.upstream_port, timeout=60)
        try:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                upstream.putheader(name, value)
            upstream.endheaders(body)
            answer = upstream.getresponse()
            data = answer.read()
        except (OSError, http.client.HTTPException):
            self._hang_up()  # as the endpoint behind it did
            return
        finally:
            upstream.close()
        ours = _HOP_BY_HOP if self.command == "HEAD" else _HOP_BY_HOP | {"content-length"}
        headers = [(name, value) for name, value in answer.getheaders() if name.lower() not in ours]
        if fault == "flip" and data:  # in an object that was stored without S3's own checksum, as by older clients
            headers = [(name, value) for name, value in headers if not name.lower().startswith("x-amz-checksum")]
            data = data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]
        per_second = int(fault.partition(":")[2]) if fault.startswith("drip") else 0
        self._send(answer.status, headers, data, cut=fault == "truncate" and len(data) > 1, per_second=per_second)

    def _send(
        self, status: int, headers: list[tuple[str, str]], data: bytes, *, cut: bool = False, per_second: int = 0
    ) -> None:
        with suppress(OSError):  # the client may have given up
            self.send_response_only(status)
            for name, value in headers:
                self.send_header(name, value)
            if self.command != "HEAD" and status != 204:
                self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD" and per_second:
                self._drip(data, per_second)
            elif self.command != "HEAD":
                self.wfile.write(data[: len(data) // 2] if cut else data)
            if cut:
                self._hang_up()

    def _drip(self, data: bytes, per_second: int) -> None:
        """A tenth of a second's bytes at a time."""
        step = max(1, per_second // 10)
        for start in range(0, len(data), step):
            self.wfile.write(data[start : start + step])
            self.wfile.flush()
            if self.faults.stopped.wait(0.1):
                return

    def _hang_up(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: Any) -> None:
        pass


_HOP_BY_HOP = {"connection", "transfer-encoding", "keep-alive"}


def during(seconds: float, fault: Fault) -> Callable[[Request], Fault]:
    """A fault for every request of the first `seconds` after the first request."""
    began: list[float] = []

    def choose(request: Request) -> Fault:
        began.append(time.monotonic())
        return fault if began[-1] - began[0] < seconds else ""

    return choose
