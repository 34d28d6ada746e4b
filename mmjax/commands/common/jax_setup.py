"""Settings of JAX that hold for a whole process."""

from __future__ import annotations

import os
from pathlib import Path

import jax

CACHE = "~/.cache/mmjax/compiled"


def keep_compiled_programs() -> None:
    """Turns JAX's compilation cache on: most of a small run's start-up is compilation."""
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(Path(CACHE).expanduser()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def use_cpu() -> None:
    """Leaves accelerators alone: a training run that uses one has no memory left for us."""
    jax.config.update("jax_platforms", "cpu")
