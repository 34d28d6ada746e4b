"""The augmentations of an experiment within the step: their views, their losses and their own optimizers."""

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
from mmjax.augment.common.base import Base as Augmentation
from mmjax.augment.common.base import Features, Similarity, Tap, TowerInfo, View
from mmjax.augment.common.batch_change import BatchChange, PixelChange
from mmjax.augment.common.sequence_dropout import SequenceDropout
from mmjax.core import plugins, rng
from mmjax.core.config import ConfigError, bind, call
from mmjax.core.sphere import modality_gap, uniformity
from mmjax.core.state import AugmentState, Params
from mmjax.core.types import Batch, Metrics
from mmjax.models.clip import Clip
from mmjax.objectives.common.tower_tokens import TowerTokens
from mmjax.train.forward import ChoosePatches, DropTokens, embed_views, keep_every_patch
from mmjax.train.micro_batches import WHOLE_BATCH, MicroBatches

FOLDER = "mmjax.augment"

Objective = Callable[..., tuple[jax.Array, Metrics]]

MakeTokens = Callable[..., TowerTokens]
"""``(model, sequence, name, blended=…)``: of a model, its towers' tokens and the name of the rows, what an objective
that reads tokens gets.
"""

UNIFORMITY_ROWS = 1024
"""The rows that uniformity compares: all pairs of a large batch would take more memory than its logits."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmentations:
    """The augmentations of one experiment, by name and without their parameters.

    A step calls ``change_batch`` and ``make_sequence_dropout`` before the clean forward, ``loss`` after it, and
    ``update`` at its end.
    """

    modules: Mapping[str, Augmentation]  # of shapes alone
    sequence_dropouts: Mapping[str, SequenceDropout]
    create: Callable[[], dict[str, Augmentation]]
    towers: TowerInfo
    seed: int
    batch_changes: Mapping[str, BatchChange] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_config(
        cls, entries: Sequence[tuple[str, Mapping[str, Any]]], *, towers: TowerInfo, seed: int
    ) -> Augmentations:
        """From the key ``augment``: names with their options."""
        sequence_dropouts: dict[str, SequenceDropout] = {}
        batch_changes: dict[str, BatchChange] = {}
        constructors: dict[str, Callable[..., Augmentation]] = {}
        for name, options in entries:
            if name in constructors or name in sequence_dropouts or name in batch_changes:
                raise ConfigError(f"augment: {name!r} is named twice; leave one, or give both strengths to one")
            kind, arguments = bind_options(name, options, towers=towers)
            make = functools.partial(_make, kind, arguments, path=f"augment.{name}")
            if issubclass(kind, PixelChange) and towers.takes_sequences:
                raise ConfigError(
                    f"augment.{name}: changes pixels, and model.vision_cfg.stem='frames' takes sequences; leave it "
                    "out, or use mixup, tmmda or xmda"
                )
            if issubclass(kind, SequenceDropout):
                sequence_dropouts[name] = make()
            elif issubclass(kind, BatchChange):
                batch_changes[name] = make()
            else:
                constructors[name] = make

        def create() -> dict[str, Augmentation]:
            return {
                name: make(rngs=nnx.Rngs(params=rng.key(seed, stream=f"augment/{name}/init")))
                for name, make in constructors.items()
            }

        modules = nnx.eval_shape(create)
        return cls(
            modules=modules,
            sequence_dropouts=sequence_dropouts,
            batch_changes=batch_changes,
            create=create,
            towers=towers,
            seed=seed,
        )

    @property
    def taps(self) -> list[Tap]:
        """Where augmentations make views."""
        return list(dict.fromkeys(module.tap for module in self.modules.values()))

    @property
    def drop_rate_combinations(self) -> list[tuple[float, ...]]:
        """Every combination of the drop rates of the sequence dropouts; each is a branch of the program."""
        return list(itertools.product(*(s.drop_rates for s in self.sequence_dropouts.values())))

    def active_combination(self, step: jax.Array) -> jax.Array:
        """i32[]: the index in ``drop_rate_combinations`` at a traced step."""
        index = jnp.zeros((), jnp.int32)
        for dropout in self.sequence_dropouts.values():
            index = index * len(dropout.drop_rates) + dropout.level(step)
        return index

    def change_batch(self, batch: Batch, step: jax.Array) -> tuple[Batch, Metrics]:
        """The batch that the towers see, and ``augment/NAME/…`` of what changed it."""
        metrics: Metrics = {}
        for name, change in self.batch_changes.items():
            key = rng.key(self.seed, stream=f"augment/{name}", step=step)
            batch, measured = change.change(batch, key=key, step=step)
            metrics |= {f"augment/{name}/{metric}": value for metric, value in measured.items()}
        return batch, metrics

    def make_sequence_dropout(self, drop_rates: tuple[float, ...], step: jax.Array) -> tuple[ChoosePatches, DropTokens]:
        """All sequence dropouts in turn: a function that chooses patches, and one that shortens token ids."""
        dropouts = [
            (dropout, rate, rng.key(self.seed, stream=f"augment/{name}", step=step))
            for (name, dropout), rate in zip(self.sequence_dropouts.items(), drop_rates, strict=True)
        ]

        def choose_patches(rows: int, patches: int) -> jax.Array | None:
            chosen = None
            for dropout, rate, key in dropouts:
                remaining = patches if chosen is None else chosen.shape[1]
                kept = dropout.choose_patches(key, rows=rows, patches=remaining, drop_rate=rate)
                if chosen is not None and kept is not None:
                    kept = jnp.take_along_axis(chosen, kept, axis=1)
                chosen = chosen if kept is None else kept
            return chosen

        def drop_tokens(ids: jax.Array) -> jax.Array:
            for dropout, rate, key in dropouts:
                ids = dropout.drop_tokens(ids, key, drop_rate=rate, towers=self.towers)
            return ids

        return choose_patches, drop_tokens

    def drop_rate_metrics(self, drop_rates: tuple[float, ...]) -> Metrics:
        """``augment/NAME/drop_rate`` of each sequence dropout."""
        by_name = zip(self.sequence_dropouts, drop_rates, strict=True)
        return {f"augment/{name}/drop_rate": jnp.float32(rate) for name, rate in by_name}

    def init_states(self) -> dict[str, AugmentState]:
        """Initial parameters and optimizer states; augmentations without parameters are left out."""
        states = {name: nnx.to_pure_dict(nnx.state(module)) for name, module in self.create().items()}
        return {
            name: AugmentState(params=params, opt_state=self.optimizer(name).init(params))
            for name, params in states.items()
            if params
        }

    def optimizer(self, name: str) -> optax.GradientTransformation:
        """One augmentation's own Adam: own learning rate, own clipping, no weight decay."""
        module = self.modules[name]
        return optax.chain(
            optax.clip_by_global_norm(module.clip_norm),
            optax.scale_by_adam(),
            optax.scale_by_learning_rate(functools.partial(schedules.value_at, module.learning_rate)),
        )

    def update(
        self, grads: Mapping[str, Params], states: Mapping[str, AugmentState]
    ) -> tuple[dict[str, AugmentState], Metrics]:
        """One step of each augmentation's own optimizer, and the norms of their gradients."""
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
        make_model: Callable[[Params], Clip],
        model_params: Params,
        objective: Objective,
        clean_loss: jax.Array,
        step: jax.Array,
        make_tokens: MakeTokens | None = None,
        choose_patches: ChoosePatches = keep_every_patch,
        micro_batches: MicroBatches = WHOLE_BATCH,
    ) -> tuple[jax.Array, Metrics]:
        """``Σ_a weight_a · (terms of a)``, to be added to the clean loss.

        Nothing else is taken from the clean computation, and the clean rows are projected once more, behind barriers:
        gradients of the two computations then meet only as finished products. If they met in elementwise arithmetic,
        the compiler would fuse the two and round otherwise than in a run without augmentation. Even a weight of zero
        would then change that run's parameters.

        Args:
            params: the parameters of each augmentation.
            taps: the clean features at ``pooled`` and at the taps before it.
            make_model: makes the model of ``model_params``.
            clean_loss: the objective's value for the clean rows, for metrics.
            make_tokens: for an objective that reads tokens: makes its argument of a view's.

        Returns:
            The loss, and metrics: ``augment/NAME/…``, and uniformity and modality gap of the clean rows.
        """
        # 1. The clean features, apart from the clean computation.
        taps = {tap: _with_barrier(features) for tap, features in taps.items()}
        model_params = jax.tree.map(jax.lax.optimization_barrier, model_params)
        models = {"trained": make_model(model_params), "frozen": make_model(jax.lax.stop_gradient(model_params))}
        model = models["trained"]
        taps["embedding"] = dataclasses.replace(
            taps["pooled"],
            image=model.visual.project(taps["pooled"].image),
            text=model.text.project(taps["pooled"].text),
        )
        clean = taps["embedding"].to_unit()
        similarity = Similarity(
            scale=jnp.exp(model.logit_scale[...]), bias=None if model.logit_bias is None else model.logit_bias[...]
        )

        # 2. Each augmentation's views of the features at its tap.
        modules = {
            name: nnx.merge(nnx.graphdef(module), nnx.State(params.get(name, {})))
            for name, module in self.modules.items()
        }
        keys = {name: jax.random.split(rng.key(self.seed, stream=f"augment/{name}", step=step)) for name in modules}
        answers = {
            name: module.augment(taps[module.tap], key=keys[name][0], step=step) for name, module in modules.items()
        }

        # 3. The rest of the network for all views at once.
        views = [(module.tap, view) for name, module in modules.items() for view in answers[name].views]
        embeddings = iter(
            embed_views(
                views,
                models=models,
                taps=taps,
                towers=self.towers,
                choose_patches=choose_patches,
                micro_batches=micro_batches,
            )
        )

        # 4. Each augmentation's terms, and their weighted sum.
        total = jnp.zeros((), jnp.float32)
        metrics: Metrics = {
            "uniformity_image": uniformity(clean.image[:UNIFORMITY_ROWS]),
            "uniformity_text": uniformity(clean.text[:UNIFORMITY_ROWS]),
            "modality_gap": modality_gap(clean.image, clean.text),
        }
        for name, module in modules.items():
            answer = answers[name]
            embedded_views = [next(embeddings) for _ in answer.views]
            embedded = [view.embeddings for view in embedded_views]
            compared, measured = module.compare(clean, embedded, similarity=similarity, key=keys[name][1], step=step)
            terms = {**answer.terms, **compared}
            measured = {**answer.metrics, **measured, **terms}
            for view, (rows, sequence) in zip(answer.views, embedded_views, strict=True):
                measured |= _geometry_metrics(view, rows, clean)
                if view.role == "task":
                    inputs: dict[str, Any] = {"image_source": rows.image_source, "text_source": rows.text_source}
                    if make_tokens is not None:
                        run = functools.partial(make_tokens, models[view.projection], blended=view.text is not None)
                        inputs["tokens"] = None if sequence is None else run(sequence, f"{name}/{view.name}")
                    value, _ = objective(rows.image, rows.text, **inputs, **vars(similarity))
                    terms[view.name] = view.factor * value
                    measured |= {view.name: value, f"{view.name}_gap": value - clean_loss}
            weight = schedules.value_at(module.weight, step)
            total = total + weight * sum(terms.values(), jnp.zeros((), jnp.float32))
            metrics |= {f"augment/{name}/{metric}": value for metric, value in {"weight": weight, **measured}.items()}
        return total, metrics


def _make(kind: type, arguments: dict[str, Any], *, path: str, rngs: nnx.Rngs | None = None) -> Any:
    """One augmentation of checked arguments; ``rngs`` for those that take random numbers."""
    return call(kind, arguments | {"rngs": rngs} if "rngs" in arguments else arguments, path=path)


def bind_options(name: str, options: Mapping[str, Any], *, towers: TowerInfo | None) -> tuple[type, dict[str, Any]]:
    """The class of ``name`` and the arguments that it takes, with checked names and types."""
    target = plugins.load_class(FOLDER, "Augmentation", name, path="augment")
    parameters = inspect.signature(target.__init__).parameters
    injected = {key: value for key, value in {"towers": towers, "rngs": None}.items() if key in parameters}
    return target, bind(target, options, path=f"augment.{name}", injected=injected)


def _with_barrier(features: Features) -> Features:
    """The same features behind a barrier, so that the compiler fuses nothing across it."""
    image, text = jax.tree.map(jax.lax.optimization_barrier, (features.image, features.text))
    return dataclasses.replace(features, image=image, text=text)


def _geometry_metrics(view: View, rows: Features, clean: Features) -> Metrics:
    """Cosines to the clean rows (where there are as many), uniformity, and modality gap of a view."""
    metrics = {}
    for side, changed, new, old in (
        ("image", view.image, rows.image, clean.image),
        ("text", view.text, rows.text, clean.text),
    ):
        if changed is not None:
            if new.shape == old.shape:
                metrics[f"{view.name}_{side}_cosine"] = jnp.mean(jnp.sum(new * old, axis=-1))
            metrics[f"{view.name}_uniformity_{side}"] = uniformity(new[:UNIFORMITY_ROWS])
    return metrics | {f"{view.name}_modality_gap": modality_gap(rows.image, rows.text)}
