"""What the page of ``mmjax serve`` shows and answers: probabilities of labels, and the nearest pictures."""

from __future__ import annotations

import base64
import binascii
import functools
import threading
import time
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.core.config import ConfigError
from mmjax.core.printable import printable
from mmjax.data.pictures import size_of
from mmjax.data.sample import Unreadable
from mmjax.inference.local_server import Action, File, RefusedRequest
from mmjax.inference.model import Model
from mmjax.inference.search import Searcher
from mmjax.report.page import STYLE, load_template

MAX_PIXELS = 100_000_000
MAX_LABELS = 1000
MAX_CHARACTERS = 1000  # of a text
NEAREST = 12
_FORMATS = "JPEG, PNG, WebP and others"


class WebPage:
    """The files and actions of the page.

    Args:
        model: Embeds pictures and texts; one request at a time uses it.
        title: What the page is called.
        searcher: The embeddings that are searched; None: the page classifies alone.
        max_bytes: Of a picture.
    """

    def __init__(self, model: Model, *, title: str, searcher: Searcher | None = None, max_bytes: int):
        self._model, self._searcher, self._max_bytes = model, searcher, max_bytes
        self._title = title
        self._device = threading.Lock()
        self._has_texts = self._warm_up()
        if not self._has_texts and searcher is None:
            raise ConfigError("the model has no texts, so that there is nothing to ask; give --in=EMBEDDINGS to search")
        # The same labels are asked for every picture.
        self._encode_labels = functools.lru_cache(8)(
            lambda labels, template: model.encode_labels(labels, templates=[template])
        )

    @property
    def max_body_bytes(self) -> int:
        """Of a request with a picture in base64 and the texts."""
        return self._max_bytes * 4 // 3 + 4 * MAX_LABELS * MAX_CHARACTERS

    def _warm_up(self) -> bool:
        """Compiles the towers before the first request; returns whether there is one for texts."""
        self._model.encode_image([np.zeros((8, 8, 3), np.uint8)])
        try:
            self._model.encode_text(["a"])
        except ConfigError:
            return False
        return True

    def wait(self, seconds: float) -> None:
        """Lets the request that uses the model end."""
        if self._device.acquire(timeout=seconds):
            self._device.release()

    def files(self) -> dict[str, File]:
        """The page, its style and its script."""
        folder = Path(__file__).parent
        size = self._model.config.vision_cfg.image_size
        highlights = [("picture size", f"{size} px"), ("embedding", str(self._model.config.embed_dim))]
        if self._searcher is not None:
            highlights.append(("searched pictures", f"{len(self._searcher):,}"))
        page = load_template("serve.html.j2", folder).render(
            title=printable(self._title),
            highlights=highlights,
            embeddings=self._searcher is not None,
            texts=self._has_texts,
            formats=_FORMATS,
            max_bytes=self._max_bytes,
            max_mib=f"{self._max_bytes / 2**20:.3g}",
            max_labels=MAX_LABELS,
        )
        style = "".join(path.read_text() for path in (STYLE, folder / "matches.css", folder / "serve.css"))
        return {
            "/": File("text/html; charset=utf-8", page.encode()),
            "/page.css": File("text/css; charset=utf-8", style.encode()),
            "/page.js": File("text/javascript; charset=utf-8", (folder / "serve.js").read_bytes()),
        }

    def actions(self) -> dict[str, Action]:
        """What the page's forms ask for."""
        return {"/classify": self.classify} | ({} if self._searcher is None else {"/search": self.search})

    def classify(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The labels by their probability, and the pictures nearest to ``request["picture"]``."""
        began = time.monotonic()
        picture = _picture(request.get("picture"), self._max_bytes)
        labels = _labels(request.get("labels", []))
        template = _text(request.get("template", "{}"), "template")
        if labels and "{}" not in template:
            raise RefusedRequest(HTTPStatus.BAD_REQUEST, "the prompt has no {}, where the label goes")
        if not labels and self._searcher is None:
            raise RefusedRequest(HTTPStatus.BAD_REQUEST, "type at least one label")
        answer: dict[str, Any] = {}
        try:
            _check_pixels(picture)
            with self._device:
                embeddings = self._model.encode_image([picture])
                if labels:
                    values = self._model.probabilities(embeddings, self._encode_labels(labels, template))[0]
                    order = np.argsort(-values, kind="stable")
                    answer["probabilities"] = [
                        {"label": printable(labels[i]), "probability": float(values[i])} for i in order
                    ]
        except Unreadable as error:
            too_large = error.reason == "image too large"
            status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE if too_large else HTTPStatus.UNPROCESSABLE_ENTITY
            detail = f" ({error.detail})" if error.detail else ""
            raise RefusedRequest(status, f"this picture cannot be used: {error.reason}{detail}") from None
        except ConfigError as error:
            raise RefusedRequest(HTTPStatus.BAD_REQUEST, str(error)) from None
        return answer | self._nearest(embeddings[0]) | {"seconds": time.monotonic() - began}

    def search(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The pictures nearest to the text ``request["query"]``."""
        began = time.monotonic()
        query = _text(request.get("query"), "query")
        if not query.strip():
            raise RefusedRequest(HTTPStatus.BAD_REQUEST, "type what the picture shows")
        try:
            with self._device:
                embeddings = self._model.encode_text([query])
        except ConfigError as error:
            raise RefusedRequest(HTTPStatus.BAD_REQUEST, str(error)) from None
        return self._nearest(embeddings[0]) | {"seconds": time.monotonic() - began}

    def _nearest(self, embedding: np.ndarray) -> dict[str, Any]:
        if self._searcher is None:
            return {}
        return {"nearest": self._searcher.show(self._searcher.find(embedding, count=NEAREST))}


def _picture(value: Any, max_bytes: int) -> bytes:
    if not isinstance(value, str) or not value:
        raise RefusedRequest(HTTPStatus.BAD_REQUEST, "choose a picture; an empty file is none")
    try:
        picture = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise RefusedRequest(HTTPStatus.BAD_REQUEST, "the picture is not base64") from None
    if len(picture) > max_bytes:
        limit = max_bytes / 2**20
        raise RefusedRequest(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the picture is larger than {limit:.3g} MiB")
    return picture


def _check_pixels(picture: bytes) -> None:
    """Raises for a picture that would fill the memory, judged by its header."""
    height, width = size_of(picture)
    if height * width > MAX_PIXELS:
        detail = f"{width} x {height} pixels, more than {MAX_PIXELS:,}"
        raise Unreadable("image too large", detail)


def _labels(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > MAX_LABELS:
        raise RefusedRequest(HTTPStatus.BAD_REQUEST, f"labels are a list of at most {MAX_LABELS} texts")
    labels: Sequence[str] = [_text(label, "label") for label in value]
    return tuple(dict.fromkeys(label for label in labels if label.strip()))


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or len(value) > MAX_CHARACTERS:
        raise RefusedRequest(HTTPStatus.BAD_REQUEST, f"a {name} is a text of at most {MAX_CHARACTERS} characters")
    return value.encode(errors="replace").decode()  # without surrogates, which no tokenizer takes
