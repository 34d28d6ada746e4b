"""POST requests to a service: what may pass is tried again, errors are one line, and none of them holds the key."""

from __future__ import annotations

import email.utils
import http.client
import ipaddress
import json
import logging
import random
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any, NoReturn

from mmjax.core.config import ConfigError, shorten

_log = logging.getLogger(__name__)

_PASSING = frozenset({408, 429})  # besides all from 500 up
_WRONG_SETTING = {
    301: "it redirects; set url to where it leads",
    302: "it redirects; set url to where it leads",
    307: "it redirects; set url to where it leads",
    308: "it redirects; set url to where it leads",
    401: "set the variable that key_env names to a valid key",
    403: "the key may not use this model; set another model or key",
    404: "check url, which ends before /chat as in http://localhost:8000/v1, and model",
}
"""Statuses that all requests would get, and the way out."""
_FIRST_WAIT = 0.5  # seconds; doubles with every try
_MAX_WAIT = 60.0  # even if the service asks for more
_MAX_LOST = 16  # requests in a row that failed in all tries: the service is down
_MAX_ANSWER = 256 << 20
_CHUNK = 1 << 16


class RequestFailed(Exception):
    """A request without an answer, after all tries; the message is the reason."""


class Client:
    """Sends requests to one service; safe to use from several threads.

    Args:
      url: what all paths begin with; ``/v1`` is added to a bare host.
      key: goes into the header ``Authorization`` and nowhere else; None sends no such header.
      timeout: seconds from a request to the end of its answer.
      tries: of one request.

    Attributes:
      requests: how many were sent, tries included.
    """

    def __init__(self, url: str, *, key: str | None, timeout: float, tries: int):
        self.url, host = _base(url)
        self.requests = 0
        self._key, self._timeout, self._tries = key, timeout, tries
        self._lost_in_a_row = 0
        self._lock = threading.Lock()
        self._canceled = threading.Event()
        handlers: list[Any] = [_NoRedirects]
        if _is_loopback(host):
            handlers.append(urllib.request.ProxyHandler({}))
        self._opener = urllib.request.build_opener(*handlers)

    def post(self, path: str, body: bytes, content_type: str = "application/json") -> Any:
        """The JSON value that the service answers with.

        Raises:
          RequestFailed: this request has no answer.
          ConfigError: no request will have one.
        """
        headers = {"Content-Type": content_type, "Accept": "application/json", "User-Agent": "mmjax"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(f"{self.url}{path}", data=body, headers=headers, method="POST")
        for attempt in range(1, self._tries + 1):
            if self._canceled.is_set():
                raise RequestFailed("canceled")
            asked_wait: float | None = None
            unreachable = False
            try:
                answer = self._send(request)
            except urllib.error.HTTPError as error:
                with error:
                    reason = f"status {error.code}{self._explain(error)}"
                    if error.code in _WRONG_SETTING:
                        raise ConfigError(
                            f"url={self.url!r}: POST {path} gives {reason}; {_WRONG_SETTING[error.code]}"
                        ) from None
                    if error.code < 500 and error.code not in _PASSING:
                        self._reset_lost()
                        raise RequestFailed(reason) from None
                    asked_wait = _retry_after(error.headers.get("Retry-After"))
            except (OSError, http.client.HTTPException) as error:
                cause = getattr(error, "reason", error)
                unreachable = isinstance(cause, OSError) and not isinstance(
                    cause, (TimeoutError, ConnectionResetError, BrokenPipeError)
                )
                reason = self._redact(
                    f"no answer within {self._timeout:g} s"
                    if isinstance(cause, TimeoutError)
                    else f"no answer ({cause})"
                )
            else:
                self._reset_lost()
                return _parse(answer)
            if attempt < self._tries:
                backoff = _FIRST_WAIT * 2 ** (attempt - 1) * random.uniform(0.5, 1)
                wait = min(_MAX_WAIT, backoff if asked_wait is None else asked_wait)
                _log.info("%s: %s; try %d of %d in %.1f s", self.url, reason, attempt + 1, self._tries, wait)
                self._canceled.wait(wait)
        if unreachable:
            raise ConfigError(f"url={self.url!r}: {reason}; start the server, then run the same command again")
        self._give_up(reason)

    def cancel(self) -> None:
        """Ends the waits between tries."""
        self._canceled.set()

    def resume(self) -> None:
        """Tries again after ``cancel``."""
        self._canceled.clear()

    def _send(self, request: urllib.request.Request) -> bytes:
        with self._lock:
            self.requests += 1
        deadline = time.monotonic() + self._timeout
        chunks, length = [], 0
        with self._opener.open(request, timeout=self._timeout) as response:
            expected = response.length  # before anything is read
            while chunk := response.read1(_CHUNK):
                chunks.append(chunk)
                length += len(chunk)
                if time.monotonic() > deadline:
                    raise TimeoutError
                if length > _MAX_ANSWER:
                    raise RequestFailed(f"the answer has more than {_MAX_ANSWER >> 20} MiB")
        if expected is not None and length < expected:
            raise http.client.IncompleteRead(b"", expected - length)
        return b"".join(chunks)

    def _explain(self, error: urllib.error.HTTPError) -> str:
        """What the body of an error says, with its separator; empty if that is nothing."""
        try:
            value = json.loads(error.read(_CHUNK))
            while isinstance(value, dict):
                value = value.get("error") or value.get("message") or value.get("detail")
        except (OSError, http.client.HTTPException, ValueError, RecursionError):
            return ""
        return f" ({self._redact(shorten(' '.join(value.split()), 200))})" if isinstance(value, str) else ""

    def _redact(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text

    def _reset_lost(self) -> None:
        with self._lock:
            self._lost_in_a_row = 0

    def _give_up(self, reason: str) -> NoReturn:
        with self._lock:
            self._lost_in_a_row += 1
            lost = self._lost_in_a_row
        if lost >= _MAX_LOST:
            raise ConfigError(
                f"url={self.url!r}: {lost} requests in a row failed, each {self._tries} times, lastly with {reason}; "
                "see to the server, then run the same command again"
            )
        raise RequestFailed(reason)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Follows none: the key would go to another host, and a POST would become a GET."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _base(url: str) -> tuple[str, str]:
    """The URL without its last slash, and its host."""
    try:
        split = urllib.parse.urlsplit(url)
        host, valid = split.hostname, split.port != 0 and not (split.query or split.fragment)
    except ValueError:
        host, valid, split = None, False, urllib.parse.SplitResult("", "", "", "", "")
    if "@" in split.netloc:
        raise ConfigError("url: holds a password; put it into the variable that key_env names")
    if not host or not valid or split.scheme not in ("http", "https"):
        raise ConfigError(f"url={url!r}: expected a base such as http://localhost:8000/v1")
    path = split.path.rstrip("/") or "/v1"
    return f"{split.scheme}://{split.netloc}{path}", host


def _is_loopback(host: str) -> bool:
    """Whether a proxy has no way to the host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _retry_after(value: str | None) -> float | None:
    """Seconds, from a number or a date; None if there is neither.

    >>> _retry_after("1.5"), _retry_after("-3"), _retry_after("soon"), _retry_after("Thu, 01 Jan 1970 00:00:00 GMT")
    (1.5, 0.0, None, 0.0)
    """
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return max(0.0, seconds) if seconds == seconds else None


def _parse(answer: bytes) -> Any:
    try:
        return json.loads(answer)
    except (ValueError, RecursionError):
        raise RequestFailed(f"the answer is not JSON: {shorten(repr(answer[:200]))}") from None
