"""What an experiment compiles to: mesh, model, optimizer, and the jitted functions over them."""

from __future__ import annotations

import concurrent.futures
import dataclasses
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmjax.core import plugins, rng
from mmjax.core.config import ConfigError
from mmjax.core.numerics import DTYPES
from mmjax.core.state import AugmentState, Params, TrainState, flatten
from mmjax.core.types import Batch
from mmjax.experiment import Experiment
from mmjax.models.attention.choice import choose_kernel
from mmjax.models.clip import Clip
from mmjax.models.config import ClipConfig
from mmjax.models.lora import add_adapters
from mmjax.models.low_precision import check_matmul_precision
from mmjax.objectives.common.base import Base as Objective
from mmjax.objectives.common.gate import Gate
from mmjax.parallel.host_memory import keep_freed_memory
from mmjax.parallel.host_rows import RowBlock, row_block
from mmjax.parallel.mesh import batch_sharding, check_batch_size, make_mesh, replicated
from mmjax.parallel.sharding import batch_shardings, state_shardings, update_shardings
from mmjax.program.flops import count_flops
from mmjax.runs.start_weights import load_init
from mmjax.train.augmentation import Augmentations
from mmjax.train.forward import make_tower_info
from mmjax.train.micro_batches import MicroBatches, check_micro_batches
from mmjax.train.optim import frozen_blocks, learning_rate, learning_rate_factors, make_optimizer
from mmjax.train.step import make_step


class Program:
    """The training step, the initial state and the encoders of one experiment on one mesh.

    Nothing is allocated or compiled here; ``experiment.model`` must already know its vocabulary.
    """

    def __init__(self, experiment: Experiment, *, devices: Sequence[jax.Device] | None = None):
        self.experiment = experiment
        self.mesh = make_mesh(experiment.mesh, devices=devices)
        self.on_cpu = self.mesh.devices.flat[0].platform == "cpu"
        if self.on_cpu:
            keep_freed_memory()
        check_batch_size(experiment.batch_size, self.mesh, path="batch_size")
        check_batch_size(experiment.eval.batch_size, self.mesh, path="eval.batch_size")
        self.row_sharding = batch_sharding(self.mesh)
        [each] = self.row_sharding.shard_shape((experiment.batch_size,))
        check_micro_batches(experiment.micro_batches, batch_size=experiment.batch_size, rows=each)
        check_device(experiment.model, _nearest(self.mesh.devices.flat))
        self.objective = plugins.make(
            "mmjax.objectives",
            "Objective",
            experiment.objective,
            path="objective",
            row_sharding=self.row_sharding,
            embed_dim=experiment.model.embed_dim,
        )
        check_modules(
            self.objective, experiment.model, name=experiment.objective["name"], augment=dict(experiment.augment)
        )
        self.gate = Gate(experiment.gate, self.objective) if experiment.gate else None
        model, dtype = experiment.model, DTYPES[experiment.precision]
        self.attention = {
            "image": choose_kernel(model, model.vision_cfg, dtype=dtype, row_sharding=self.row_sharding),
            "text": choose_kernel(model, model.text_cfg, dtype=dtype, row_sharding=self.row_sharding),
        }
        self.graph, params = nnx.split(nnx.eval_shape(self._create))
        shapes: Params = nnx.to_pure_dict(params)
        optimizer = experiment.optimizer
        factors = learning_rate_factors(optimizer, shapes, lora=experiment.lora)
        self.trained = jax.tree.map(lambda factor: np.asarray(factor != 0), factors)
        self.tx = make_optimizer(optimizer, factors, steps=experiment.steps)
        self.augmentations = Augmentations.from_config(
            experiment.augment, towers=make_tower_info(experiment.model), seed=experiment.seed
        )
        state = jax.eval_shape(self._initial)
        self.shardings = state_shardings(
            state,
            self.tx,
            self.mesh,
            augment={name: self.augmentations.optimizer(name) for name in state.augment},
            config=experiment.mesh,
        )
        self.micro_batches = MicroBatches(
            number=experiment.micro_batches,
            row_sharding=self.row_sharding,
            param_shardings=self.shardings.params,
            gradient_dtype=dtype,  # as those of a whole batch, which are sent before they are converted
        )
        self.step = make_step(
            self.graph,
            objective=self.objective,
            gate=self.gate,
            tx=self.tx,
            trained=self.trained,
            schedule=learning_rate(optimizer, steps=experiment.steps),
            max_logit_scale=experiment.model.max_logit_scale,
            ema_decay=optimizer.ema_decay,
            augmentations=self.augmentations,
            micro_batches=self.micro_batches,
            update_shardings=self._update_shardings(state) if experiment.mesh.optimizer == "zero" else None,
        )
        self.abstract_state = with_shardings(state, self.shardings)

    @property
    def trained_parameters(self) -> int:
        """How many numbers of the model are trained."""
        sizes = jax.tree.map(
            lambda t, leaf: leaf.size * int(t.sum()) // t.size, self.trained, self.abstract_state.params
        )
        return sum(jax.tree.leaves(sizes))

    @property
    def row_block(self) -> RowBlock:
        """The rows of a batch that this process makes."""
        return row_block(jax.process_index(), self.row_sharding)

    def initialize(self) -> TrainState:
        """The state before the first step, made where it is to live: of random numbers, and of weights of ``init``.

        Its values do not depend on the mesh.
        """
        lowered = jax.jit(self._initial, out_shardings=self.shardings).lower()
        # Random numbers are most of this program; optimizing it on a CPU takes seconds and it runs once.
        state = lowered.compile({"xla_backend_optimization_level": "0"} if self.on_cpu else None)()
        experiment = self.experiment
        loaded = load_init(experiment.init, experiment.model, flatten(self.abstract_state.params))
        if not loaded:
            return state
        tree = jax.tree.structure(state.params)
        params = jax.tree.unflatten(tree, [loaded.get(path, leaf) for path, leaf in flatten(state.params).items()])
        averages = {
            name: None if getattr(state, name) is None else jax.tree.map(jnp.copy, params)
            for name in ("ema_params", "momentum_params")
        }
        return dataclasses.replace(state, params=params, **averages)

    def initialize_augmentations(self) -> dict[str, AugmentState]:
        """Fresh parameters of the augmentations alone."""
        return jax.jit(self.augmentations.init_states, out_shardings=self.shardings.augment)()

    def place(self, arrays: dict[str, Any]) -> Batch:
        """This process's rows of a batch as their part of the global arrays."""
        with jax.transfer_guard_host_to_device("allow"):  # of several processes each sends its rows implicitly
            return jax.tree.map(
                lambda rows: jax.make_array_from_process_local_data(self.row_sharding, rows), Batch.from_arrays(arrays)
            )

    def batch_shape(self, arrays: dict[str, Any]) -> Batch:
        """Shapes and shardings of the global batch that ``arrays`` are this process's rows of."""
        blocks = self.row_block.count

        def shape(rows: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((rows.shape[0] * blocks, *rows.shape[1:]), rows.dtype)

        batch = jax.tree.map(shape, Batch.from_arrays(arrays))
        return with_shardings(batch, batch_shardings(batch, self.mesh))

    def trace(self, batch: Batch) -> jax.stages.Traced:
        """The training step for batches of this shape; ``.lower().compile()`` makes it a program for no other shape."""
        jitted = jax.jit(
            self.step,
            in_shardings=(self.shardings, batch_shardings(batch, self.mesh)),
            out_shardings=(self.shardings, replicated(self.mesh)),
            donate_argnums=0,
        )
        return jitted.trace(self.abstract_state, batch)

    def count_flops(self, batch: Batch) -> float:
        """FLOPs of the model's products in one step on all devices, without what remat and micro-batches repeat."""
        program = Program(self._without_recomputation(), devices=list(self.mesh.devices.flat))
        return count_flops(jax.make_jaxpr(program.step)(program.abstract_state, batch))

    def count_flops_beside(self, batch: Batch, *, traced: jax.stages.Traced) -> Callable[[], float | None]:
        """A function that gives ``count_flops``, or None as long as it is not known; ``traced`` is the step.

        A step that repeats nothing is counted in its own trace, which takes no time. Another trace is made in a
        thread, while the step compiles.
        """
        if self._without_recomputation() == self.experiment:
            flops = count_flops(traced.jaxpr)
            return lambda: flops
        pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="mmjax-flops")
        counted = pool.submit(self.count_flops, batch)
        pool.shutdown(wait=False)
        return lambda: counted.result() if counted.done() else None

    def _without_recomputation(self) -> Experiment:
        """The same step with nothing computed twice, and every product in the open."""
        model = dataclasses.replace(self.experiment.model, remat="none")
        if any(choice.kernel != "xla" for choice in self.attention.values()):
            vision = dataclasses.replace(model.vision_cfg, attention="xla")
            text = dataclasses.replace(model.text_cfg, attention="xla")
            model = dataclasses.replace(model, vision_cfg=vision, text_cfg=text)
        return dataclasses.replace(self.experiment, model=model, micro_batches=1)

    def _update_shardings(self, state: TrainState) -> tuple[Params, dict[str, Params]]:
        """Where the model's trained parameters are updated, and those of the augmentations."""
        model = update_shardings(state.params, self.shardings.params, optimizer=self.experiment.mesh.optimizer)
        lives = self.shardings.params
        return jax.tree.map(lambda t, new, old: new if t.any() else old, self.trained, model, lives), {
            name: update_shardings(
                own.params, self.shardings.augment[name].params, optimizer=self.experiment.mesh.optimizer
            )
            for name, own in state.augment.items()
        }

    def _create(self) -> Clip:
        key = rng.key(self.experiment.seed, stream="init")
        dtype = DTYPES[self.experiment.precision]
        model = Clip(self.experiment.model, rngs=nnx.Rngs(params=key), dtype=dtype, row_sharding=self.row_sharding)
        if (lora := self.experiment.lora).rank:
            seed = self.experiment.seed
            add_adapters(model, rank=lora.rank, scale=lora.scale, targets=lora.targets, seed=seed)
        optimizer, config = self.experiment.optimizer, self.experiment.model
        model.visual.frozen_blocks = frozen_blocks(optimizer.unlocked_image_groups, layers=config.vision_cfg.layers)
        model.text.frozen_blocks = frozen_blocks(optimizer.unlocked_text_groups, layers=config.text_cfg.layers)
        return model

    def _initial(self) -> TrainState:
        params: Params = nnx.to_pure_dict(nnx.state(self._create()))
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=self.tx.init(params),
            ema_params=jax.tree.map(jnp.copy, params) if self.experiment.optimizer.ema_decay else None,
            augment=self.augmentations.init_states(),
            momentum_params=None if self.objective.momentum_decay is None else jax.tree.map(jnp.copy, params),
            objective=self.objective.init_state(),
            gate=self.gate.init_state() if self.gate else {},
        )


def check_modules(objective: Objective, model: ClipConfig, *, name: str, augment: Collection[str] = ()) -> None:
    """Raises unless the model has the modules that its objective runs, and the objective accepts it."""
    for section in objective.modules:
        if getattr(model, section, None) is None:
            raise ConfigError(
                f"objective.name={name!r}: runs model.{section}, and the model has none; set model.{section}, as in "
                f"configs/scenes_{'frames' if section == 'recognizer' else section}.py"
            )
    objective.check_model(model, augment=augment)


def check_device(model: ClipConfig, device: jax.Device) -> None:
    """Raises where ``device`` cannot do what the model asks of it."""
    check_matmul_precision(model.matmul_precision, device)
    if model.remat == "offload":
        kinds = [memory.kind for memory in device.addressable_memories()]
        if kinds and "pinned_host" not in kinds:  # a GPU that is not attached lists none
            raise ConfigError(
                f"model.remat='offload': {device.device_kind} has no memory 'pinned_host' (it has "
                f"{', '.join(kinds)}); use 'dots' or 'full'"
            )


def _nearest(devices: Iterable[jax.Device]) -> jax.Device:
    """One of this process, where it has any."""
    candidates = list(devices)
    return next((d for d in candidates if d.process_index == jax.process_index()), candidates[0])


def with_shardings(shapes: Any, shardings: Any) -> Any:
    """Shapes that say where they live, as ahead-of-time compilation and checkpoint restoring want them."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, shardings
    )
