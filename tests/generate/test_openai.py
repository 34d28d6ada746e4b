"""The backend for services: order, retries, the cache, damaged answers, and where a key may not appear."""

import base64
import collections
import io
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from mmjax.core import plugins
from mmjax.core.config import ConfigError
from mmjax.data.pictures import decode
from mmjax.generate.backend import Box, Decoding, Failure, Message, Picture, PictureRequest, TextRequest
from mmjax.generate.backends import openai
from mmjax.generate.endpoint import client
from mmjax.generate.pixels import to_png
from support import generating, model_service
from support.model_service import reply, serve

KEY = "sk-secret-1234567890"
COLORS = {
    "type": "object",
    "properties": {"color": {"enum": ["red", "blue"]}, "sides": {"type": "integer", "minimum": 3}},
    "required": ["color"],
    "additionalProperties": False,
}
# What can go wrong with one answer that came with status 200, and the words of its failure.
DAMAGED = {
    "cut off": (reply("half a sen", reason="length"), "cut off"),
    "held back": (reply("", reason="content_filter"), "content_filter"),
    "refused": ((200, {"choices": [{"message": {"refusal": "no", "content": None}}]}, {}), "refused"),
    "empty": (reply(" \n"), "empty"),
    "no text": (reply(None), "empty"),
    "a number": (reply(7), "empty"),
    "no choices": ((200, {"choices": []}, {}), "choices"),
    "choices of text": ((200, {"choices": ["hello"]}, {}), "choices"),
    "no message": ((200, {"choices": [{"finish_reason": "stop"}]}, {}), "message"),
    "a list": ((200, [], {}), "choices"),
    "HTML": ((200, b"<html>busy</html>", {}), "not JSON"),
    "bad UTF-8": ((200, b'{"choices": "\xff"}', {}), "not JSON"),
    "half of it": ((200, b'{"choices": [{"mess', {}), "not JSON"),
    "a deep nest": ((200, b"[" * 100_000, {}), "not JSON"),
}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(client, "_FIRST_WAIT", 0.001)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def section(server, **options):
    return {"url": server.url, "model": "m", "cache": None, **options}


def writer(server, **options):
    return openai.Writer(**section(server, **options))


def requests(n):
    return [TextRequest([Message("user", f"item {i}")]) for i in range(n)]


def echo(path, asked, number):
    return reply(f"echo {asked['messages'][-1]['content']}")


def picture(seed=0, size=(8, 12)):
    return Picture(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def test_it_is_a_plug_in_whose_options_are_checked():
    good = {"name": "openai", "url": "localhost:8000", "model": "m"}
    for options, words in (
        ({}, ["models.a.url='localhost:8000'", "http://"]),
        ({"url": "http://u:p@host/v1"}, ["url", "password"]),
        ({"url": "http://host/v1?key=1"}, ["url"]),
        ({"url": "http://host:99999/v1"}, ["url"]),
        ({"concurency": 3}, ["concurency", "concurrency"]),
        ({"timeout": 0}, ["timeout=0"]),
    ):
        with pytest.raises(ConfigError) as caught:
            plugins.make("mmjax.generate.backends", "Writer", good | options, path="models.a")
        assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)
        assert "u:p" not in str(caught.value)


def test_answers_stand_in_the_order_of_the_items_whatever_the_service_does():
    faults = collections.Counter()

    def moody(path, asked, number):
        item = int(asked["messages"][-1]["content"].removeprefix("item "))
        time.sleep(0.005 * (item % 3))
        faults[item] += 1
        if item % 5 == 0 and faults[item] == 1:
            return 429, {"error": {"message": "slow down"}}, {"Retry-After": "0.01"}
        if item % 7 == 0 and faults[item] <= 2:
            return 500, b"<html>oops</html>", {}
        if item == 11 and faults[item] == 1:
            time.sleep(1.5)
        if item == 12 and faults[item] == 1:
            return 200, b"{", {"Content-Length": 1000}  # the connection ends early
        if item == 13:
            return 400, {"error": {"message": "too long"}}, {}
        return echo(path, asked, number)

    with serve(moody) as server:
        model = writer(server, concurrency=6, timeout=0.5)
        results = model.write(requests(40), Decoding(), range(40))
        assert results[13] == Failure("status 400 (too long)") and faults[13] == 1
        assert [r for i, r in enumerate(results) if i != 13] == [[f"echo item {i}"] for i in range(40) if i != 13]
        again = sum(2 if i % 7 == 0 else i % 5 == 0 or i in (11, 12) for i in range(40))
        assert len(server.requests) == model.requests == 40 + again


def test_no_more_requests_at_a_time_than_allowed():
    lock, now, most = threading.Lock(), 0, 0

    def count(path, asked, number):
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.02)
        with lock:
            now -= 1
        return reply("ok")

    with serve(count) as server:
        writer(server, concurrency=3).write(requests(12), Decoding(), range(12))
    assert most == 3


def test_a_recipe_asks_as_much_at_a_time_as_allowed(tmp_path):
    """More than its ``batch_size`` of 3: every answer waits until twelve are asked for."""
    together = threading.Barrier(12, timeout=20)

    def wait(path, asked, number):
        together.wait()
        return reply("a cat")

    with serve(wait) as server:
        section = {"name": "openai", "url": server.url, "model": "m", "concurrency": 12, "retries": 0, "cache": None}
        job = generating.make_job(
            tmp_path / "out", (("caption", {}),), {"captioner": section}, source={"size": 24}, shard=24
        )
        assert all(one.keep for one in generating.run(job))


def test_the_thoughts_of_a_model_are_no_part_of_its_reply():
    with serve(lambda *_: reply("<think>Red or blue?</think>\n\nred", "<think>so long")) as server:
        (failed,) = writer(server, retries=0).write(requests(1), Decoding(n=2), [0])
        assert failed == Failure("the reply is empty")
        assert writer(server).write(requests(1), Decoding(), [0]) == [["red"]]
    with serve(lambda *_: reply('<think>{"color": "blue"}</think>{"color": "red"}')) as server:
        assert writer(server).write(requests(1), Decoding(), [0], COLORS) == [['{"color": "red"}']]


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_answer_fails_its_item_alone_and_is_not_cached(name, tmp_path):
    answer, words = DAMAGED[name]

    def serve_one_badly(path, asked, number):
        return answer if asked["messages"][-1]["content"] == "item 1" else reply("fine")

    with serve(serve_one_badly) as server:
        model = writer(server, cache=str(tmp_path))
        first, second, third = model.write(requests(3), Decoding(), range(3))
        assert first == third == ["fine"]
        assert isinstance(second, Failure) and words in second.reason and "\n" not in second.reason
        model.write(requests(3), Decoding(), range(3))
        assert len(server.requests) == 4


def test_a_request_is_tried_a_set_number_of_times_and_a_dead_service_ends_the_run(monkeypatch):
    monkeypatch.setattr(client, "_MAX_LOST", 3)
    with serve(lambda *_: (503, {"detail": "loading"}, {})) as server:
        model = writer(server, retries=2, concurrency=1)
        assert model.write(requests(2), Decoding(), range(2)) == [Failure("status 503 (loading)")] * 2
        assert len(server.requests) == 6
        with pytest.raises(ConfigError, match=r"3 requests in a row failed, each 3 times.*503.*run the same command"):
            model.write(requests(1), Decoding(), [0])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        model = openai.Writer(url=url, model="m", cache=None, retries=1)
        with pytest.raises(
            ConfigError, match=r"url='http://127\.0\.0\.1:\d+/v1': no answer \(.*refused.*start the server"
        ):
            model.write(requests(1), Decoding(), [0])


@pytest.mark.parametrize("status", [401, 403, 404, 302])
def test_what_is_wrong_for_all_requests_ends_the_run_at_once_without_the_key(status, monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    elsewhere = {"Location": "http://127.0.0.1:1/v1/chat/completions"}
    with serve(lambda *_: (status, {"error": {"message": f"what is {KEY}?"}}, elsewhere)) as server:
        with pytest.raises(ConfigError, match=f"status {status}") as caught:
            writer(server, key_env="MY_KEY").write(requests(1), Decoding(), [0])
        assert KEY not in str(caught.value) and "***" in str(caught.value)
        assert [headers["Authorization"] for _, _, headers in server.requests] == [f"Bearer {KEY}"]


def test_after_an_end_the_process_does_not_wait_for_the_other_requests(monkeypatch):
    monkeypatch.setattr(client, "_FIRST_WAIT", 30)

    def answer(path, asked, number):
        return (500, b"", {}) if asked["messages"][-1]["content"] == "item 0" else (401, b"", {})

    with serve(answer) as server:
        model = writer(server)
        start = time.monotonic()
        with pytest.raises(ConfigError, match="status 401"):
            model.write(requests(2), Decoding(), range(2))
        model._pool.shutdown(wait=True)
        assert time.monotonic() - start < 5


def test_a_key_is_neither_logged_nor_cached_nor_shown(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("OPENAI_API_KEY", KEY + "\n")
    answers = iter([(500, {"error": KEY}, {}), (400, {"error": {"message": KEY}}, {}), reply("fine")])
    with caplog.at_level("DEBUG"), serve(lambda *_: next(answers)) as server:
        model = writer(server, cache=str(tmp_path / "cache"))
        [failed] = model.write(requests(1), Decoding(), [0])
        assert failed == Failure("status 400 (***)")
        assert model.write(requests(1), Decoding(), [0]) == [["fine"]]
        assert all(headers["Authorization"] == f"Bearer {KEY}" for _, _, headers in server.requests)
    stored = b"".join(path.read_bytes() for path in tmp_path.rglob("*.json"))
    assert b"fine" in stored and KEY.encode() not in stored
    assert "try 2 of 6" in caplog.text and KEY not in caplog.text and KEY not in repr(model)
    monkeypatch.setenv("OPENAI_API_KEY", "schlüssel")
    with pytest.raises(ConfigError, match="key_env='OPENAI_API_KEY'"):
        writer(server)


def test_what_was_answered_is_never_asked_again(tmp_path):
    with serve(echo) as server:
        model = writer(server, cache=str(tmp_path))
        first = model.write(requests(5), Decoding(n=2, temperature=0.5), range(5))
        sent = model.requests
        for other in (
            model,
            writer(server, cache=str(tmp_path)),
            openai.Writer(**section(server, cache=str(tmp_path))),
        ):
            before = other.requests
            assert other.write(requests(5), Decoding(n=2, temperature=0.5), range(5)) == first
            assert other.requests == before
        assert len(server.requests) == sent
        # Anything that an answer depends on makes a request.
        changed = [
            (model, Decoding(n=2, temperature=0.6), [0], None),
            (model, Decoding(n=1, temperature=0.5), [0], None),
            (model, Decoding(n=2, temperature=0.5), [100], None),
            (writer(server, cache=str(tmp_path), model="other"), Decoding(n=2, temperature=0.5), [0], None),
            (writer(server, cache=str(tmp_path), revision="2"), Decoding(n=2, temperature=0.5), [0], None),
            (writer(server, cache=str(tmp_path), body={"seed": None}), Decoding(n=2, temperature=0.5), [7], None),
            (writer(server, cache=str(tmp_path), body={"seed": None}), Decoding(n=2, temperature=0.5), [8], None),
        ]
        for other, decoding, seeds, schema in changed:
            before = len(server.requests)
            other.write(requests(1), decoding, seeds, schema)
            assert len(server.requests) > before


def test_a_damaged_cache_is_asked_around(tmp_path):
    with serve(echo) as server:
        model = writer(server, cache=str(tmp_path))
        model.write(requests(1), Decoding(), [0])
        [path] = tmp_path.rglob("*.json")
        good = path.read_bytes()
        for content in (b"", good[:-3], good.replace(b"echo", b"ecko"), b"[]", b"\xff", b"[" * 100_000):
            path.write_bytes(content)
            assert model.write(requests(1), Decoding(), [0]) == [["echo item 0"]]
        assert len(server.requests) == 7
    blocked = tmp_path / "file"
    blocked.touch()
    with pytest.raises(ConfigError, match=r"cache='.*file'.*None"):
        writer(server, cache=str(blocked)).write(requests(1), Decoding(), [0])


def test_several_writers_share_a_cache(tmp_path):
    expected = [[f"echo item {i}"] for i in range(12)]
    with serve(echo) as server, ThreadPoolExecutor(4) as pool:
        models = [writer(server, cache=str(tmp_path)) for _ in range(4)]
        for _ in range(3):
            assert list(pool.map(lambda m: m.write(requests(12), Decoding(), range(12)), models)) == [expected] * 4
        assert 12 <= len(server.requests) <= 48
    assert len(list(tmp_path.rglob("*.json"))) == 12 and not list(tmp_path.rglob("*.tmp"))


def test_decoding_reaches_the_service_and_fields_can_be_changed():
    decoding = Decoding(n=3, temperature=0, top_k=5, top_p=0.9, min_tokens=2, max_tokens=30)
    with serve(lambda path, asked, number: reply(*"abc")) as server:
        assert writer(server).write(requests(1), decoding, [2**40 + 3]) == [["a", "b", "c"]]
        body = {"max_tokens": None, "max_completion_tokens": 30, "seed": None}
        writer(server, body=body).write(requests(1), decoding, [3])
        writer(server).write(requests(1), Decoding(), [3])
        asked = [asked for _, asked, _ in server.requests]
    common = {"model": "m", "messages": [{"role": "user", "content": "item 0"}]}
    sampling = {"n": 3, "temperature": 0, "top_k": 5, "top_p": 0.9, "min_tokens": 2}
    assert asked[0] == common | sampling | {"max_tokens": 30, "seed": 3}
    assert asked[1] == common | sampling | {"max_completion_tokens": 30}
    assert asked[2] == common | {"seed": 3}
    with pytest.raises(ConfigError, match="beams=4"):
        writer(server).write(requests(1), Decoding(beams=4), [0])


def test_a_service_that_gives_one_reply_is_asked_for_the_others_with_other_seeds():
    with serve(lambda path, asked, number: reply(f"seed {asked['seed']}")) as server:
        assert writer(server).write(requests(1), Decoding(n=3), [7]) == [["seed 7", "seed 8", "seed 9"]]


def test_replies_follow_their_schema_or_fail():
    replies = ['```json\n{"color": "red"}\n```', '{"color": "green"}', "red", '{"color": "red", "sides": 3.5}', "{}"]
    with serve(lambda path, asked, number: reply(replies[int(asked["messages"][0]["content"][5:])])) as server:
        results = writer(server).write(requests(5), Decoding(), range(5), COLORS)
        assert server.requests[0][1]["response_format"]["json_schema"]["schema"] == COLORS
        with pytest.raises(ConfigError, match=r"schema\.oneOf"):
            writer(server).write(requests(1), Decoding(), [0], {"oneOf": []})
    assert results[0] == ['{"color": "red"}']
    assert "not one of" in results[1].reason and "not JSON" in results[2].reason
    assert "sides" in results[3].reason and "color is missing" in results[4].reason


def test_pictures_go_with_their_messages():
    with serve(lambda path, asked, number: reply("a picture")) as server:
        model = openai.Captioner(**section(server, prompt="What is it?"))
        assert model.caption([picture(0), picture(1)], [None, "Color?"], Decoding(), [0, 1]) == [["a picture"]] * 2
        asked = sorted((asked["messages"][0]["content"] for _, asked, _ in server.requests), key=lambda c: c[0]["text"])
    assert [content[0]["text"] for content in asked] == ["Color?", "What is it?"]
    for content, sent in zip(asked, (picture(1), picture(0)), strict=True):
        head, _, data = content[1]["image_url"]["url"].partition(",")
        assert head == "data:image/png;base64"
        np.testing.assert_array_equal(decode(base64.b64decode(data)), sent.pixels)


def images(*pictures):
    return 200, {"data": [{"b64_json": base64.b64encode(to_png(p)).decode()} for p in pictures]}, {}


def test_images_are_made_edited_and_pasted_back(tmp_path):
    made = picture(9, (16, 16))
    original, mask = picture(1), np.zeros((8, 12), bool)
    mask[2:5, 3:7] = True
    asked_for = [
        PictureRequest("text", "a cat", size=(4, 6), steps=3, guidance=7.5),
        PictureRequest("image", "a cat in snow", picture=original, strength=0.5),
        PictureRequest("inpaint", "a dog", picture=original, mask=mask),
        PictureRequest("text", "a bird"),
    ]
    with serve(lambda *_: images(made)) as server:
        model = openai.ImageGenerator(**section(server, cache=str(tmp_path)))
        results = model.make(asked_for, range(4))
        sent = {asked["prompt"]: (path, asked) for path, asked, _ in server.requests}
        again = model.make(asked_for, range(4))
        assert len(server.requests) == 4
        with pytest.raises(ConfigError, match="layout"):
            model.make([PictureRequest("layout", "a", boxes=[Box(0, 0, 1, 1, "a", 1)])], [0])
    assert [r.pixels.shape for r in results] == [(4, 6, 3), (8, 12, 3), (8, 12, 3), (16, 16, 3)]
    for one, other in zip(results, again, strict=True):
        np.testing.assert_array_equal(one.pixels, other.pixels)
    np.testing.assert_array_equal(results[2].pixels[~mask], original.pixels[~mask])
    assert (results[2].pixels[mask] != original.pixels[mask]).any()
    path, body = sent["a cat"]
    assert path == "/v1/images/generations" and body["size"] == "6x4"
    assert (body["num_inference_steps"], body["guidance_scale"], body["seed"]) == (3, 7.5, 0)
    path, form = sent["a dog"]
    assert path == "/v1/images/edits" and form["model"] == "m" and form["seed"] == "2"
    np.testing.assert_array_equal(decode(form["image"]), original.pixels)
    alpha = np.asarray(Image.open(io.BytesIO(form["mask"])))[..., 3]
    np.testing.assert_array_equal(alpha == 0, mask)


NO_PICTURES = {
    "a URL": [{"url": "http://x/y.png"}],
    "none": [],
    "not base64": [{"b64_json": "?"}],
    "other bytes": [{"b64_json": base64.b64encode(b"no picture").decode()}],
}


@pytest.mark.parametrize("name", NO_PICTURES)
def test_what_is_no_picture_fails_its_request_and_is_not_cached(name, tmp_path):
    with serve(lambda *_: (200, {"data": NO_PICTURES[name]}, {})) as server:
        model = openai.ImageGenerator(**section(server, cache=str(tmp_path)))
        [result] = model.make([PictureRequest("text", "a cat")], [0])
        assert isinstance(result, Failure)
        model.make([PictureRequest("text", "a cat")], [0])
        assert len(server.requests) == 2


def test_the_stub_reads_forms():
    body, kind = openai._form({"n": 1, "prompt": "é"}, {"image": b"\r\n--x"})
    assert model_service.read_form(kind, body) == {"n": "1", "prompt": "é", "image": b"\r\n--x"}
