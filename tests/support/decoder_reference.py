"""Float64 numpy form of the text decoder and of its loss, one text at a time."""

import numpy as np

from support.towers_reference import (
    Params,
    attention,
    encode_image,
    encode_text,
    layer_norm,
    mlp,
    vision_sequence,
)


def logits(params, image, text, ids, *, config, parallel=False):
    """One image [T,D] and one text [L,D], i32[L] -> float64[L', V]: row i is for the i-th word that is predicted."""
    p, decoder = Params(params).under("decoder"), config.decoder
    if "image_proj.kernel" in p:
        image = image @ p["image_proj.kernel"] + p["image_proj.bias"]
    if decoder.inputs == "tower":
        x = text[:-1]
        if "text_proj.kernel" in p:
            x = x @ p["text_proj.kernel"] + p["text_proj.bias"]
    else:
        x = np.concatenate([p["start_embed"][None], p["token_embed.embedding"][ids[:-1]]])
        if parallel:
            x = np.tile(p["mask_embed"], (len(ids), 1))
        x = x + p["pos_embed"][: len(ids)]
    words, prefix = len(x), 0
    if decoder.attend == "prefix":
        prefix, x = len(image), np.concatenate([image, x])
    seen = np.zeros((len(x), len(x)), bool)
    for q in range(len(x)):
        for k in range(len(x)):
            seen[q, k] = k < prefix or k <= q or parallel
    for i in range(decoder.layers):
        layer = p.under("blocks").layer(i)

        def norm(x, name, layer=layer):
            return layer_norm(x, layer.under(name), decoder.ln_eps)

        def scaled(x, name, layer=layer):
            return x * layer.get(f"{name}.gamma", 1.0)

        def attend_image(x, prefix, name, norm=norm, layer=layer):
            context = norm(image, "cross.ln_context") if decoder.cross_mlp else image
            return attention(norm(x, name), context, layer.under(prefix), config=decoder)

        h = norm(x, "own.ln_1")
        x = x + scaled(attention(h, h, layer.under("own.attn"), config=decoder, seen=seen), "own.ls_1")
        if decoder.attend == "cross" and not decoder.cross_mlp:
            x = x + scaled(attend_image(x, "own.cross_attn", "own.ln_cross"), "own.ls_cross")
        x = x + scaled(mlp(norm(x, "own.ln_2"), layer.under("own.mlp"), config=decoder), "own.ls_2")
        if decoder.attend == "cross" and decoder.cross_mlp:
            x = x + scaled(attend_image(x, "cross.attn", "cross.ln_1"), "cross.ls_1")
            x = x + scaled(mlp(norm(x, "cross.ln_2"), layer.under("cross.mlp"), config=decoder), "cross.ls_2")
    assert len(x) == prefix + words
    return layer_norm(x[prefix:], p.under("ln_final"), decoder.ln_eps) @ p["head.kernel"]


def all_logits(params, images, ids, *, config, parallel=None):
    """Of each image and its text, through both towers: float64[B, L', V]."""
    seen = encode_image(params, images, config=config, end=vision_sequence)
    read = encode_text(params, ids, config=config, sequence=True)
    parallel = np.zeros(len(ids), bool) if parallel is None else parallel
    rows = zip(seen, read, ids, parallel, strict=True)
    return np.stack([logits(params, *row, config=config, parallel=flag) for *row, flag in rows])


def cross_entropy(logits, labels, *, smoothing):
    """float64[L', V], i32[L'] -> float64[L']."""
    shifted = logits - logits.max(1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    wanted = np.eye(logits.shape[1])[labels] * (1 - smoothing) + smoothing / logits.shape[1]
    return -(wanted * log_p).sum(1)


def caption_loss(logits, ids, weights, *, eos_id, smoothing, mean):
    """Texts [B, L', V] of ids [B, L], with a weight for each."""
    total = count = 0.0
    for row, words, weight in zip(logits, ids, weights, strict=True):
        ends = np.flatnonzero(words == eos_id)
        end = ends[0] if len(ends) else len(words) - 1
        first = len(words) - len(row)
        each = cross_entropy(row, words[first:], smoothing=smoothing)[: end + 1 - first]
        if mean == "token":
            total, count = total + weight * each.sum(), count + weight * len(each)
        elif len(each):
            total, count = total + weight * each.mean(), count + weight
    return total / count
