"""One training step as a pure function; it touches no files, logs or meshes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from mmjax.augment.common.base import Features
from mmjax.core import rng
from mmjax.core.sphere import unit
from mmjax.core.state import Params, TrainState
from mmjax.core.types import Batch, Metrics
from mmjax.objectives.common.base import CARRIED, State
from mmjax.objectives.common.base import Base as Objective
from mmjax.objectives.common.gate import Gate
from mmjax.objectives.common.tower_tokens import LabelTable, MomentumFeatures, TowerTokens
from mmjax.train import forward
from mmjax.train.augmentation import Augmentations
from mmjax.train.micro_batches import WHOLE_BATCH, MicroBatches
from mmjax.train.optim import (
    complete_gradients,
    join_frozen,
    keep_frozen,
    split_frozen,
    update_ema,
    updates_done,
)

Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
Loss = Callable[..., tuple[jax.Array, Metrics]]


def make_step(
    graph: nnx.GraphDef,
    *,
    objective: Objective,
    gate: Gate | None = None,
    tx: optax.GradientTransformation,
    trained: Params,
    schedule: optax.Schedule,
    max_logit_scale: float,
    ema_decay: float = 0.0,
    augmentations: Augmentations,
    micro_batches: MicroBatches = WHOLE_BATCH,
    update_shardings: tuple[Params, dict[str, Params]] | None = None,
) -> Step:
    """Makes the training step for the model ``graph``; it is not yet jitted.

    One step: gradients of ``make_loss`` by the model's and the augmentations' parameters, in one backward pass
    (adversaries reverse theirs); an update of the model, of its moving average, of each augmentation, and of what the
    objective carries on. By frozen parameters no gradient is computed, and they keep their bits.

    If the loss, or the norm of the model's or of an augmentation's gradient, is not finite, the update is rejected:
    all of the state but ``step`` stays as it was, the place in the schedule included. ``rejected_update`` is then 1,
    else 0; ``rejected_updates`` counts them since the first step.

    Args:
        graph: the model without its parameters.
        trained: for each parameter, whether it is trained: bool[], or for stacked blocks bool[layers, 1, …].
        tx, schedule: the model's optimizer, and its learning rate for the metrics.
        ema_decay: of the moving average of the parameters, if the state has one.
        micro_batches: what the batch is split into; the towers run on one at a time.
        update_shardings: where the parameters are updated, those of the model and of each augmentation; None: where
            they live.
    """
    loss = make_loss(graph, objective=objective, gate=gate, augmentations=augmentations, micro_batches=micro_batches)

    def loss_of_trained(params: Params, frozen: Params, *arguments: Any, **options: Any) -> tuple[jax.Array, Metrics]:
        return loss(join_frozen(params, frozen), *arguments, **options)

    def compute_gradients(state: TrainState, batch: Batch) -> tuple[Params, dict[str, Params], Metrics]:
        """By the model's parameters and by those of each augmentation."""
        # Another sequence length is another program. Each is a whole branch, so that none pays for the others.
        branches = [
            functools.partial(jax.grad(loss_of_trained, argnums=(0, 2), has_aux=True), drop_rates=drop_rates)
            for drop_rates in augmentations.drop_rate_combinations
        ]
        augment_params = {name: own.params for name, own in state.augment.items()}
        model_params, frozen = split_frozen(state.params, trained)
        carried = state.objective, state.gate, state.momentum_params
        arguments = (model_params, frozen, augment_params, batch, state.step, *carried)
        if len(branches) == 1:
            (grads, augment_grads), metrics = branches[0](*arguments)
        else:
            active = augmentations.active_combination(state.step)
            (grads, augment_grads), metrics = jax.lax.switch(active, branches, *arguments)
        return complete_gradients(grads, state.params, trained), augment_grads, metrics

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        grads, augment_grads, metrics = compute_gradients(state, batch)
        if update_shardings is not None:
            grads, augment_grads = jax.lax.with_sharding_constraint((grads, augment_grads), update_shardings)
            state = _move_parameters(state, *update_shardings)

        with jax.numpy_dtype_promotion("standard"):  # optax raises a float to the power of its integer count
            updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # Radford et al. 2021 clip the scale itself; limiting its use instead would leave it without a gradient.
        params["logit_scale"] = jnp.clip(params["logit_scale"], 0.0, jnp.log(max_logit_scale))
        params = keep_frozen(params, state.params, trained)
        ema_params = state.ema_params
        if ema_params is not None:
            average = update_ema(ema_params, params, step=state.step, decay=ema_decay)
            ema_params = keep_frozen(average, ema_params, trained)
        augment, augment_metrics = augmentations.update(augment_grads, state.augment)

        norm = optax.tree.norm(grads)
        augment_norms = [augment_metrics[f"augment/{name}/gradient_norm"] for name in augment]
        good = functools.reduce(jnp.logical_and, map(jnp.isfinite, [metrics["loss"], norm, *augment_norms]))
        new = TrainState(
            step=state.step,
            params=params,
            opt_state=opt_state,
            ema_params=ema_params,
            augment=augment,
            momentum_params=_next_momentum(state.momentum_params, params, objective.momentum_decay),
            objective=objective.next_state(state.objective, metrics),
            gate=gate.next_state(state.gate, metrics) if gate else {},
        )
        metrics.pop(CARRIED, None)
        new = jax.tree.map(functools.partial(jnp.where, good), new, state)
        new = dataclasses.replace(new, step=state.step + 1)

        metrics |= {
            "gradient_norm": norm,
            "learning_rate": schedule(updates_done(state.opt_state)),
            "logit_scale": jnp.exp(state.params["logit_scale"]),
            "rejected_update": 1 - good.astype(jnp.float32),
            "rejected_updates": new.step - updates_done(new.opt_state),
        }
        return new, metrics | augment_metrics

    return step


def _next_momentum(average: Params | None, params: Params, decay: float | None) -> Params | None:
    if average is None or decay is None:
        return None
    return jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, average, params)


def _move_parameters(state: TrainState, model: Params, augment: dict[str, Params]) -> TrainState:
    """The state with its parameters in these shardings."""
    move = jax.lax.with_sharding_constraint
    own = {n: dataclasses.replace(s, params=move(s.params, augment[n])) for n, s in state.augment.items()}
    return dataclasses.replace(state, params=move(state.params, model), augment=own)


def make_loss(
    graph: nnx.GraphDef,
    *,
    objective: Objective,
    gate: Gate | None = None,
    augmentations: Augmentations,
    micro_batches: MicroBatches = WHOLE_BATCH,
) -> Loss:
    """What a step minimizes: the objective of the clean rows that the gate keeps, and what the augmentations add.

    Returns:
        A function of the model's parameters, the augmentations' parameters, a batch, the traced step, the states of the
        objective and of the gate, and ``drop_rates``, one of ``augmentations.drop_rate_combinations``; it returns the
        loss and the metrics.
    """

    def loss(
        params: Params,
        augment_params: dict[str, Params],
        batch: Batch,
        step: jax.Array,
        objective_state: State | None = None,
        gate_state: State | None = None,
        momentum_params: Params | None = None,
        *,
        drop_rates: tuple[float, ...],
    ) -> tuple[jax.Array, Metrics]:
        compare: Loss = objective
        if objective_state:
            compare = functools.partial(compare, state=objective_state)
        model = merge(graph, params)
        reads_tokens = bool(objective.modules)
        labels = None if batch.labels is None else LabelTable(batch.image_source.ids[:, 0], batch.labels)

        def make_tokens(model: Any, sequence: Features, name: str, *, blended: bool = False) -> TowerTokens:
            assert sequence.token_mask is not None
            return TowerTokens(
                image=sequence.image,
                text=sequence.text,
                ids=sequence.token_mask.ids,
                valid=sequence.token_mask.valid,
                blended=blended,
                examples=sequence.examples,
                model=model,
                map=lambda f, rows: micro_batches.map(f, model, rows, count=sequence.examples),
                key=rng.key(augmentations.seed, stream=f"objective/{name}", step=step),
                image_valid=sequence.image_mask,
                labels=labels,
            )

        batch, changes = augmentations.change_batch(batch, step)
        gate_metrics: Metrics = {}
        if gate is not None:
            assert gate_state is not None
            batch, gate_metrics = gate.apply(batch, gate_state)
        choose_patches, drop_tokens = augmentations.make_sequence_dropout(drop_rates, step)
        run_clean = functools.partial(
            forward.run_clean,
            towers=augmentations.towers,
            choose_patches=choose_patches,
            drop_tokens=drop_tokens,
            with_sequence=reads_tokens or momentum_params is not None,
            micro_batches=micro_batches,
        )
        features = run_clean(model, batch, taps=augmentations.taps)
        pooled = features["pooled"]
        image, text = unit(model.visual.project(pooled.image)), unit(model.text.project(pooled.text))
        sources = {"image_source": pooled.image_source, "text_source": pooled.text_source}
        more_inputs: dict[str, Any] = {}
        if reads_tokens:
            more_inputs["tokens"] = make_tokens(model, features["sequence"], "clean")
        if momentum_params is not None:
            average = merge(graph, jax.lax.stop_gradient(momentum_params))
            seen = run_clean(average, batch)
            more_inputs["momentum"] = MomentumFeatures(
                image=unit(average.visual.project(seen["pooled"].image)),
                text=unit(average.text.project(seen["pooled"].text)),
                tokens=make_tokens(average, seen["sequence"], "clean"),
            )
        value, metrics = compare(
            image,
            text,
            **sources,
            scale=jnp.exp(model.logit_scale[...]),
            bias=None if model.logit_bias is None else model.logit_bias[...],
            **more_inputs,
        )
        if gate is not None:
            gate_metrics |= gate.measure(image, text, **sources)
        metrics = {"loss": value, **metrics, **gate_metrics, **changes, **augmentations.drop_rate_metrics(drop_rates)}
        if not augmentations.modules:
            return value, metrics
        added, augment_metrics = augmentations.loss(
            augment_params,
            features,
            make_model=functools.partial(merge, graph),
            model_params=params,
            objective=compare,
            clean_loss=value,
            step=step,
            make_tokens=make_tokens if reads_tokens else None,
            choose_patches=choose_patches,
            micro_batches=micro_batches,
        )
        return value + added, metrics | augment_metrics

    return loss


def merge(graph: nnx.GraphDef, params: Params) -> Any:
    """The model of plain-dictionary parameters, for use inside a compiled function."""
    return nnx.merge(graph, nnx.State(params))
