"""A small HTTP server for one page on this machine: fixed files, and JSON in and out.

Nothing of a request names a file. A request must come from this server's own page: its Host must be this machine,
which stops DNS rebinding, and its Origin, if it has one, the page's own. Bodies, times and the number of requests have
limits.
"""

from __future__ import annotations

import io
import ipaddress
import json
import logging
import socket
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, TypeVar

from mmjax.core.printable import printable

logger = logging.getLogger(__name__)

_MAX_REQUESTS = 16  # at a time; others wait to be accepted
_READ_SECONDS = 20.0  # for a whole request, however many pieces it comes in
_WRITE_SECONDS = 20.0
_DRAIN_SECONDS = 5.0  # for what a client still sends of a refused request; it would not see the answer otherwise
_LONGEST_MESSAGE = 300
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Connection": "close",
}

T = TypeVar("T")
Action = Callable[[Mapping[str, Any]], Mapping[str, Any]]


class File(NamedTuple):
    """What is sent for a path."""

    content_type: str
    content: bytes


class RefusedRequest(Exception):
    """A request that is not answered; the message is one line for the user."""

    def __init__(self, status: HTTPStatus, message: str):
        super().__init__(message)
        self.status = status


class LocalServer(ThreadingHTTPServer):
    """Listens from the start, and answers once something is published and ``serve_forever`` runs.

    Args:
        host: A name or address of this machine.
        port: 0 for a free one.
        read_seconds: The most that a request may take to arrive.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, host: str, port: int, *, read_seconds: float = _READ_SECONDS):
        self.publish({}, {}, max_bytes=0)
        self.read_seconds = read_seconds
        self._slots = threading.BoundedSemaphore(_MAX_REQUESTS)
        self.address_family, *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        super().__init__((host, port), _Handler)
        self._address = str(self.server_address[0])
        self.loopback = ipaddress.ip_address(self._address).is_loopback
        self._names = {"localhost", host.lower()} | (set() if self.loopback else {socket.gethostname().lower()})

    def publish(self, files: Mapping[str, File], actions: Mapping[str, Action], *, max_bytes: int) -> None:
        """Sets what is served.

        Args:
            files: What GET gets, by path.
            actions: What POST calls, by path: each takes and returns a JSON object, or raises ``RefusedRequest``.
                Several threads call them.
            max_bytes: Of a request's body.
        """
        self.files, self.actions, self.max_bytes = files, actions, max_bytes

    def server_bind(self) -> None:
        """Binds without the base class's look-up of this machine's name, which may take seconds."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()

    @property
    def url(self) -> str:
        """Where the page is."""
        host = f"[{self._address}]" if ":" in self._address else self._address
        if ipaddress.ip_address(self._address).is_unspecified:  # all addresses of the machine
            host = socket.gethostname()
        return f"http://{host}:{self.server_address[1]}/"

    def is_own_name(self, host: str) -> bool:
        """Whether a Host header names this server: by an address, which no foreign page can have as its name."""
        name = None
        try:
            name = urllib.parse.urlsplit(f"//{host}").hostname
            address = ipaddress.ip_address(name or "")
        except ValueError:
            return name in self._names
        return address.is_loopback or not self.loopback

    def process_request(self, request: Any, client_address: Any) -> None:
        """Starts a thread for the request, once there are fewer than the most."""
        self._slots.acquire()
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread was started
            self._slots.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Handles the request and gives its place to the next."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says in one line what went wrong; a client that has gone is no error."""
        if not isinstance(error := sys.exception(), OSError):
            logger.error(f"a request failed: {type(error).__name__}: {error}")


class _RequestReader(io.RawIOBase):
    """What arrives at a socket until a time, in any number of pieces."""

    def __init__(self, connection: socket.socket, seconds: float):
        self._connection, self._end = connection, time.monotonic() + seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if (left := self._end - time.monotonic()) <= 0:
            raise TimeoutError
        self._connection.settimeout(left)
        return self._connection.recv_into(buffer)


class _Handler(BaseHTTPRequestHandler):
    """One request on one connection."""

    server: LocalServer

    def setup(self) -> None:
        super().setup()
        self._refused = False
        self.rfile.close()
        self.rfile = io.BufferedReader(_RequestReader(self.connection, self.server.read_seconds))

    def finish(self) -> None:
        super().finish()
        if self._refused:
            self._drain()

    def do_GET(self) -> None:
        try:
            self._check_sender()
            self._send(HTTPStatus.OK, self._find(self.server.files))
        except RefusedRequest as refusal:
            self._refuse(refusal)

    def do_POST(self) -> None:
        try:
            self._check_sender()
            action = self._find(self.server.actions)
            self._check_page()
            self._send(HTTPStatus.OK, _json(action(self._read_object())))
        except RefusedRequest as refusal:
            self._refuse(refusal)
        except OSError:  # of the connection
            raise
        except Exception as error:
            logger.error(f"{self.path} failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
            self._refuse(RefusedRequest(HTTPStatus.INTERNAL_SERVER_ERROR, "this failed; the terminal says why"))

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuses what the base class cannot read; its messages would quote the request."""
        self._refuse(RefusedRequest(HTTPStatus(code), HTTPStatus(code).phrase.lower()))

    def version_string(self) -> str:
        """Names the program, without versions."""
        return "mmjax"

    def log_message(self, format: str, *args: Any) -> None:
        """Logs no requests."""

    def _find(self, known: Mapping[str, T]) -> T:
        if self.path not in known:
            raise RefusedRequest(HTTPStatus.NOT_FOUND, "there is nothing at this address")
        return known[self.path]

    def _refuse(self, refusal: RefusedRequest) -> None:
        self._refused = True
        line = printable(" ".join(str(refusal).split()))[:_LONGEST_MESSAGE]
        self._send(refusal.status, _json({"error": line}))

    def _check_sender(self) -> None:
        hosts = self.headers.get_all("Host", [])
        if len(hosts) != 1 or not self.server.is_own_name(hosts[0]):
            raise RefusedRequest(HTTPStatus.MISDIRECTED_REQUEST, f"open this page as {self.server.url}")

    def _check_page(self) -> None:
        """Refuses what pages of others send: they cannot send JSON unasked, nor hide where they come from."""
        own = f"http://{self.headers['Host']}".lower()
        if any(origin.lower() != own for origin in self.headers.get_all("Origin", [])):
            raise RefusedRequest(HTTPStatus.FORBIDDEN, "another page sent this request")
        if self.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
            raise RefusedRequest(HTTPStatus.FORBIDDEN, "another page sent this request")
        if self.headers.get_content_type() != "application/json":
            raise RefusedRequest(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "a request is application/json")

    def _read_object(self) -> Mapping[str, Any]:
        lengths = self.headers.get_all("Content-Length", [])
        if "Transfer-Encoding" in self.headers or not lengths:
            raise RefusedRequest(HTTPStatus.LENGTH_REQUIRED, "a request needs a Content-Length")
        if len(lengths) > 1 or not (lengths[0].isascii() and lengths[0].isdigit()):
            raise RefusedRequest(HTTPStatus.BAD_REQUEST, "a request has one Content-Length, a number")
        if len(lengths[0]) > 18 or int(lengths[0]) > self.server.max_bytes:
            limit = self.server.max_bytes / 2**20
            raise RefusedRequest(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the request is larger than {limit:.3g} MiB")
        try:
            body = self.rfile.read(int(lengths[0]))
        except TimeoutError:
            raise RefusedRequest(HTTPStatus.REQUEST_TIMEOUT, "the request took too long to arrive") from None
        if len(body) < int(lengths[0]):
            raise RefusedRequest(HTTPStatus.BAD_REQUEST, "the request ended too early")
        try:
            value = json.loads(body)
        except (ValueError, RecursionError):
            raise RefusedRequest(HTTPStatus.BAD_REQUEST, "the request is not JSON") from None
        if not isinstance(value, dict):
            raise RefusedRequest(HTTPStatus.BAD_REQUEST, "the request is not a JSON object")
        return value

    def _send(self, status: HTTPStatus, file: File) -> None:
        self.close_connection = True
        self.connection.settimeout(_WRITE_SECONDS)
        self.send_response(status)
        headers = {"Content-Type": file.content_type, "Content-Length": str(len(file.content))}
        for name, value in (headers | _HEADERS).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(file.content)

    def _drain(self) -> None:
        """Reads what is still sent: closed at once, the connection would be reset and the answer lost."""
        end = time.monotonic() + _DRAIN_SECONDS
        try:
            self.connection.shutdown(socket.SHUT_WR)
            while (left := end - time.monotonic()) > 0:
                self.connection.settimeout(left)
                if not self.connection.recv(1 << 16):
                    break
        except OSError:  # it has gone, or takes too long
            pass


def _json(value: Mapping[str, Any]) -> File:
    return File("application/json", json.dumps(value, allow_nan=False).encode())
