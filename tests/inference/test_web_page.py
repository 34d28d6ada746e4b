"""The page of ``mmjax serve``: what it answers is what the model says, whatever it is sent."""

import base64
import io
import json
import re
import struct
import zlib

import jax
import numpy as np
import pytest
from PIL import Image

import mmjax
from mmjax.core.config import ConfigError
from mmjax.inference.embedding_store import open_store
from mmjax.inference.local_server import RefusedRequest
from mmjax.inference.search import Searcher
from mmjax.inference.web_page import WebPage
from support import models_in_use, pictures

HOSTILE = "<img src=x onerror=alert(1)>\u202e\x1b[31m.jpg"
LABELS = ["circle", "ring", "a red square"]


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    return models_in_use.write(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(spec):
    return mmjax.load(spec, devices=jax.devices()[:1], batch_size=16)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Ten photographs, the last two of the same bytes, in a folder."""
    folder = tmp_path_factory.mktemp("photographs")
    for i, name in enumerate([HOSTILE, *(f"{i}.jpg" for i in range(1, 10))]):
        picture = pictures.photograph(300, 40 * (i % 9) + 200, seed=i % 9)
        (folder / name).write_bytes(pictures.encoded(picture))
    return folder


@pytest.fixture(scope="module")
def searcher(spec, files, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "embeddings"
    return Searcher(open_store(models_in_use.embed(spec, files, out)))


@pytest.fixture(scope="module")
def page(model, searcher):
    return WebPage(model, title=HOSTILE, searcher=searcher, max_bytes=1 << 20)


def asked(picture, **request):
    return {"picture": base64.b64encode(picture).decode(), **request}


def test_a_picture_gets_its_probabilities_and_neighbors(model, files, page):
    answer = json.loads(
        json.dumps(
            page.classify(asked((files / "3.jpg").read_bytes(), labels=LABELS, template="a {}")), allow_nan=False
        )
    )
    expected = model.classify([(files / "3.jpg").read_bytes()], LABELS, templates=["a {}"])[0]
    order = np.argsort(-expected)
    assert [row["label"] for row in answer["probabilities"]] == [LABELS[i] for i in order]
    np.testing.assert_allclose([row["probability"] for row in answer["probabilities"]], expected[order], atol=1e-6)
    best = answer["nearest"][0]
    assert (best["rank"], best["id"], best["path"]) == (1, "2", "3.jpg")
    cosines = [match["cosine"] for match in answer["nearest"]]
    assert len(cosines) == 10 and cosines == sorted(cosines, reverse=True)
    assert best["cosine"] == pytest.approx(1, abs=1e-5)


def test_a_text_gets_its_neighbors(model, files, page):
    answer = page.search({"query": "a red square"})
    cosines = model.similarity(sorted(files.glob("*.jpg")), ["a red square"])[:, 0]
    np.testing.assert_allclose([match["cosine"] for match in answer["nearest"]], -np.sort(-cosines), atol=1e-6)
    assert answer["nearest"][0]["id"] == str(cosines.argmax())


def test_a_hostile_name_is_text_and_a_picture_that_is_gone_has_a_reason(files, page):
    picture = (files / HOSTILE).read_bytes()
    page.classify(asked(picture))  # opens the source
    (files / "9.jpg").unlink()
    first, second = sorted(page.classify(asked(picture))["nearest"][:2], key=lambda match: match["path"])
    assert second["path"] == "<img src=x onerror=alert(1)>\\u202e\\x1b[31m.jpg"
    assert first["path"] == "9.jpg" and first["problem"] == "missing file" and "picture" not in first
    header, _, data = second["picture"].partition(",")
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert header == "data:image/jpeg;base64" and image.size == (149, 224)
    html = page.files()["/"].content.decode()
    assert "<img src=x" not in html and "&lt;img src=x" in html and "\u202e" not in html


def test_the_page_loads_nothing_from_elsewhere_and_has_no_inline_code(page):
    files = {path: file.content.decode() for path, file in page.files().items()}
    assert set(files) == {"/", "/page.css", "/page.js"}
    addresses = re.findall(r'(?:src|href)="([^"]*)"', files["/"])
    assert sorted(addresses) == ["/page.css", "/page.js", "data:,"]
    tags = " ".join(re.findall("<[^>]*>", files["/"]))
    assert not re.search(r"<script>|<style>| on\w+=| style=", tags) and "url(" not in files["/page.css"]
    assert "innerHTML" not in files["/page.js"] and "http" not in files["/page.js"]
    for name in ("file", "labels", "template", "query"):  # each field has a label
        assert re.search(rf'<label[^>]*for="{name}"|<label class="drop"', files["/"])


def bomb(width, height):
    """The header of a PNG file of that size, and nothing after it."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    return b"\x89PNG\r\n\x1a\n" + chunk + b"\0\0\0\0IDAT"


@pytest.mark.parametrize(
    ("request_", "status", "message"),
    [
        ({}, 400, "choose a picture"),
        ({"picture": ""}, 400, "choose a picture; an empty file is none"),
        ({"picture": 5}, 400, "choose a picture"),
        ({"picture": "/etc/passwd"}, 400, "not base64"),
        ({"picture": "ü"}, 400, "not base64"),
        (asked(b"x" * ((1 << 20) + 1)), 413, "larger than 1 MiB"),
        (asked(b"%PDF-1.4 not a picture"), 422, "this picture cannot be used: corrupt image"),
        (asked(b"/etc/passwd"), 422, "this picture cannot be used: corrupt image"),
        (asked(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), 422, "corrupt image"),
        (asked(bomb(20_000, 8_000)), 413, "image too large (20000 x 8000 pixels, more than 100,000,000)"),
        (asked(bomb(60_000, 60_000)), 413, "image too large"),
        (asked(pictures.encoded(pictures.photograph(64, 64))[:900]), 422, "truncated image"),
        (asked(b"", labels="cat"), 400, "choose a picture"),
        (asked(b"x", labels="cat"), 400, "labels are a list"),
        (asked(b"x", labels=[1]), 400, "a label is a text"),
        (asked(b"x", labels=["x" * 2000]), 400, "a label is a text of at most 1000"),
        (asked(b"x", labels=["x"] * 2000), 400, "at most 1000 texts"),
        (asked(b"x", labels=["x"], template="a photo"), 400, "no {}"),
        (asked(b"x", labels=["x"], template=None), 400, "a template is a text"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_a_request_that_cannot_be_answered_is_refused_in_one_line(page, request_, status, message):
    with pytest.raises(RefusedRequest, match=re.escape(message)) as refusal:
        page.classify(request_)
    assert refusal.value.status == status and "\n" not in str(refusal.value)


@pytest.mark.parametrize("query", [None, 5, "", "  ", "x" * 2000])
def test_a_query_that_is_none_is_refused(page, query):
    with pytest.raises(RefusedRequest):
        page.search({"query": query})


def test_surrogates_and_empty_labels_do_no_harm(page, files):
    assert page.search({"query": "red \ud800"})["nearest"]
    answer = page.classify(asked((files / HOSTILE).read_bytes(), labels=[" ", "cat", "cat", "\ud800"]))
    assert {row["label"] for row in answer["probabilities"]} == {"cat", "?"}


def test_without_embeddings_it_classifies_alone(model, files):
    page = WebPage(model, title="runs/x", max_bytes=1 << 20)
    assert set(page.actions()) == {"/classify"} and 'id="query"' not in page.files()["/"].content.decode()
    assert set(page.classify(asked((files / HOSTILE).read_bytes(), labels=["cat"]))) == {"probabilities", "seconds"}
    with pytest.raises(RefusedRequest, match="type at least one label"):
        page.classify(asked((files / HOSTILE).read_bytes(), labels=[" "]))


def test_a_model_without_texts_searches_alone(model, searcher, monkeypatch):
    monkeypatch.setattr(model, "_tokenizer", ConfigError("no tokenizer belongs to these weights"))
    html = WebPage(model, title="x", searcher=searcher, max_bytes=1).files()["/"].content.decode()
    assert 'id="labels"' not in html and 'id="query"' not in html and 'id="file"' in html
    with pytest.raises(ConfigError, match="give --in=EMBEDDINGS"):
        WebPage(model, title="x", max_bytes=1)


def test_one_request_at_a_time_uses_the_model(page, files, monkeypatch):
    encode = page._model.encode_image

    def check_alone(images):
        assert page._device.locked()
        return encode(images)

    monkeypatch.setattr(page._model, "encode_image", check_alone)
    page.classify(asked((files / HOSTILE).read_bytes()))
    assert not page._device.locked()
