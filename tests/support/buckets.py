"""A stand-in for Google Cloud Storage: its JSON interface, in memory and over loopback."""

import contextlib
import json
import re
import sys
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PATH = re.compile(
    r"(?P<how>/upload|/download|/resumable/upload)?/storage/v1/b/(?P<bucket>[^/]+)(?P<objects>/o)?(/(?P<name>[^/]+))?"
)


class Handler(BaseHTTPRequestHandler):
    """What gcsfs and tensorstore ask for: to list, write (in parts, or if unchanged), read ranges, copy and delete."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def reply(self, status, content=b"", **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": len(body), "Content-Type": "application/json"} | headers).items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)

    def facts(self, name):
        data, generation = self.server.objects[name]
        day = "2026-01-01T00:00:00.000Z"
        return {
            "kind": "storage#object", "name": name, "bucket": self.bucket, "size": str(len(data)), "timeCreated": day,
            "generation": str(generation), "metageneration": "1", "updated": day, "storageClass": "STANDARD",
        }  # fmt: skip

    def store(self, name, data, wanted=None):
        with self.server.lock:
            if wanted not in (None, str(self.server.objects.get(name, (b"", 0))[1])):
                self.reply(412, {"error": {"code": 412, "message": "changed meanwhile"}})
                return
            self.server.generation += 1
            self.server.objects[name] = data, self.server.generation
        self.reply(200, self.facts(name))

    def answer(self):
        url = urllib.parse.urlsplit(self.path)
        self.query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if url.path.startswith("/batch"):
            self.delete_several(body.decode())
            return
        path = PATH.match(url.path)
        self.bucket = path["bucket"]
        name = None if path["name"] is None else urllib.parse.unquote(path["name"])
        if not path["objects"]:
            self.reply(200, {"kind": "storage#bucket", "name": self.bucket})
        elif path["how"] in ("/upload", "/resumable/upload"):
            self.upload(body)
        elif name is None:
            self.list()
        elif name not in self.server.objects:
            self.reply(404, {"error": {"code": 404, "message": "Not Found"}})
        elif "/rewriteTo/" in url.path:
            target = urllib.parse.unquote(url.path.rpartition("/")[2])
            data, _ = self.server.objects[name]
            self.server.objects[target] = data, 1
            self.reply(200, {"done": True, "resource": self.facts(target)})
        elif self.command == "DELETE":
            self.server.objects.pop(name, None)
            self.reply(204)
        elif self.query.get("alt") == "media":
            self.read(name)
        else:
            self.reply(200, self.facts(name))

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = answer

    def list(self):
        prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter", "")
        items, folders = [], set()
        for name in sorted(self.server.objects):
            inner = name.removeprefix(prefix)
            if name.startswith(prefix) and delimiter and delimiter in inner:
                folders.add(prefix + inner.partition(delimiter)[0] + delimiter)
            elif name.startswith(prefix):
                items.append(self.facts(name))
        self.reply(200, {"kind": "storage#objects", "items": items, "prefixes": sorted(folders)})

    def upload(self, body):
        how, wanted = self.query["uploadType"], self.query.get("ifGenerationMatch")
        if how == "media":
            self.store(self.query["name"], body, wanted)
        elif how == "multipart":
            border = b"--" + re.search(r"boundary=([^;]+)", self.headers["Content-Type"])[1].strip("'\"").encode()
            _, about, content, _ = body.split(border)
            (_, facts), (_, data) = (re.split(rb"\r?\n\r?\n", part, maxsplit=1) for part in (about, content))
            self.store(json.loads(facts)["name"], re.sub(rb"\r?\n\Z", b"", data), wanted)
        elif "upload_id" not in self.query:
            number = str(len(self.server.uploads))
            self.server.uploads[number] = [json.loads(body)["name"], b""]
            address = f"http://{self.headers['Host']}{self.path.partition('?')[0]}?uploadType=resumable"
            self.reply(200, Location=f"{address}&upload_id={number}")
        else:
            upload = self.server.uploads[self.query["upload_id"]]
            upload[1] += body
            if self.headers.get("Content-Range", "").endswith("/*"):
                self.reply(308, Range=f"bytes=0-{len(upload[1]) - 1}")
            else:
                self.store(*upload)

    def read(self, name):
        data, generation = self.server.objects[name]
        facts = {"x_goog_generation": generation}
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if self.query.get("ifGenerationNotMatch") == str(generation):
            self.reply(304)
        elif wanted is None:
            self.reply(200, data, **facts)
        else:
            start = int(wanted[1]) if wanted[1] else max(len(data) - int(wanted[2]), 0)
            stop = min(int(wanted[2]) + 1, len(data)) if wanted[1] and wanted[2] else len(data)
            self.reply(206, data[start:stop], Content_Range=f"bytes {start}-{stop - 1}/{len(data)}", **facts)

    def delete_several(self, body):
        border = re.search(r"boundary=([^;]+)", self.headers["Content-Type"])[1].strip("'\"")
        replies = ""
        for part in body.split(f"--{border}")[1:-1]:
            name = urllib.parse.unquote(re.search(r"DELETE \S*/o/([^\s?]+)", part)[1])
            status = "204 No Content" if self.server.objects.pop(name, None) else "404 Not Found"
            number = re.search(r"Content-ID:\s*(.*)", part, re.IGNORECASE)
            head = f"Content-Type: application/http\r\nContent-ID: response-{number[1].strip() if number else ''}"
            replies += f"--{border}\r\n{head}\r\n\r\nHTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n\r\n"
        self.reply(200, f"{replies}--{border}--".encode(), Content_Type=f"multipart/mixed; boundary={border}")


class Server(ThreadingHTTPServer):
    """Knows what it holds, and is silent about those who hang up."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.objects, self.uploads, self.generation, self.lock = {}, {}, 0, threading.Lock()

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextlib.contextmanager
def bucket():
    """Every bucket there is, as the environment that leads to it and its objects by name."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    given = {
        "STORAGE_EMULATOR_HOST": address,
        "TENSORSTORE_GCS_HTTP_URL": address,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "any",
    }
    try:
        yield given, server.objects
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
