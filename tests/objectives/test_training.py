"""A training run does not notice how its objective holds the matrix, with views of an augmentation among the rows."""

import jax
import numpy as np
import pytest

from support import tiny
from support.training import assembled, trained


@pytest.mark.slow
def test_ring_and_dense_train_alike():
    runs = [
        trained(
            tiny.experiment(
                objective={"name": "contrastive", "impl": impl, "chunk": 3},
                augment=(("embedding_mixgen", {}),),
                mesh={"data": 2, "fsdp": 2, "tensor": 2},
            ),
            steps=2,
            devices=8,
        )
        for impl in ("dense", "ring")
    ]
    for (state, metrics), (wanted_state, wanted) in zip(*reversed(runs), strict=True):
        for key, value in wanted.items():
            np.testing.assert_allclose(metrics[key], value, rtol=2e-5, atol=1e-6, err_msg=key)
        for got, want in zip(jax.tree.leaves(state.params), jax.tree.leaves(wanted_state.params), strict=True):
            np.testing.assert_allclose(got, want, atol=2e-4)


def test_the_objective_knows_the_mesh():
    program, batches = assembled(tiny.experiment(objective={"name": "contrastive", "impl": "ring"}), jax.devices()[:2])
    text = str(program.lower(program.batch_shape(next(batches))).as_text())
    batches.close()
    assert "collective_permute" in text
