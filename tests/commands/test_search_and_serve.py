"""``mmjax search`` and ``mmjax serve``: from the command line to a table or a page, and back by Ctrl-C."""

import _thread
import json
import re
import shutil
import signal
import socket
import threading
import urllib.request

import pytest

import mmjax
from mmjax import cli
from mmjax.inference.local_server import LocalServer
from support import models_in_use, pictures

HOSTILE = "<script>alert(1)<b>\u202e\x1b[31m.jpg"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return models_in_use.write(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    for i, name in enumerate(["a.jpg", "b.jpg", "c.jpg", HOSTILE, "d.jpg"]):
        (folder / name).write_bytes(pictures.encoded(pictures.photograph(40, 60, seed=i % 4)))
    return folder


@pytest.fixture(scope="module")
def embeddings(model, files, tmp_path_factory):
    return models_in_use.embed(model, files, tmp_path_factory.mktemp("out") / "embeddings")


def search(embeddings, *flags):
    return cli.main(["search", f"--in={embeddings}", *flags])


def test_the_nearest_as_a_table_and_as_json(embeddings, files, model, capsys):
    assert search(embeddings, "a red circle", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    names = sorted(path.name for path in files.glob("*.jpg"))
    loaded = mmjax.load(model, batch_size=16)
    cosines = loaded.similarity([files / name for name in names], ["a red circle"])[:, 0]
    assert [row["rank"] for row in rows] == [1, 2, 3, 4, 5]
    assert [row["cosine"] for row in rows] == pytest.approx(sorted(cosines.tolist(), reverse=True), abs=1e-6)
    assert all(names[row["id"]] == row["path"] for row in rows)

    assert search(embeddings, "a red circle", "--top=5") == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["rank", "cosine", "id", "path"]
    assert [line.split()[:3] for line in lines] == [[str(r["rank"]), f"{r['cosine']:.4f}", str(r["id"])] for r in rows]
    assert any(line.endswith("<script>alert(1)<b>\\u202e\\x1b[31m.jpg") for line in lines)


def test_a_picture_finds_itself_and_a_sheet_shows_it(embeddings, files, tmp_path, capsys):
    sheet = tmp_path / "sheet.html"
    assert search(embeddings, f"--image={files / HOSTILE}", "--top=2", f"--sheet={sheet}") == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 3 and out.splitlines()[1].startswith("   1  1.0000") and err == f"drew {sheet}\n"
    html = sheet.read_text()
    assert html.count("<img") == 3 and "<script" not in html and "&lt;script&gt;alert(1)&lt;b&gt;\\u202e" in html
    assert all(address.startswith("data:image/") for address in re.findall(r'(?:src|href)="([^"]*)"', html))
    assert "default-src 'none'" in html


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give a text to search for, or --image=FILE"),
        (["a", "--image=b"], "give a text to search for, or --image=FILE"),
        ([" "], "is empty"),
        (["a", "--top=0"], "--top=0: must be at least 1"),
        (["a", "--sheet=x.png"], "--sheet=x.png: is a page; name a file that ends in .html"),
        (["a", "--sheet=/nowhere/x.html"], "--sheet=/nowhere/x.html: cannot be written (No such file or directory)"),
        (["--image=/nowhere/a.jpg"], "--image=/nowhere/a.jpg: missing file"),
        ([f"--image={__file__}"], "corrupt image"),
        (["a", "--in=/nowhere"], "--in=/nowhere"),
        (["a", "--model=/nowhere"], "/nowhere"),
    ],
)
def test_a_search_that_cannot_be_is_one_line(embeddings, capsys, flags, message):
    assert search(embeddings, *flags) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line


def test_embeddings_are_searched_with_the_model_that_made_them(embeddings, model, tmp_path, capsys):
    moved = shutil.copytree(model, tmp_path / "moved")
    assert search(embeddings, "a red circle", "--top=1", f"--model={moved}") == 0
    for options, message in (
        ({"seed": 1}, "has other weights than those that made --in="),
        ({"embed_dim": 8}, "embeds in 8 dimensions, --in="),
    ):
        (other := tmp_path / message[:4]).mkdir()
        assert search(embeddings, "a red circle", f"--model={models_in_use.write(other, **options)}") == 2
        assert message in capsys.readouterr().err
    plan = json.loads((embeddings / "embeddings.json").read_text()) | {"model": "/gone"}
    copy = shutil.copytree(embeddings, tmp_path / "copy")
    (copy / "embeddings.json").write_text(json.dumps(plan))
    assert search(copy, "a red circle") == 2
    assert "its model is not there (" in (error := capsys.readouterr().err) and len(error.splitlines()) == 1


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
    # A suite in a shell's background ignores the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield answers
    signal.signal(signal.SIGINT, before)


def test_a_page_until_ctrl_c(embeddings, visits, capsys):
    assert cli.main(["serve", f"--in={embeddings}", "--port=0"]) == 0
    page, answer = visits
    assert "searched pictures <b>5</b>" in page
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
def test_a_page_that_cannot_be_is_one_line(tmp_path, capsys, flags, message):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        flags = [flag.replace("{taken}", str(other.getsockname()[1])) for flag in flags]
        assert cli.main(["serve", f"--model={tmp_path}", *flags]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line
