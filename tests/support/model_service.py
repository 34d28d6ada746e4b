"""A service with OpenAI's interface over loopback, which a test makes slow, busy, broken or talkative."""

import contextlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Content-Type"] == "application/json":
            asked = json.loads(body)
        else:
            asked = read_form(self.headers["Content-Type"], body)
        with self.server.lock:
            self.server.requests.append((self.path, asked, dict(self.headers)))
            number = len(self.server.requests)
        status, content, headers = self.server.answer(self.path, asked, number)
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the client has given up
            self.send_response(status)
            for name, value in {"Content-Length": len(data), **headers}.items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(data)
        self.close_connection = True


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64


def read_form(content_type, body):
    boundary = content_type.partition("boundary=")[2]
    fields = {}
    for part in body.split(f"--{boundary}".encode())[1:-1]:
        head, _, data = part[2:-2].partition(b"\r\n\r\n")
        name = re.search(rb'name="(\w+)"', head)[1].decode()
        fields[name] = data if b"filename=" in head else data.decode()
    return fields


def reply(*texts, reason="stop", **fields):
    """A good answer of chat."""
    choices = [{"message": {"role": "assistant", "content": text}, "finish_reason": reason, **fields} for text in texts]
    return 200, {"choices": choices}, {}


@contextlib.contextmanager
def serve(answer):
    """Yields the server, whose ``url`` and ``requests`` tests look at.

    Args:
      answer: gets the path, the JSON or form and the number of a request, from 1; returns status, body and headers.
    """
    server = Server(("127.0.0.1", 0), Handler)
    server.lock, server.requests, server.answer = threading.Lock(), [], answer
    server.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
