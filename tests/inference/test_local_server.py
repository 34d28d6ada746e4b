"""The server of one page: strangers' requests are refused in one line, and nothing hangs or is left open."""

import contextlib
import http.client
import json
import socket
import threading
import time

import pytest

from mmjax.inference import local_server
from mmjax.inference.local_server import File, LocalServer, RefusedRequest

PAGE = File("text/html; charset=utf-8", b"<p>page</p>")
MAX_BYTES = 1 << 20


def echo(request):
    if request.get("refuse"):
        raise RefusedRequest(local_server.HTTPStatus.UNPROCESSABLE_ENTITY, request["refuse"])
    if request.get("fail"):
        raise KeyError("a\nb")
    return {"got": request}


@contextlib.contextmanager
def serving(host="127.0.0.1", *, action=echo, **options):
    with LocalServer(host, 0, **options) as server:
        server.publish({"/": PAGE}, {"/echo": action}, max_bytes=MAX_BYTES)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join(10)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def server():
    with serving(read_seconds=0.5) as server:
        yield server


def ask(server, method="POST", path="/echo", body=b"{}", **headers):
    """Status, headers and JSON of an answer; a header of None is left out."""
    address, port = server.server_address[:2]
    connection = http.client.HTTPConnection(address, port, timeout=10)
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    own = {"Host": f"{address}:{port}"}
    if method == "POST":
        own |= {"Content-Type": "application/json", "Content-Length": str(len(body))}
    for name, value in (own | {name.replace("_", "-"): value for name, value in headers.items()}).items():
        if value is not None:
            connection.putheader(name, value)
    connection.endheaders(body)
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return (
        response.status,
        response.headers,
        json.loads(content) if "json" in response.headers["Content-Type"] else content,
    )


def exchange(server, data, *, close=False):
    """All that comes back on a connection that sends these bytes."""
    with socket.create_connection(server.server_address[:2], timeout=10) as connection:
        connection.sendall(data)
        if close:
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := connection.recv(1 << 16):
            answer += piece
        return answer


def test_a_page_and_an_answer(server):
    status, headers, content = ask(server, "GET", "/", b"")
    assert (status, content) == (200, PAGE.content)
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff" and headers["Server"] == "mmjax"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    status, headers, answer = ask(server, body=b'{"a": [1]}')
    assert (status, answer) == (200, {"got": {"a": [1]}}) and headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "/etc/passwd", "/?file=/etc/passwd", "/..",
        "/page.css%00", "/echo", "file:///etc/passwd", "http://127.0.0.1/", "\\..\\..\\windows", "*",
    ],
)  # fmt: skip
def test_no_path_names_a_file(server, path):
    status, _, answer = ask(server, "GET", path, b"")
    assert (status, answer) == (404, {"error": "there is nothing at this address"})


@pytest.mark.parametrize(
    "host",
    [None, "", "evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil.example", "[::", "10.0.0.1",
     "evil@evil.example", "127.0.0.1@evil.example"],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_another_host_is_refused(server, host, method):
    status, _, answer = ask(server, method, "/" if method == "GET" else "/echo", b"{}", Host=host)
    assert status == 421 and server.url in answer["error"]


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9", "127.0.0.1", "127.0.0.1:9000", "[::1]:5"])
def test_a_tunnel_from_another_port_works(server, host):
    assert ask(server, Host=host, Origin=f"http://{host.lower()}")[0] == 200


def test_two_hosts_are_refused(server):
    answer = exchange(server, b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\n\r\n")
    assert answer.startswith(b"HTTP/1.0 421 ")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "https://127.0.0.1"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "multipart/form-data; boundary=x"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Type": None}, 415),
        ({"Content-Length": None}, 411),
        ({"Transfer-Encoding": "chunked"}, 411),
        ({"Content-Length": "-1"}, 400),
        ({"Content-Length": "0x10"}, 400),
        ({"Content-Length": "²"}, 400),
        ({"Content-Length": str(MAX_BYTES + 1)}, 413),
        ({"Content-Length": "9" * 5000}, 413),
    ],
)
def test_a_request_that_is_not_the_page_s_own_is_refused(server, headers, status):
    headers = {name.replace("-", "_"): value for name, value in headers.items()}
    found, _, answer = ask(server, **headers)
    assert found == status and len(answer["error"].splitlines()) == 1


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"1", b"{", b"\xff\xfe", b'{"a": NaN', b"[" * 100_000, b'{"a":' * 100_000, b"--x\r\nContent-Disposi"],
)
def test_a_body_that_is_no_json_object_is_refused(server, body):
    status, _, answer = ask(server, body=body)
    assert status == 400 and "JSON" in answer["error"]


def test_an_answer_is_seen_though_the_body_was_not_read(server):
    body = b"x" * (8 * MAX_BYTES)
    for _ in range(3):
        status, _, answer = ask(server, body=body)
        assert status == 413 and answer["error"] == "the request is larger than 1 MiB"


def test_an_action_s_refusal_and_failure_are_one_line(server, messages):
    assert ask(server, body=b'{"refuse": "not\\na \\u202epicture"}')[2] == {"error": "not a \\u202epicture"}
    status, _, answer = ask(server, body=b'{"fail": 1}')
    assert status == 500 and answer["error"] == "this failed; the terminal says why"
    assert messages == ["/echo failed: KeyError: 'a\\nb'"]


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET / HTTP/1.1\r\n" + b"X: " + b"a" * 70_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"".join(b"X%d: a\r\n" % i for i in range(200)) + b"\r\n",
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n",
        b"GET <script>alert(1)</script> HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",  # a TLS hello
        b"PUT / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"OPTIONS /echo HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil.example\r\n\r\n",
        b"GET /\r\n\r\n",
    ],
)  # fmt: skip
def test_what_is_no_request_gets_one_line(server, request_bytes):
    answer = exchange(server, request_bytes, close=True)
    assert json.loads(answer.rpartition(b"\r\n")[2].splitlines()[-1])["error"]
    assert b"<script" not in answer and b"Access-Control" not in answer and len(answer) < 1500


def test_a_slow_client_is_cut_off_and_holds_nobody_up(server):
    head = b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
    with socket.create_connection(server.server_address[:2], timeout=10) as drip:
        drip.sendall(head)
        began, answer = time.monotonic(), b""
        drip.settimeout(0.05)
        while not answer and time.monotonic() < began + 5:
            with contextlib.suppress(TimeoutError):
                drip.sendall(b" ")
                answer = drip.recv(1000)
            assert ask(server)[0] == 200
        assert b" 408 " in answer and time.monotonic() - began < 2
    assert exchange(server, b"GET / HT") == b""  # a header that never ends: closed without a word


def test_a_body_that_ends_early_is_refused(server):
    head = b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{}"
    assert b" 400 " in exchange(server, head, close=True)


def test_many_at_once_are_answered_by_a_bounded_number_of_threads():
    running, most, lock = 0, 0, threading.Lock()

    def slow(request):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.02)
        with lock:
            running -= 1
        return request

    with serving(action=slow) as server:
        results = []
        threads = [
            threading.Thread(target=lambda i=i: results.append(ask(server, body=b'{"i": %d}' % i))) for i in range(60)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    assert [status for status, *_ in results] == [200] * 60
    assert sorted(answer["i"] for *_, answer in results) == list(range(60))
    assert most <= local_server._MAX_REQUESTS


def test_a_client_that_goes_away_is_no_error(server, messages):
    for _ in range(5):
        with socket.create_connection(server.server_address[:2]) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # reset, not closed
            connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert ask(server)[0] == 200 and not messages


def test_all_addresses_of_this_machine():
    with serving(host="0.0.0.0") as server:
        name, port = socket.gethostname(), server.server_address[1]
        assert not server.loopback and server.url == f"http://{name}:{port}/"
        hosts = {"192.168.1.5": 200, "localhost": 200, f"10.1.1.1:{port}": 200, f"{name}:1": 200, "evil.example": 421}
        for host, status in hosts.items():
            assert ask(server, Host=host)[0] == status
