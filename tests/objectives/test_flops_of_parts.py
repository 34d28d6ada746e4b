"""FLOPs of a step of the shipped configurations of joint models, beside the sum of their parts by hand.

A product of [m, k] and [k, n] has 2 m k n, forward once and backward twice: by either factor. What has no gradient
counts once (the moving average, rows that negatives are drawn by), and what has one by one factor alone twice.
"""

from pathlib import Path

import pytest

from mmjax.config_file import load_config
from mmjax.experiment import Experiment
from mmjax.planning.abstract_data import batch_shapes, resolve_without_data
from mmjax.train.program import Program

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def attention(queries, width, keys=None, keys_width=None, positions=None):
    """The four maps, the scores and the weighted sum; of self-attention if ``keys`` are left out."""
    keys, keys_width = queries if keys is None else keys, keys_width or width
    rows = queries if positions is None else positions
    return 2 * rows * width * width * 2 + 2 * keys * keys_width * width * 2 + 2 * rows * keys * width * 2


def mlp(rows, width):
    return 2 * rows * width * 4 * width * 2


def block(length, width, *, context=None, context_width=None, positions=None):
    rows = length if positions is None else positions
    cross = attention(rows, width, context, context_width) if context else 0
    return attention(length, width, positions=positions) + cross + mlp(rows, width)


def tower(length, width, layers):
    return layers * block(length, width)


def albef(config, texts, *, queue, embed=256):
    """Of one example: towers, the same of the moving average, contrast with the queue, three pairs, hidden words."""
    width, patches, length, vocab = 768, 256, 25, config.model.text_cfg.vocab_size
    pixels = 2 * patches * 3 * 16 * 16 * width
    image, text = tower(patches + 1, width, 12), tower(length, width, 6)
    heads = 2 * 2 * width * embed
    cross = {"context": patches + 1, "context_width": width}
    whole = 6 * block(length, width, **cross)
    first = 5 * block(length, width, **cross) + block(length, width, positions=1, **cross)
    words = text + whole + 2 * length * width * (width + vocab)
    contrast = 2 * 2 * (texts + queue) * embed  # each image with all texts, and the other way round
    return {
        "towers": 3 * (image + text + heads) + 2 * pixels,
        "momentum": image + text + heads + pixels,
        "contrast": (2 + 1) * contrast + 2 * 2 * texts * embed,  # by rows alone, the soft targets, the draws
        "matching": 3 * 3 * (first + 2 * width * 2),
        "words": (3 + 1) * words,
    }


def tcl(config, texts, *, queue, embed=256):
    """ALBEF, contrast within each side, and the patches' and words' vectors with those of all others."""
    width, patches, length = 768, 256, 25
    pieces = 2 * (patches + length - 1) * width * embed
    pooled = (patches // 16 + length - 1) * embed
    return albef(config, texts, queue=queue, embed=embed) | {
        "within": 2 * 2 * 2 * (texts + queue) * embed,
        "local": pieces + 2 * 2 * texts * pooled,
    }


def vilt(config, texts):
    """Four passes of one transformer over 40 words and 145 patches; towers are embeddings alone."""
    width, patches, length, embed = 768, 144, 40, config.model.embed_dim
    vocab, joint = config.model.text_cfg.vocab_size, length + patches + 1
    whole, first = tower(joint, width, 12), tower(joint, width, 11) + block(joint, width, positions=1)
    return {
        "towers": 2 * 2 * patches * 3 * 32 * 32 * width + 3 * 2 * 2 * width * embed,
        "contrast": 3 * 2 * texts * embed,  # of weight 0; false partners are drawn without similarities
        "matching": 3 * 3 * (first + 2 * width * (width + 2)),
        "words": 3 * (whole + 2 * length * width * (width + vocab)),
    }


def coca(config, texts):
    """Two towers, the pooler, and a decoder with two attentions and two MLPs a layer over the pooler's tokens."""
    width, patches, small, length, embed = 768, 196, 512, 76, 512
    vocab, queries = config.model.text_cfg.vocab_size, config.model.vision_cfg.attn_pooler_queries
    pooler = attention(queries, embed, patches + 1, width)
    written = length - 1
    cross = attention(written, small, queries - 1, embed) + mlp(written, small)
    return {
        "towers": 3 * (tower(patches + 1, width, 12) + tower(length + 1, small, 12))
        + 3 * (pooler + 2 * 2 * small * embed)
        + 2 * 2 * patches * 3 * 16 * 16 * width,
        "contrast": 4 * 2 * texts * embed,  # a tile at a time, and again in the backward pass
        "decoder": 3 * 12 * (block(written, small) + cross),
        "words": 3 * 2 * written * small * vocab,
    }


def cappa(config, texts):
    """The image tower and a decoder; the trace has the frozen text tower and the embeddings, which nothing needs."""
    width, patches, length = 768, 196, 64
    vocab = config.model.text_cfg.vocab_size
    return {
        "towers": 3 * tower(patches, width, 12) + 2 * 2 * patches * 3 * 16 * 16 * width,
        "decoder": 3 * 6 * block(length, width, context=patches, context_width=width),
        "words": 3 * 2 * length * width * vocab,
        "unused": block(length, width) + 2 * 2 * width * width,
    }


PARTS = {
    "albef_b16.py:train=x": (albef, {"queue": 65536}),
    "albef_b16.py:method=tcl,train=x": (tcl, {"queue": 65536}),
    "vilt_b32.py:train=x": (vilt, {}),
    "coca_b16.py:train=x": (coca, {}),
    "cappa_b16.py:train=x": (cappa, {}),
}


def count(name):
    """FLOPs of an example, in the program and of the parts."""
    config = Experiment.from_dict(load_config(f"{CONFIGS}/{name}"))
    config, _ = resolve_without_data(config, shards=8)
    parts, options = PARTS[name]
    program = Program(config)
    flops = program.count_flops(batch_shapes(config))
    return flops / config.batch_size, parts(config, config.batch_size, **options)


@pytest.mark.slow
@pytest.mark.parametrize("name", PARTS)
def test_a_step_is_the_sum_of_its_parts(name):
    program, parts = count(name)
    print(f"\n{name}: {program / 1e9:.2f} G", ", ".join(f"{k} {v / 1e9:.2f}" for k, v in parts.items()))
    assert program == pytest.approx(sum(parts.values()), rel=1e-6)
