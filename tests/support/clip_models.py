"""Very small models, with every parameter random: a part that is left out or never learns then shows."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmjax.models.clip import Clip
from mmjax.models.config import ClipConfig, TextConfig, VisionConfig

PAD, BOS, EOS = 0, 17, 18
VOCAB = 19  # EOS is the highest id, as in CLIP


def config(vision=None, text=None, **overrides):
    """Two layers, two heads of four, 3×3 patches of four pixels, seven tokens."""
    tower = {"width": 8, "layers": 2}
    sight = {"image_size": 12, "patch_size": 4, "head_width": 4} | tower
    language = {"context_length": 7, "vocab_size": VOCAB, "pad_id": PAD, "eos_id": EOS, "heads": 2} | tower
    towers = {"vision_cfg": VisionConfig(**sight | (vision or {})), "text_cfg": TextConfig(**language | (text or {}))}
    return ClipConfig(**{"embed_dim": 6} | overrides, **towers)


def split(config, *, dtype=jnp.float32):
    """The model's structure, and its parameters' shapes by path; nothing is allocated."""
    graph, state = nnx.split(nnx.eval_shape(lambda: Clip(config, rngs=nnx.Rngs(0), dtype=dtype)))
    return graph, nnx.to_pure_dict(state)


def flat(tree):
    return {
        jax.tree_util.keystr(k, simple=True, separator="."): v for k, v in jax.tree_util.tree_leaves_with_path(tree)
    }


def random_params(shapes, *, seed=0):
    """Values for every parameter: scales near one, the rest of a size that keeps the activations near one."""
    rng = np.random.default_rng(seed)

    def draw(path, shape):
        name = path[-1].key
        if name in ("logit_scale", "logit_bias"):
            return jnp.float32(rng.normal())
        centre, spread = (1.0, 0.3) if name in ("scale", "gamma") else (2.0, 0.2) if name == "var" else (0.0, 0.3)
        return jnp.asarray(rng.normal(centre, spread, shape.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def double(params):
    """The same parameters for the reference."""
    return {k: np.asarray(v, np.float64) for k, v in flat(params).items()}


def model(graph, params):
    return nnx.merge(graph, nnx.State(params))


def images(config, n=2, *, seed=0):
    rng = np.random.default_rng(seed)
    tower = config.vision_cfg
    side = tower.image_size
    return {
        m: rng.integers(0, 256, (n, side, side, c), dtype=np.uint8)
        for m, c in zip(tower.modalities, tower.modality_channels, strict=True)
    }


TOKENS = np.array(
    [
        [BOS, 3, 9, 2, 4, 5, EOS],
        [BOS, 8, EOS, PAD, PAD, PAD, PAD],
        [BOS, 1, 6, EOS, 11, EOS, PAD],  # a second end
        [BOS, 16, 16, 7, EOS, PAD, PAD],
    ],
    np.int32,
)
