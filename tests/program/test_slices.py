"""With the compiler of TPUs itself: what grows with the number of chips and what does not. Needs libtpu."""

import json
import subprocess
import sys
from importlib.util import find_spec

import pytest

from support import command

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("libtpu") is None, reason="needs libtpu: pip install 'mmjax[aot]'"),
]

COUNTS = [2, 16, 256]

RING = """
import json, math, sys
import jax
jax.config.update("jax_enable_compilation_cache", False)
import jax.numpy as jnp
from mmjax.core import plugins
from mmjax.program import topologies
from mmjax.parallel.mesh import MeshConfig, batch_sharding, make_mesh
from mmjax.core.types import Provenance
from support.objective_problems import computing

for name in ("v5e:1x2", "v5e:4x4", "v5e:16x16"):
    devices = topologies.make_topology(name).devices
    rows = batch_sharding(make_mesh(MeshConfig(), devices=devices))
    whole = jax.NamedSharding(rows.mesh, jax.P())
    n = 1024 * len(devices)
    z = jax.ShapeDtypeStruct((n, 512), jnp.float32, sharding=rows)
    one = jax.ShapeDtypeStruct((), jnp.float32, sharding=whole)
    source = Provenance(
        ids=jax.ShapeDtypeStruct((n, 2), jnp.int32, sharding=rows),
        weight=jax.ShapeDtypeStruct((n, 2), jnp.float32, sharding=rows),
    )
    for objective in ("contrastive", "sigmoid"):
        made = plugins.make(
            "mmjax.objectives", "Objective", {"name": objective, "impl": "ring"}, path="objective", row_sharding=rows
        )
        compiled = jax.jit(computing(made)).lower((z, z, one, one), (source, source)).compile()
        print(json.dumps([objective, len(devices), compiled.memory_analysis().temp_size_in_bytes]), flush=True)
"""


def said(program, *words):
    """The lines of JSON that ``program`` prints."""
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        env=command.environment(JAX_PLATFORMS="cpu", ALLOW_MULTIPLE_LIBTPU_LOAD="1"),
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_temporaries_of_the_ring_do_not_grow_with_the_chips():
    """1,024 rows a chip of 512 numbers, two sources a row."""
    found = said(RING)
    for objective in ("contrastive", "sigmoid"):
        sizes = {chips: size for name, chips, size in found if name == objective}
        assert list(sizes) == COUNTS
        assert max(sizes.values()) <= 1.02 * sizes[2], sizes
        assert max(sizes.values()) < 2**20  # of 1,024 by 262,144 logits one matrix would be a GiB
