"""Models behind a URL that speaks OpenAI's interface: vLLM, SGLang, llama.cpp, Ollama, or OpenAI itself."""

from __future__ import annotations

import base64
import dataclasses
import functools
import json
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, TypeVar

from mmjax.core.config import ConfigError, Ge, Gt
from mmjax.data.pictures import decode
from mmjax.generate.backend import Decoding, Failure, Message, Picture, PictureRequest, TextRequest
from mmjax.generate.endpoint.cache import AnswerCache, request_key
from mmjax.generate.endpoint.client import Client, RequestFailed
from mmjax.generate.json_schema import check_schema, read_reply
from mmjax.generate.parsers import without_thoughts
from mmjax.generate.pixels import digest, paste_outside, resize, to_png

T = TypeVar("T")

_SEEDS = 1 << 31  # what every server takes


@dataclasses.dataclass(kw_only=True)
class Service:
    """A model behind a URL.

    Items are asked for side by side, and a request that fails in passing (408, 429, 5xx, time-outs, closed connections)
    is tried again after the time that the service names, or after a wait that doubles. Answers that were cut off, are
    malformed or break their schema fail their item. A wrong key, model or URL, and a service that is down, end the run;
    what was answered is in the cache by then.

    Args:
      url: the base of all paths, such as ``http://localhost:8000/v1``.
      model: the model's name there.
      revision: whatever tells versions of the model apart; part of the cache's keys.
      key_env: the environment variable with the key; without a value requests carry no key.
      concurrency: requests at a time.
      timeout: seconds for one answer.
      retries: of one request, after its first try.
      cache: the folder of answers by request and seed; None asks for everything again.
      body: fields of every request besides, or None for one that the service does not take: ``{"seed": None}``.
    """

    url: str
    model: str
    revision: str = ""
    key_env: str = "OPENAI_API_KEY"
    concurrency: Annotated[int, Ge(1)] = 8
    timeout: Annotated[float, Gt(0)] = 120.0
    retries: Annotated[int, Ge(0)] = 5
    cache: str | None = "~/.cache/mmjax/answers"
    body: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        key = os.environ.get(self.key_env, "").strip()
        if not key.isascii() or not key.isprintable():
            raise ConfigError(f"key_env={self.key_env!r}: the variable holds no key; keys are printable ASCII")
        self._client = Client(self.url, key=key or None, timeout=self.timeout, tries=self.retries + 1)

    @functools.cached_property
    def _answers(self) -> AnswerCache:
        return AnswerCache(self.cache)

    @functools.cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.concurrency, thread_name_prefix="mmjax-requests")

    @property
    def requests(self) -> int:
        """How many requests were sent, tries included; answers from the cache are none."""
        return self._client.requests

    def _each(self, ask: Callable[[Any, int], T], items: Sequence[Any], seeds: Sequence[int]) -> list[T | Failure]:
        """What ``ask`` makes of each item and seed, side by side; its errors stand in the place of their item."""

        def isolated(item: Any, seed: int) -> T | Failure:
            try:
                return ask(item, seed)
            except ConfigError:
                self._client.cancel()  # or the items before it would wait for their next tries
                raise
            except (RequestFailed, ValueError) as error:  # Unreadable is one
                return Failure(str(error))

        if len(items) != len(seeds):
            raise ValueError(f"{len(items)} items, {len(seeds)} seeds")
        self._client.resume()
        try:
            return list(self._pool.map(isolated, items, seeds))
        except BaseException:
            self._client.cancel()  # the process ends when its threads do
            raise

    def _post_json(self, path: str, body: Mapping[str, Any]) -> Any:
        return self._client.post(path, json.dumps(body).encode())

    def _key(self, kind: str, seed: int, body: Mapping[str, Any], **more: Any) -> str:
        return request_key(kind=kind, revision=self.revision, seed=seed, body=body, **more)


@dataclasses.dataclass(kw_only=True)
class Writer(Service):
    """Continues conversations, by chat; the options are those of ``Service``."""

    def write(
        self,
        requests: Sequence[TextRequest],
        decoding: Decoding,
        seeds: Sequence[int],
        schema: Mapping[str, Any] | None = None,
    ) -> list[list[str] | Failure]:
        """``decoding.n`` replies to each request."""
        if schema is not None:
            check_schema(schema)
        if decoding.beams is not None:
            raise ConfigError(f"decoding.beams={decoding.beams}: services sample; leave it out, or use the backend hf")
        conversations = [request.messages for request in requests]
        return self._each(lambda messages, seed: self._chat(messages, seed, decoding, schema), conversations, seeds)

    def _chat(
        self, conversation: Sequence[Message], seed: int, decoding: Decoding, schema: Mapping[str, Any] | None
    ) -> list[str]:
        form = None if schema is None else {"type": "json_schema", "json_schema": {"name": "reply", "schema": schema}}
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": m.role, "content": _content(m)} for m in conversation],
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
            "top_k": decoding.top_k,
            "min_tokens": decoding.min_tokens,
            "max_tokens": decoding.max_tokens,
            "response_format": form,
            "seed": seed % _SEEDS,
        }
        body = {name: value for name, value in {**body, **self.body}.items() if value is not None}
        seen = [[m.role, m.text, None if m.picture is None else digest(m.picture)] for m in conversation]
        key = self._key("chat", seed, body | {"messages": seen}, n=decoding.n, schema=schema)
        if (texts := self._answers.get(key)) is not None:
            return texts
        texts = []
        while len(texts) < decoding.n:  # some servers give one reply, however many are asked for
            left = decoding.n - len(texts)
            answer = self._post_json("/chat/completions", body | ({"n": left} if left > 1 else {}))
            texts += [_reply(choice, schema) for choice in _list(answer, "choices")[:left]]
            if "seed" in body:
                body["seed"] = (seed + len(texts)) % _SEEDS
        self._answers.put(key, texts)
        return texts


@dataclasses.dataclass(kw_only=True)
class Captioner(Writer):
    """Describes pictures, by chat with a vision part; the options are those of ``Service``.

    Args:
      prompt: asks for the caption of a picture that comes without a prompt.
    """

    prompt: str = "Describe this picture in one sentence."

    def caption(
        self, pictures: Sequence[Picture], prompts: Sequence[str | None], decoding: Decoding, seeds: Sequence[int]
    ) -> list[list[str] | Failure]:
        """``decoding.n`` texts a picture."""
        texts = (self.prompt if prompt is None else prompt for prompt in prompts)
        requests = [TextRequest([Message("user", t, p)]) for t, p in zip(texts, pictures, strict=True)]
        return self.write(requests, decoding, seeds)


@dataclasses.dataclass(kw_only=True)
class ImageGenerator(Service):
    """Makes and edits pictures, by ``images/generations`` and ``images/edits``; the options are those of ``Service``.

    Args:
      image_size: what the service makes, such as ``1024x1024``, if it knows few sizes; results are resized.
    """

    image_size: str | None = None

    def make(self, requests: Sequence[PictureRequest], seeds: Sequence[int]) -> list[Picture | Failure]:
        """One picture a request."""
        for request in requests:
            if request.mode == "layout":
                raise ConfigError("mode='layout': OpenAI's interface places no boxes; use the backend hf with GLIGEN")
        return self._each(self._make, requests, seeds)

    def _make(self, request: PictureRequest, seed: int) -> Picture:
        original, size = request.picture, request.size
        if size is None and original is not None:
            size = original.pixels.shape[:2]
        fields = {
            "model": self.model,
            "prompt": request.prompt,
            "n": 1,
            "size": self.image_size or (size and f"{size[1]}x{size[0]}"),
            "response_format": "b64_json",
            "guidance_scale": request.guidance,
            "image_guidance_scale": request.image_guidance,
            "strength": request.strength,
            "num_inference_steps": request.steps,
            "seed": seed % _SEEDS,
        }
        fields = {name: value for name, value in {**fields, **self.body}.items() if value is not None}
        mask = None if request.mask is None else digest(Picture(request.mask))
        seen = None if original is None else digest(original)
        key = self._key(request.mode, seed, fields, size=size, picture=seen, mask=mask)
        answers = self._answers.get(key)
        data = base64.b64decode(answers[0] if answers else self._ask_picture(request, fields), validate=True)
        made = Picture(decode(data))
        if not answers:
            self._answers.put(key, [base64.b64encode(data).decode()])
        if request.mode == "inpaint":
            assert original is not None and request.mask is not None
            made = paste_outside(made, original, request.mask)
        return made if size is None else resize(made, size)

    def _ask_picture(self, request: PictureRequest, fields: Mapping[str, Any]) -> str:
        if request.mode == "text":
            answer = self._post_json("/images/generations", fields)
        else:
            if request.picture is None:
                raise ValueError(f"mode {request.mode!r} needs a picture")
            files = {"image": to_png(request.picture)}
            if request.mode == "inpaint":
                if request.mask is None:
                    raise ValueError("mode 'inpaint' needs a mask")
                # Where the mask is transparent the service may change the picture.
                files["mask"] = to_png(request.picture, opacity=(~request.mask * 255).astype("uint8"))
            answer = self._client.post("/images/edits", *_form(fields, files))
        encoded = _list(answer, "data")[0].get("b64_json")
        if not isinstance(encoded, str):
            raise ValueError("the answer holds no b64_json")
        return encoded


def _content(message: Message) -> str | list[dict[str, Any]]:
    if message.picture is None:
        return message.text
    url = f"data:image/png;base64,{base64.b64encode(to_png(message.picture)).decode()}"
    return [{"type": "text", "text": message.text}, {"type": "image_url", "image_url": {"url": url}}]


def _list(answer: Any, name: str) -> list[dict[str, Any]]:
    values = answer.get(name) if isinstance(answer, dict) else None
    if not isinstance(values, list) or not values or not all(isinstance(value, dict) for value in values):
        raise ValueError(f"the answer holds no {name}")
    return values


def _reply(choice: Mapping[str, Any], schema: Mapping[str, Any] | None) -> str:
    """The text of a reply; raises ValueError if it was cut off or is not what was asked for."""
    reason, message = choice.get("finish_reason"), choice.get("message")
    if reason == "length":
        raise ValueError("the reply was cut off (finish_reason=length); raise max_tokens")
    if reason == "content_filter":
        raise ValueError("the service held the reply back (finish_reason=content_filter)")
    if not isinstance(message, dict) or message.get("refusal"):
        raise ValueError("the model refused" if isinstance(message, dict) else "the answer holds no message")
    content = message.get("content")
    text = without_thoughts(content) if isinstance(content, str) else ""
    if not text:
        raise ValueError("the reply is empty")
    return text if schema is None else read_reply(text, schema)


def _form(fields: Mapping[str, Any], files: Mapping[str, bytes]) -> tuple[bytes, str]:
    """A body of multipart/form-data, and its content type."""
    boundary = secrets.token_hex(16)
    body = b""
    for name, value in fields.items():
        text = value if isinstance(value, str) else json.dumps(value)
        body += f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{text}\r\n'.encode()
    for name, data in files.items():
        head = f'Content-Disposition: form-data; name="{name}"; filename="{name}.png"\r\nContent-Type: image/png'
        body += f"--{boundary}\r\n{head}\r\n\r\n".encode() + data + b"\r\n"
    return body + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"
