"""Benchmarks in their published layouts with plain gray pictures, and a model that looks its embeddings up."""

import functools
import json

import jax.numpy as jnp
import numpy as np

from mmjax.data import open_source as opening
from mmjax.data.eval_view import make_eval_chain, view_for_evaluation
from mmjax.evals.common.embedder import Embedder
from support.pictures import encoded

WIDTH = 12
TEXTS = 256  # rows of the table of texts

_CHAIN = make_eval_chain(None, image_size=2, resize="squash", modalities=("image",), background="white")


def plain(level):
    """The file of a picture of one gray level, by which the model knows it."""
    return encoded(np.full((6, 6, 3), level, np.uint8), "PNG")


def gray(path, level):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(plain(level))


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def open_source(split, **options):
    """A reader's pictures as evaluation sees them."""
    return view_for_evaluation(opening.open_source(options, split=split), _CHAIN, final_size=None)


class Lookup:
    """One token a text: the place of its first words among the texts that the model knows."""

    def __init__(self, texts, words):
        self.words = words
        self.ids = {text: i for i, text in enumerate(dict.fromkeys(map(self._cut, texts)))}

    def __call__(self, texts):
        return np.array([[self.ids[self._cut(text)]] for text in texts], np.int32)

    def is_truncated(self, texts):
        return np.array([len(text.split()) > self.words for text in texts], bool)

    def _cut(self, text):
        return " ".join(text.split()[: self.words])


class Planted:
    """Embeddings of gray levels and of texts; a text that was not planted is a KeyError."""

    def __init__(self, images, texts, *, words=99):
        self.tokenizer = Lookup(texts, words)
        self.params = {"image": np.zeros((256, WIDTH), np.float32), "text": np.zeros((TEXTS, WIDTH), np.float32)}
        for level, vector in images.items():
            self.params["image"][level] = vector
        for text, vector in texts.items():
            self.params["text"][self.tokenizer([text])[0, 0]] = vector  # of equal tokens the last one counts

    @classmethod
    def random(cls, levels, texts, *, seed=0, words=99):
        rng = np.random.default_rng(seed)
        draw = lambda keys: {key: rng.standard_normal(WIDTH) for key in dict.fromkeys(keys)}  # noqa: E731
        return cls(draw(levels), draw(texts), words=words)

    @classmethod
    def constant(cls, levels, texts):
        return cls(dict.fromkeys(levels, np.ones(WIDTH)), dict.fromkeys(texts, np.ones(WIDTH)))

    def image(self, level):
        """The unit float64 embedding of a picture."""
        return self._unit(self.params["image"][level])

    def text(self, text):
        return self._unit(self.params["text"][self.tokenizer([text])[0, 0]])

    def bind(self):
        embedder = _embedder()
        embedder.tokenizer = self.tokenizer
        return embedder.bind(self.params)

    @staticmethod
    def _unit(vector):
        return vector.astype(np.float64) / np.linalg.norm(vector.astype(np.float64))


@functools.cache
def _embedder():
    """Compiled once for all tests; only the parameters and the tokenizer change."""
    return Embedder(
        lambda params, images: params["image"][images["image"][:, 0, 0, 0].astype(jnp.int32)],
        lambda params, tokens: params["text"][tokens[:, 0]],
        tokenizer=Lookup((), 0),
        batch_size=8,
    )
