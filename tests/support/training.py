"""An experiment's program and batches, and a few of its steps."""

import jax

from mmjax.train import assemble
from mmjax.train.program import Program


def assembled(experiment, devices=None):
    source = assemble.open_source(experiment.data, "train")
    tokens = assemble.open_tokenizer(experiment, source, workdir="nowhere")
    experiment = assemble.with_data(experiment, source, tokens)
    return Program(experiment, devices=devices), assemble.batches(experiment, source, tokens)


def trained(experiment, *, steps, devices=1, optimised=False):
    """The state and metrics after each step, on the host; ``optimised`` compiles as training does, tests do not."""
    program, batches = assembled(experiment, jax.devices()[:devices])
    state, compiled, history = program.initialise(), None, []
    for _ in range(steps):
        arrays = next(batches)
        if compiled is None:
            options = {"xla_backend_optimization_level": "3"} if optimised else None
            compiled = program.lower(program.batch_shape(arrays)).compile(options)
        state, metrics = compiled(state, program.place(arrays))
        history.append((jax.device_get(state), {k: float(v) for k, v in metrics.items()}))
    batches.close()
    return history
