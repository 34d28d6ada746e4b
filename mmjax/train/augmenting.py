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

from mmjax import plugins, rng
from mmjax.augment import schedules
from mmjax.augment.base import Base, Features, Tap, View
from mmjax.config import ConfigError, bind
from mmjax.models.clip import Clip
from mmjax.sphere import unit
from mmjax.train.state import Params
from mmjax.types import Metrics

FOLDER = "mmjax.augment"

Objective = Callable[..., tuple[jax.Array, Metrics]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmentations:
    """The augmentations of one experiment, by name and without their parameters."""

    graphs: Mapping[str, nnx.GraphDef]
    modules: Mapping[str, Base]  # of shapes alone
    create: Callable[[], dict[str, Base]]
    seed: int

    @classmethod
    def of(
        cls, entries: Sequence[tuple[str, Mapping[str, Any]]], *, widths: Mapping[Tap, tuple[int, int]], seed: int
    ) -> Augmentations:
        """From the key ``augment``; ``widths`` are those of image and text features at each tap."""
        constructors: dict[str, Callable[..., Base]] = {}
        for name, options in entries:
            if name in constructors:
                raise ConfigError(f"augment: {name!r} is named twice; leave one, or give both strengths to one")
            constructors[name] = _constructor(name, options, widths=widths)

        def create() -> dict[str, Base]:
            return {
                name: make(rngs=nnx.Rngs(params=rng.key(seed, stream=f"augment/{name}/init")))
                for name, make in constructors.items()
            }

        modules = nnx.eval_shape(create)
        for name, module in modules.items():
            if module.tap not in widths:
                raise ConfigError(f"augment.{name}.tap={module.tap!r}: must be one of {', '.join(map(repr, widths))}")
        graphs = {name: nnx.graphdef(module) for name, module in modules.items()}
        return cls(graphs=graphs, modules=modules, create=create, seed=seed)

    def initial(self) -> Params:
        """Fresh parameters by augmentation; one that has none is left out."""
        found = {name: nnx.to_pure_dict(nnx.state(module)) for name, module in self.create().items()}
        return {name: params for name, params in found.items() if params}

    def optimizer(self, params: Params) -> optax.GradientTransformation:
        """For each augmentation its own Adam: own learning rate, own clipping, no decay."""
        parts = {}
        for name in params:
            module = self.modules[name]
            rate = functools.partial(schedules.at, module.learning_rate)
            parts[name] = optax.chain(
                optax.clip_by_global_norm(module.clip_norm),
                optax.scale_by_adam(),
                optax.scale_by_learning_rate(rate),
            )
        labels = {name: jax.tree.map(lambda _, name=name: name, inner) for name, inner in params.items()}
        return optax.partition(parts, labels)

    def loss(
        self,
        params: Params,
        pooled: Features,
        *,
        head: Callable[[Params], Clip],
        model_params: Params,
        objective: Objective,
        clean_loss: jax.Array,
        step: jax.Array,
    ) -> tuple[jax.Array, Metrics]:
        """``Σ_a weight_a · (terms of a)``, to be added to the clean loss, and metrics ``augment/NAME/…``.

        ``pooled`` are the clean features before the projection; ``head`` makes the model of ``model_params``.

        Nothing else is taken from the clean computation, and these clean rows are projected once more: gradients of
        the two computations then meet as finished products alone. Where they met in elementwise arithmetic the
        compiler would fuse the two, and pair, and so round, multiply-adds otherwise than in a run without
        augmentation: not even a weight of zero would leave that run's parameters as they were.
        """
        barrier = jax.lax.optimization_barrier
        pooled = dataclasses.replace(pooled, image=barrier(pooled.image), text=barrier(pooled.text))
        model_params = jax.tree.map(barrier, model_params)
        heads = {"trained": head(model_params), "frozen": head(jax.lax.stop_gradient(model_params))}
        embedding = dataclasses.replace(
            pooled,
            image=heads["trained"].visual.project(pooled.image),
            text=heads["trained"].text.project(pooled.text),
        )
        clean = dataclasses.replace(embedding, image=unit(embedding.image), text=unit(embedding.text))
        features: dict[Tap, Features] = {"pooled": pooled, "embedding": embedding}
        scale = jnp.exp(heads["trained"].logit_scale[...])
        biased = heads["trained"].logit_bias
        bias = None if biased is None else biased[...]

        modules = {n: nnx.merge(g, nnx.State(params.get(n, {}))) for n, g in self.graphs.items()}
        keys = {n: jax.random.split(rng.key(self.seed, stream=f"augment/{n}", step=step)) for n in modules}
        answers = {n: m.augment(features[m.tap], key=keys[n][0], step=step) for n, m in modules.items()}
        views = [(m.tap, view) for n, m in modules.items() for view in answers[n].views]
        embedded = iter(_embedded(views, heads, clean))

        total = jnp.zeros((), jnp.float32)
        metrics: Metrics = {}
        for name, module in modules.items():
            answer = answers[name]
            rows = list(itertools.islice(embedded, len(answer.views)))
            compared, found = module.compare(clean, rows, scale=scale, key=keys[name][1], step=step)
            terms = {**answer.terms, **compared}
            found = {**answer.metrics, **found, **terms}
            for view, row in zip(answer.views, rows, strict=True):
                if view.role == "task":
                    sources = {"image_source": row.image_source, "text_source": row.text_source}
                    value, _ = objective(row.image, row.text, **sources, scale=scale, bias=bias)
                    terms[view.name] = view.factor * value
                    found |= {view.name: value, f"{view.name}_gap": value - clean_loss} | _cosines(view, row, clean)
            weight = schedules.at(module.weight, step)
            total = total + weight * sum(terms.values(), jnp.zeros((), jnp.float32))
            metrics |= {f"augment/{name}/{metric}": value for metric, value in {"weight": weight, **found}.items()}
        return total, metrics


def _constructor(
    name: str, options: Mapping[str, Any], *, widths: Mapping[Tap, tuple[int, int]]
) -> Callable[..., Base]:
    """The class ``name`` with its options checked; takes ``rngs``, which some classes have no use for."""
    target = plugins.load(FOLDER, name, path="augment").Augmentation
    wanted = inspect.signature(target.__init__).parameters
    given = {key: value for key, value in {"widths": widths, "rngs": None}.items() if key in wanted}
    bound = bind(target, options, path=f"augment.{name}", given=given)
    return lambda rngs: target(**(bound | ({"rngs": rngs} if "rngs" in wanted else {})))


def _embedded(views: Sequence[tuple[Tap, View]], heads: Mapping[str, Clip], clean: Features) -> list[Features]:
    """Each view as unit embeddings; what is still to be projected goes through in one batch for each side."""
    sides: dict[str, list[jax.Array | None]] = {}
    for side, tower in (("image", "visual"), ("text", "text")):
        rows = [getattr(view, side) for _, view in views]
        batches: dict[tuple[str, tuple[int, ...]], list[int]] = {}
        for i, (tap, view) in enumerate(views):
            if rows[i] is not None and tap == "pooled":
                batches.setdefault((view.projection, rows[i].shape), []).append(i)
        for (projection, _), members in batches.items():
            # A new second axis: joined along the first, rows would have to move between devices.
            stacked = jnp.stack([rows[i] for i in members], axis=1)
            projected = getattr(heads[projection], tower).project(stacked)
            for place, i in enumerate(members):
                rows[i] = projected[:, place]
        sides[side] = [None if r is None else unit(r) for r in rows]
    return [
        Features(
            image=clean.image if image is None else image,
            text=clean.text if text is None else text,
            image_source=view.image_source or clean.image_source,
            text_source=view.text_source or clean.text_source,
            examples=clean.examples,
        )
        for (_, view), image, text in zip(views, sides["image"], sides["text"], strict=True)
    ]


def _cosines(view: View, rows: Features, clean: Features) -> Metrics:
    """How far a view moved its rows, where it has as many as there are clean ones."""
    found = {}
    for side in ("image", "text"):
        new, old = getattr(rows, side), getattr(clean, side)
        if getattr(view, side) is not None and new.shape == old.shape:
            found[f"{view.name}_{side}_cosine"] = jnp.mean(jnp.sum(new * old, axis=-1))
    return found
