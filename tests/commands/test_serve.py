"""``mmjax serve``: from the command line to a page, and back by Ctrl-C."""

import _thread
import json
import socket
import threading
import urllib.request

import pytest

from mmjax import cli
from mmjax.inference.local_server import LocalServer
from support import models_in_use


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return models_in_use.write(tmp_path_factory.mktemp("model"))


@pytest.fixture
def visits(monkeypatch):
    """What a visitor gets while the command runs; Ctrl-C is pressed after it."""
    answers = []
    serve_forever = LocalServer.serve_forever

    def serve(server):
        def visit():
            try:
                answers.append(urllib.request.urlopen(server.url, timeout=10).read().decode())
                request = urllib.request.Request(
                    f"{server.url}classify", b'{"picture": ""}', {"Content-Type": "application/json"}
                )
                answers.append(urllib.request.urlopen(request, timeout=10).read())
            except urllib.error.HTTPError as error:
                answers.append(json.loads(error.read()))
            finally:
                _thread.interrupt_main()

        threading.Thread(target=visit, daemon=True).start()
        serve_forever(server, poll_interval=0.01)

    monkeypatch.setattr(LocalServer, "serve_forever", serve)
    return answers


def test_a_page_until_ctrl_c(model, visits, capsys):
    assert cli.main(["serve", f"--model={model}", "--port=0"]) == 0
    page, answer = visits
    assert "<!doctype html>" in page and answer == {"error": "choose a picture; an empty file is none"}
    out, err = capsys.readouterr()
    assert out.startswith("http://127.0.0.1:") and "Ctrl-C" in out and not err


def test_another_host_is_warned_of(tmp_path, capsys):
    assert cli.main(["serve", f"--model={tmp_path}", "--port=0", "--host=0.0.0.0"]) == 2
    warning, error = capsys.readouterr().err.splitlines()
    assert "--host=0.0.0.0" in warning and "no password" in warning and str(tmp_path) in error


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--port=70000"], "--port=70000: must be between 0 and 65535"),
        (["--max-mib=0"], "--max-mib=0.0: must be between"),
        (["--host=no.such.host.invalid"], "--host=no.such.host.invalid --port=8000: cannot be listened at"),
        (["--port={taken}"], "port 0 takes a free one"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, capsys, flags, message):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        flags = [flag.replace("{taken}", str(other.getsockname()[1])) for flag in flags]
        assert cli.main(["serve", f"--model={tmp_path}", *flags]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line
