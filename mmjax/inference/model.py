"""A trained model in use: ``mmjax.load(SPEC)``, and what its two towers make of pictures and texts."""

from __future__ import annotations

import collections
import operator
import os
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx

from mmjax.checkpoints.fingerprint import fingerprint
from mmjax.core.config import ConfigError, build
from mmjax.core.state import flatten
from mmjax.data.eval_view import make_eval_chain, view_for_evaluation
from mmjax.data.pictures import parse_background
from mmjax.data.sequences.frames import FrameView
from mmjax.data.source import Source
from mmjax.data.tokenizer import Tokenizer
from mmjax.evals.common.embedder import Embedder
from mmjax.evals.labels.reader import LabelReader
from mmjax.evals.zeroshot import class_embeddings
from mmjax.experiment import DataConfig
from mmjax.inference.captioning import Captioner
from mmjax.inference.decoding import DecodingConfig
from mmjax.inference.images import Picture, Pictures, list_pictures, make_reader, split_present
from mmjax.models.config import ClipConfig
from mmjax.models.vision.recognizer import read_labels
from mmjax.parallel.mesh import MeshConfig, batch_sharding, make_mesh

Precision = Literal["float32", "bfloat16"]
_BUCKET_FACTOR = 4  # between one batch size and the next: at most so many rows are computed for one that was asked for
_IN_FLIGHT = 2  # batches on the devices while the next one is read


class Model:
    """Image and text embeddings of a trained model; ``load`` makes one.

    All embeddings are NumPy arrays f32[n, E] with rows of length one, the same that the evaluation of the model
    measures. Rows are split over the devices. Batches have one of a few sizes, each compiled at its first use.

    Attributes:
        config: The model.
        batch_sizes: The sizes, in ascending order.
        modality: The name of the pictures in the examples of a source.
        modalities: That, or all names if ``encode_image`` takes several pictures of an example.
        precision: Of matrix products.
    """

    def __init__(
        self,
        config: ClipConfig,
        params: dict[str, Any],
        graphs: dict[str, Any],
        *,
        data: DataConfig,
        tokenizer: Tokenizer | ConfigError,
        devices: Sequence[jax.Device],
        batch_size: int,
        precision: Precision,
    ):
        self.config = config
        self.batch_sizes = _batch_sizes(batch_size, len(devices))
        self._params, self._graphs, self._tokenizer = params, graphs, tokenizer
        self._row_sharding = batch_sharding(make_mesh(MeshConfig(), devices=devices))
        self.modality, self.precision = data.modalities[0], precision
        vision = config.vision_cfg
        self.modalities = vision.modalities if vision.fusion == "gated" else (self.modality,)
        self._chain = make_eval_chain(
            data.preprocess,
            image_size=vision.image_size,
            resize=vision.image_resize,
            modalities=self.modalities,
            background=data.background,
        )
        self._final_size = vision.image_size if data.preprocess is None else None
        self._read, self._stack = make_reader(
            vision, chain=self._chain, modality=self.modality, background=parse_background(data.background)
        )
        self._embedders: dict[int, Embedder] = {}
        self._captioners: dict[Any, Captioner] = {}
        labels = tuple(config.recognizer.labels) if config.recognizer and "recognizer" in graphs else ()
        read = lambda params, images: read_labels(self._merge(params), images)  # noqa: E731
        self._label_reader = LabelReader(read, labels, field=data.labels) if labels else None

    def encode_image(self, images: Iterable[Picture | Pictures]) -> np.ndarray:
        """f32[n, E]: a unit row for each picture, which is prepared as evaluation does it.

        Args:
            images: A list of paths, bytes of image files, Pillow's images, or arrays u8[H, W] or u8[H, W, 1, 3 or 4];
                also mixed. For a tower of sequences: arrays f32[T, D], or ``.npy`` files of them. Transparent pictures
                are put on the background of the model's data, white by default. A tower with gates takes what an
                example has, ``{"image": "a.png", "depth": "a_depth.png"}``, and a picture alone as the first modality.

        Raises:
            Unreadable: if one of them is no picture, with its path or its place in the list.
        """
        listed = list_pictures(images)
        self.require("visual", several=len(self.modalities) > 1)
        with ThreadPoolExecutor(_cores()) as pool:
            return self._encode("embed_images", len(listed), self._reader(listed, pool))

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """f32[n, E]: a unit row for each text; texts longer than the model's context are cut."""
        if not isinstance(texts, str) and not len(texts):
            raise ValueError("texts: the list is empty; give at least one text")
        tokens = self.tokenize(texts)
        return self._encode("embed_texts", len(tokens), lambda start, stop: tokens[start:stop])

    def tokenize(self, texts: Sequence[str]) -> np.ndarray:
        """i32[n, L]: the tokens of each text."""
        self.require("text")
        if isinstance(self._tokenizer, ConfigError):
            raise self._tokenizer
        return self._tokenizer(texts)

    def caption(self, images: Iterable[Picture], *, seed: int = 0, prompt: str = "", **options: Any) -> list[str]:
        """A text for each picture, by the model's decoder.

        Args:
            images: As in ``encode_image``.
            seed: Of draws with ``method="sample"``.
            prompt: How each text begins, for models whose captions began so, such as ``Question:``.
            options: Of ``DecodingConfig``: ``method`` (``greedy``, ``beam``, ``sample``), ``max_length``, …
        """
        return [texts[0] for texts in self.captions(images, count=1, seed=seed, prompt=prompt, **options)]

    def captions(
        self,
        images: Iterable[Picture],
        *,
        count: int,
        seed: int = 0,
        numbers: Sequence[int] | None = None,
        prompt: str = "",
        **options: Any,
    ) -> list[list[str]]:
        """``count`` texts for each picture; several need ``method="sample"``. For the options see ``caption``.

        What is drawn for a picture depends on ``seed`` and its number alone: its place in the list, if ``numbers``
        (0 to 2**31 - 1) are left out.
        """
        listed = list_pictures(images)
        numbered = np.arange(len(listed)) if numbers is None else np.asarray(numbers)
        captioner = self.captioner(count=count, prompt=prompt, **options)
        with ThreadPoolExecutor(_cores()) as pool:
            read_pictures = self._reader(listed, pool)

            def read(start: int, stop: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
                return read_pictures(start, stop), numbered[start:stop].astype(np.int32)

            def run(embedder: Embedder, rows: Any) -> jax.Array:
                return captioner(self._params, *rows, seed=seed)[0]

            return captioner.decode(self._run_batches(run, len(listed), read))

    def captioner(self, *, count: int = 1, prompt: str = "", **options: Any) -> Captioner:
        """What ``captions`` runs batches with; the same options have the same compiled program."""
        self.require("decoder")
        key = (count, prompt, *sorted(options.items()))
        if key not in self._captioners:
            decoding = build(DecodingConfig, options, path="caption") if options else DecodingConfig()
            assert not isinstance(self._tokenizer, ConfigError)  # a model with a decoder has one
            self._captioners[key] = Captioner(self._merge, self._tokenizer, decoding, count=count, prompt=prompt)
        return self._captioners[key]

    def recognize(self, sequences: Iterable[Picture]) -> list[list[str]]:
        """The labels, such as glosses, that the model recognizes in each sequence, in their order.

        Args:
            sequences: Arrays f32[T, D], or ``.npy`` files of them, as in ``encode_image``.
        """
        self.require("recognizer")
        assert self._label_reader is not None
        listed = list_pictures(sequences)
        with ThreadPoolExecutor(_cores()) as pool:
            numbers = self._encode("label_reader.read", len(listed), self._reader(listed, pool))
        return self._label_reader.decode(numbers)

    def similarity(self, images: Iterable[Picture | Pictures], texts: Sequence[str]) -> np.ndarray:
        """f32[n, m]: the cosine of each picture's and each text's embedding."""
        return self.encode_image(images) @ self.encode_text(texts).T

    def classify(
        self, images: Iterable[Picture | Pictures], labels: Sequence[str], *, templates: Sequence[str] = ("{}",)
    ) -> np.ndarray:
        """f32[n, labels]: the probability of each label for each picture.

        Rows sum to one; those of a model with ``logit_bias`` (SigLIP) do not, because it judges each label by itself.

        Args:
            images: As in ``encode_image``.
            labels: Names of classes.
            templates: Prompts, with ``{}`` where the label goes; a class is the mean of their embeddings.
        """
        classes = self.encode_labels(labels, templates=templates)
        return self.probabilities(self.encode_image(images), classes)

    def encode_labels(self, labels: Sequence[str], *, templates: Sequence[str] = ("{}",)) -> np.ndarray:
        """f32[labels, E]: a unit row for each label, as ``classify`` uses it."""
        if isinstance(labels, str) or not len(labels):
            raise ValueError(f"labels={labels!r}: expected a list of at least one name")
        if isinstance(templates, str) or not templates or any("{}" not in template for template in templates):
            raise ValueError(f"templates={templates!r}: expected a list, each with {{}} where the label goes")
        return class_embeddings(self.encode_text, labels, templates)

    def probabilities(self, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """f32[n, labels]: what ``classify`` returns, from embeddings that are there already."""
        logits = np.exp(self._scalar("logit_scale")) * (images @ labels.T)
        if self.config.init_logit_bias is not None:
            return np.asarray(jax.nn.sigmoid(logits + self._scalar("logit_bias")))
        return np.asarray(jax.nn.softmax(logits, axis=-1))

    def view(self, source: Source) -> Source:
        """``source`` with its pictures as evaluation gives them to the image tower."""
        if self.config.vision_cfg.stem == "frames":
            return FrameView(source, length=self.config.vision_cfg.max_frames)
        return view_for_evaluation(source, self._chain, final_size=self._final_size)

    @property
    def params(self) -> dict[str, Any]:
        """The parameters of the towers by their names, and the scale and bias of the logits."""
        return self._params

    def embedder(self) -> Embedder:
        """Both towers for evaluators; batches have the largest size."""
        self.require("visual")
        self.tokenize([""])
        return self._embedder(self.batch_sizes[-1])

    def embed_batch(self, tower: Literal["visual", "text"], rows: Any) -> jax.Array:
        """Starts a batch of the largest size: f32[B, E], a unit row for each, without waiting for them.

        Args:
            tower: Which one.
            rows: Prepared pictures ``{modality: u8[B, H, W, C]}``, or tokens i32[B, L].
        """
        embedder = self._embedder(self.batch_sizes[-1])
        function = embedder.embed_images if tower == "visual" else embedder.embed_texts
        return function(self._params, jax.tree.map(embedder.host_batch.to_device, rows))

    def place(self, rows: Any) -> Any:
        """Arrays of the largest batch size on the devices, split by rows."""
        return jax.tree.map(self._embedder(self.batch_sizes[-1]).host_batch.to_device, rows)

    def fingerprint(self) -> str:
        """Identifies the parameters: SHA-256 over all of them."""
        return fingerprint({path: np.asarray(leaf) for path, leaf in flatten(self._params).items()})

    def _reader(self, listed: Sequence[Any], pool: ThreadPoolExecutor) -> Callable[[int, int], dict[str, np.ndarray]]:
        """What reads rows of a user's list into a batch."""
        return lambda start, stop: self._stack(list(pool.map(self._read, listed[start:stop], range(start, stop))))

    def _encode(self, function: str, count: int, read: Callable[[int, int], Any]) -> np.ndarray:
        return self._run_batches(lambda e, rows: operator.attrgetter(function)(e)(self._params, rows), count, read)

    def _run_batches(
        self, run: Callable[[Embedder, Any], jax.Array], count: int, read: Callable[[int, int], Any]
    ) -> np.ndarray:
        done: list[np.ndarray] = []
        pending: collections.deque[tuple[jax.Array, int]] = collections.deque()
        for start, stop, size in _batches(count, self.batch_sizes):
            embedder = self._embedder(size)
            # Padding repeats the last row, because a tower may not handle zeros.
            fill = np.minimum(np.arange(size), stop - start - 1)
            rows = jax.tree.map(lambda array: embedder.host_batch.to_device(array[fill]), read(start, stop))  # noqa: B023
            pending.append((run(embedder, rows), stop - start))
            if len(pending) > _IN_FLIGHT:
                embedded, length = pending.popleft()
                done.append(np.asarray(embedded)[:length])
        done.extend(np.asarray(embedded)[:length] for embedded, length in pending)
        return np.concatenate(done)

    def _embedder(self, size: int) -> Embedder:
        if size not in self._embedders:
            graphs = self._graphs
            self._embedders[size] = Embedder(
                lambda params, x: nnx.merge(graphs["visual"], nnx.State(params["visual"]))(*split_present(x)),
                lambda params, tokens: nnx.merge(graphs["text"], nnx.State(params["text"]))(tokens),
                tokenizer=self._tokenizer,  # type: ignore[arg-type]  # whoever embeds texts has checked it
                batch_size=size,
                row_sharding=self._row_sharding,
                modalities=(self.modality,),
                num_threads=_cores(),
                label_reader=self._label_reader,
                make_writer=(lambda **decoding: self.captioner(**decoding).writer()) if "decoder" in graphs else None,
            )
        return self._embedders[size]

    def _merge(self, params: dict[str, Any]) -> types.SimpleNamespace:
        """All towers and the decoder with these parameters."""
        merged = {name: nnx.merge(graph, nnx.State(params[name])) for name, graph in self._graphs.items()}
        return types.SimpleNamespace(**merged)

    def require(self, tower: str, *, several: bool = False) -> None:
        """Raises ConfigError if the model lacks a tower, or an image tower takes no single pictures."""
        vision = self.config.vision_cfg
        if tower == "visual" and not several and vision.fusion != "views" and len(vision.modalities) > 1:
            names = ", ".join(vision.modalities)
            raise ConfigError(f"the model's image tower takes {names} together, not single pictures; use `mmjax eval`")
        if tower == "visual" and tower not in self._graphs:
            raise ConfigError("the model has no image tower; load one that has, or use encode_text")
        if tower == "decoder" and tower not in self._graphs:
            raise ConfigError("the model has no decoder; load one that was trained with objective.name='caption'")
        if tower == "recognizer" and tower not in self._graphs:
            raise ConfigError("the model recognizes no labels; load one that was trained with objective.name='ctc'")
        if tower == "text" and tower not in self._graphs and not isinstance(self._tokenizer, ConfigError):
            raise ConfigError("the model has no text tower; load one that has, or use encode_image")

    def _scalar(self, name: str) -> np.float32:
        if name not in self._params:
            raise ConfigError(f"the weights hold no {name}, which probabilities need; use similarity")
        return np.float32(self._params[name])


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _batch_sizes(largest: int, devices: int) -> tuple[int, ...]:
    """``largest`` and smaller ones, each a multiple of the number of devices.

    >>> _batch_sizes(64, 1), _batch_sizes(64, 8), _batch_sizes(5, 2)
    ((1, 4, 16, 64), (8, 16, 64), (2, 6))
    """
    sizes = set()
    while largest:
        sizes.add(-(-largest // devices) * devices)
        largest //= _BUCKET_FACTOR
    return tuple(sorted(sizes))


def _batches(count: int, sizes: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Start, end and size of the batches of ``count`` rows; the last has the smallest size that holds its rows.

    >>> list(_batches(70, (1, 4, 16, 64)))
    [(0, 64, 64), (64, 70, 16)]
    """
    for start in range(0, count, sizes[-1]):
        stop = min(start + sizes[-1], count)
        yield start, stop, next(size for size in sizes if size >= stop - start)
