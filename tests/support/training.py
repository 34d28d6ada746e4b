"""An experiment's program and batches, and a few of its steps."""

import jax

from mmjax.train.data import stream_batches
from mmjax.train.setup import setup


def assembled(experiment, devices=None):
    resolved = setup(experiment, devices=devices)
    return resolved.program, stream_batches(experiment.data, resolved.make_batches())


def trained(experiment, *, steps, devices=1, optimised=False):
    """The state and metrics after each step, on the host; ``optimised`` compiles as training does, tests do not."""
    program, batches = assembled(experiment, jax.devices()[:devices])
    state, compiled, history = program.initialize(), None, []
    for _ in range(steps):
        arrays = next(batches)
        if compiled is None:
            options = {"xla_backend_optimization_level": "3"} if optimised else None
            compiled = program.trace(program.batch_shape(arrays)).lower().compile(options)
        state, metrics = compiled(state, program.place(arrays))
        history.append((jax.device_get(state), {k: float(v) for k, v in metrics.items()}))
    batches.close()
    return history
