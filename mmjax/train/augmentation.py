"""The augmentations of an experiment within the step: made from the config, run at their taps, trained by their own."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from mmjax.augment.common import schedules
from mmjax.augment.common.base import Base, Features, Similarity, Tap, TowerInfo, View
from mmjax.augment.common.sequence_dropout import SequenceDropout
from mmjax.core import plugins, rng
from mmjax.core.config import ConfigError, bind
from mmjax.core.sphere import modality_gap, uniformity, unit
from mmjax.core.state import AugmentState, Params
from mmjax.core.types import Metrics
from mmjax.models.clip import Clip
from mmjax.train.forward import Choose, Shorten, embedded, every_patch

FOLDER = "mmjax.augment"

Objective = Callable[..., tuple[jax.Array, Metrics]]

UNIFORMITY_ROWS = 1024
"""Uniformity compares the pairs of this many rows: all pairs of a large batch would take more than its logits."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmentations:
    """The augmentations of one experiment, by name and without their parameters."""

    modules: Mapping[str, Base]  # of shapes alone
    sequence_dropouts: Mapping[str, SequenceDropout]
    create: Callable[[], dict[str, Base]]
    towers: TowerInfo
    seed: int

    @classmethod
    def of(cls, entries: Sequence[tuple[str, Mapping[str, Any]]], *, towers: TowerInfo, seed: int) -> Augmentations:
        """From the key ``augment``."""
        sequence_dropouts: dict[str, SequenceDropout] = {}
        constructors: dict[str, Callable[..., Base]] = {}
        for name, options in entries:
            if name in constructors or name in sequence_dropouts:
                raise ConfigError(f"augment: {name!r} is named twice; leave one, or give both strengths to one")
            kind, make = _constructor(name, options, towers=towers)
            if issubclass(kind, SequenceDropout):
                sequence_dropouts[name] = make()
            else:
                constructors[name] = make

        def create() -> dict[str, Base]:
            return {
                name: make(rngs=nnx.Rngs(params=rng.key(seed, stream=f"augment/{name}/init")))
                for name, make in constructors.items()
            }

        modules = nnx.eval_shape(create)
        return cls(modules=modules, sequence_dropouts=sequence_dropouts, create=create, towers=towers, seed=seed)

    @property
    def taps(self) -> list[Tap]:
        """Where features are wanted."""
        return list(dict.fromkeys(module.tap for module in self.modules.values()))

    @property
    def lengths(self) -> list[tuple[float, ...]]:
        """The shares that the sequence_dropouts can drop, one tuple for each combination of their levels."""
        return list(itertools.product(*(s.shares for s in self.sequence_dropouts.values())))

    def length(self, step: jax.Array) -> jax.Array:
        """i32[]: which of ``lengths`` is in force at a traced step."""
        index = jnp.zeros((), jnp.int32)
        for sequence_dropout in self.sequence_dropouts.values():
            index = index * len(sequence_dropout.shares) + sequence_dropout.level(step)
        return index

    def shorten(self, shares: tuple[float, ...], step: jax.Array) -> tuple[Choose, Shorten]:
        """Of the patches that enter the image tower's first block, and of token ids: all sequence_dropouts in turn."""

        def images(rows: int, patches: int) -> jax.Array | None:
            chosen = None
            for (name, sequence_dropout), share in zip(self.sequence_dropouts.items(), shares, strict=True):
                key = rng.key(self.seed, stream=f"augment/{name}", step=step)
                left = patches if chosen is None else chosen.shape[1]
                found = sequence_dropout.patches(key, rows=rows, patches=left, share=share)
                if chosen is not None and found is not None:
                    found = jnp.take_along_axis(chosen, found, axis=1)
                chosen = chosen if found is None else found
            return chosen

        def texts(ids: jax.Array) -> jax.Array:
            for (name, sequence_dropout), share in zip(self.sequence_dropouts.items(), shares, strict=True):
                key = rng.key(self.seed, stream=f"augment/{name}", step=step)
                ids = sequence_dropout.texts(ids, key, share=share, towers=self.towers)
            return ids

        return images, texts

    def initial(self) -> dict[str, AugmentState]:
        """Fresh parameters and moments by augmentation; one that has none is left out."""
        states = {name: nnx.to_pure_dict(nnx.state(module)) for name, module in self.create().items()}
        return {
            name: AugmentState(params=params, opt_state=self.optimizer(name).init(params))
            for name, params in states.items()
            if params
        }

    def optimizer(self, name: str) -> optax.GradientTransformation:
        """One augmentation's own Adam: own learning rate, own clipping, no decay."""
        module = self.modules[name]
        return optax.chain(
            optax.clip_by_global_norm(module.clip_norm),
            optax.scale_by_adam(),
            optax.scale_by_learning_rate(functools.partial(schedules.at, module.learning_rate)),
        )

    def update(
        self, grads: Mapping[str, Params], states: Mapping[str, AugmentState]
    ) -> tuple[dict[str, AugmentState], Metrics]:
        """Each augmentation's parameters after one step of its own optimizer."""
        new, metrics = {}, {}
        for name, state in states.items():
            with jax.numpy_dtype_promotion("standard"):  # as in the model's own update
                updates, opt_state = self.optimizer(name).update(grads[name], state.opt_state, state.params)
            new[name] = AugmentState(params=optax.apply_updates(state.params, updates), opt_state=opt_state)
            metrics[f"augment/{name}/gradient_norm"] = optax.tree.norm(grads[name])
        return new, metrics

    def loss(
        self,
        params: Mapping[str, Params],
        taps: Mapping[Tap, Features],
        *,
        rest: Callable[[Params], Clip],
        model_params: Params,
        objective: Objective,
        clean_loss: jax.Array,
        step: jax.Array,
        shorten_images: Choose = every_patch,
        parts: int = 1,
    ) -> tuple[jax.Array, Metrics]:
        """``Σ_a weight_a · (terms of a)``, to be added to the clean loss, and metrics: ``augment/NAME/…``, and
        how the clean rows lie on the sphere, to compare with.

        ``taps`` are the clean features at ``pooled`` and at the taps before it; ``rest`` makes the model of
        ``model_params``; what runs for each row alone runs in ``parts`` (see ``mmjax.train.micro_batches``).

        Nothing else is taken from the clean computation, and these clean rows are projected once more: gradients of
        the two computations then meet as finished products alone. Where they met in elementwise arithmetic the
        compiler would fuse the two, and pair, and so round, multiply-adds otherwise than in a run without
        augmentation: not even a weight of zero would leave that run's parameters as they were.
        """
        barrier = jax.lax.optimization_barrier
        taps = {tap: _held_apart(features) for tap, features in taps.items()}
        model_params = jax.tree.map(barrier, model_params)
        models = {"trained": rest(model_params), "frozen": rest(jax.lax.stop_gradient(model_params))}
        model, pooled = models["trained"], taps["pooled"]
        taps["embedding"] = dataclasses.replace(
            pooled, image=model.visual.project(pooled.image), text=model.text.project(pooled.text)
        )
        clean = dataclasses.replace(
            taps["embedding"], image=unit(taps["embedding"].image), text=unit(taps["embedding"].text)
        )
        similarity = Similarity(
            scale=jnp.exp(model.logit_scale[...]), bias=None if model.logit_bias is None else model.logit_bias[...]
        )

        modules = {
            name: nnx.merge(nnx.graphdef(module), nnx.State(params.get(name, {})))
            for name, module in self.modules.items()
        }
        keys = {n: jax.random.split(rng.key(self.seed, stream=f"augment/{n}", step=step)) for n in modules}
        answers = {n: m.augment(taps[m.tap], key=keys[n][0], step=step) for n, m in modules.items()}
        views = [(m.tap, view) for n, m in modules.items() for view in answers[n].views]
        rows_of_views = iter(
            embedded(views, rest=models, taps=taps, towers=self.towers, shorten_images=shorten_images, parts=parts)
        )

        total = jnp.zeros((), jnp.float32)
        metrics: Metrics = {
            "uniformity_image": uniformity(clean.image[:UNIFORMITY_ROWS]),
            "uniformity_text": uniformity(clean.text[:UNIFORMITY_ROWS]),
            "modality_gap": modality_gap(clean.image, clean.text),
        }
        for name, module in modules.items():
            answer = answers[name]
            rows = list(itertools.islice(rows_of_views, len(answer.views)))
            compared, found = module.compare(clean, rows, similarity=similarity, key=keys[name][1], step=step)
            terms = {**answer.terms, **compared}
            found = {**answer.metrics, **found, **terms}
            for view, row in zip(answer.views, rows, strict=True):
                found |= _geometry(view, row, clean)
                if view.role == "task":
                    sources = {"image_source": row.image_source, "text_source": row.text_source}
                    value, _ = objective(row.image, row.text, **sources, **vars(similarity))
                    terms[view.name] = view.factor * value
                    found |= {view.name: value, f"{view.name}_gap": value - clean_loss}
            weight = schedules.at(module.weight, step)
            total = total + weight * sum(terms.values(), jnp.zeros((), jnp.float32))
            metrics |= {f"augment/{name}/{metric}": value for metric, value in {"weight": weight, **found}.items()}
        return total, metrics

    def dropped(self, shares: tuple[float, ...]) -> Metrics:
        """What the sequence_dropouts do where ``shares`` is in force."""
        named = zip(self.sequence_dropouts, shares, strict=True)
        return {f"augment/{name}/share": jnp.float32(share) for name, share in named}


def _constructor(name: str, options: Mapping[str, Any], *, towers: TowerInfo) -> tuple[type, Callable[..., Any]]:
    """The class ``name`` and how to make one, its options checked; takes ``rngs``, which some have no use for."""
    target = plugins.load(FOLDER, name, path="augment").Augmentation
    wanted = inspect.signature(target.__init__).parameters
    given = {key: value for key, value in {"towers": towers, "rngs": None}.items() if key in wanted}
    bound = bind(target, options, path=f"augment.{name}", given=given)
    return target, lambda rngs=None: target(**(bound | ({"rngs": rngs} if "rngs" in wanted else {})))


def _held_apart(features: Features) -> Features:
    """The same features, with which the compiler fuses nothing of the clean computation."""
    image, text = jax.tree.map(jax.lax.optimization_barrier, (features.image, features.text))
    return dataclasses.replace(features, image=image, text=text)


def _geometry(view: View, rows: Features, clean: Features) -> Metrics:
    """How far a view moved its rows, where it has as many as there are clean ones, and how it lies on the sphere."""
    found = {}
    for side in ("image", "text"):
        if getattr(view, side) is not None:
            new, old = getattr(rows, side), getattr(clean, side)
            if new.shape == old.shape:
                found[f"{view.name}_{side}_cosine"] = jnp.mean(jnp.sum(new * old, axis=-1))
            found[f"{view.name}_uniformity_{side}"] = uniformity(new[:UNIFORMITY_ROWS])
    return found | {f"{view.name}_modality_gap": modality_gap(rows.image, rows.text)}
