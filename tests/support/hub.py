"""A model hub over loopback with one repository, which answers as the Hugging Face hub does."""

import contextlib
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        name, files = self.server.name, self.server.files
        path = self.path.partition("?")[0]
        headers, status = {"X-Repo-Commit": COMMIT}, 200
        if path.startswith(f"/api/models/{name}/tree/"):
            entries = [{"type": "file", "path": f, "size": len(d), "oid": oid(d)} for f, d in files.items()]
            content = json.dumps(entries).encode()
        elif path.startswith(f"/api/models/{name}"):
            listed = [{"rfilename": file} for file in files]
            content = json.dumps({"id": name, "sha": COMMIT, "siblings": listed, "private": False}).encode()
        elif path.startswith(f"/{name}/resolve/"):
            file = path.rsplit("/", 1)[1]
            content = files[file]
            headers["ETag"] = f'"{oid(content)}"'
            if self.command == "GET":
                self.server.sent.append(file)
        else:
            content, status = b"{}", 404
            headers["X-Error-Code"] = "RepoNotFound"
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


def oid(content):
    return hashlib.sha1(content).hexdigest()


@contextlib.contextmanager
def serve(name, files):
    """Yields the server: ``url``, and ``sent``, the names of the files that were downloaded."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.name, server.files, server.sent = name, files, []
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
