"""Traced programs, equation by equation."""

import jax.numpy as jnp


def equations(jaxpr):
    """All equations of a program, those of its inner programs included."""
    for equation in jaxpr.eqns:
        yield equation
        for parameter in equation.params.values():
            for inner in parameter if isinstance(parameter, (tuple, list)) else (parameter,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


def low_precision_sums(jaxpr):
    """The sums that a program takes in bfloat16, as pairs of shapes; those of a single number lose nothing."""
    sums = [equation for equation in equations(jaxpr) if equation.primitive.name == "reduce_sum"]
    pairs = [(equation.invars[0].aval, equation.outvars[0].aval) for equation in sums]
    return [(a.shape, b.shape) for a, b in pairs if b.dtype == jnp.bfloat16 and a.size > b.size]
