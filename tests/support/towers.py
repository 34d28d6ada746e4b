"""A linear two-tower model over tiny sources, small enough to follow by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mmjax.data import source
from mmjax.evals.common.embedder import Embedder

WIDTH = 8


def data_sharding(devices=8):
    mesh = jax.make_mesh((devices // 2, 2), ("data", "fsdp"), (AxisType.Auto,) * 2, devices=jax.devices()[:devices])
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


class Source(list, source.Source):
    """A list of examples as a data source."""


@dataclasses.dataclass
class Tokenizer:
    """Bytes of the text, cut at ``context_length``."""

    context_length: int = 40
    calls: int = 0

    def __call__(self, texts):
        self.calls += 1
        out = np.zeros((len(texts), self.context_length), np.int32)
        for row, text in enumerate(texts):
            codes = list(text.encode())[: self.context_length]
            out[row, : len(codes)] = codes
        return out


class Towers:
    """Random linear maps of pixels and of letter counts; counts how often each is traced."""

    def __init__(self, pixels=12, seed=0):
        rng = np.random.default_rng(seed)
        self.params = {
            "image": rng.standard_normal((pixels, WIDTH)).astype(np.float32),
            "text": rng.standard_normal((128, WIDTH)).astype(np.float32),
        }
        self.traces = {"image": 0, "text": 0}
        self.dtype = jnp.float32

    def images(self, params, images):
        self.traces["image"] += 1
        flat = jnp.concatenate([images[m].reshape(images[m].shape[0], -1) for m in sorted(images)], axis=1)
        return ((flat.astype(jnp.float32) - 128.0) @ params["image"]).astype(self.dtype)

    def texts(self, params, tokens):
        self.traces["text"] += 1
        place = jnp.arange(1, tokens.shape[1] + 1, dtype=jnp.float32)
        weight = jnp.where(tokens > 0, jnp.sqrt(place), 0.0)
        return jnp.einsum("bl,ble->be", weight, params["text"][tokens]).astype(self.dtype)

    def embedder(self, **options):
        return Embedder(self.images, self.texts, **{"tokenizer": Tokenizer(), "batch_size": 4} | options)


def image(rng, size=2):
    return rng.integers(0, 256, (size, size, 3), dtype=np.uint8)


def retrieval_source(n=11, seed=0):
    """Ragged captions: 1 to 4 an image; some strings belong to several images."""
    rng = np.random.default_rng(seed)
    words = ["red", "green", "blue", "circle", "square", "star", "above", "below"]
    return Source(
        {
            "id": i,
            "image": image(rng),
            "captions": [" ".join(rng.choice(words, rng.integers(1, 4))) for _ in range(1 + i % 4)],
        }
        for i in range(n)
    )


def reference(towers, source, texts):
    """Unit float64 embeddings of all images and of ``texts``, one row at a time."""
    params = {k: v.astype(np.float64) for k, v in towers.params.items()}
    zi = np.stack([(e["image"].reshape(-1).astype(np.float64) - 128) @ params["image"] for e in source])
    zt = []
    for text in texts:
        codes = list(text.encode())[:40]
        zt.append(sum(np.sqrt(i + 1) * params["text"][c] for i, c in enumerate(codes)))
    zt = np.stack(zt)
    return zi / np.linalg.norm(zi, axis=1, keepdims=True), zt / np.linalg.norm(zt, axis=1, keepdims=True)
