"""Float64 numpy form of both towers, one example at a time, from a flat dictionary of parameters.

Written from the equations of the papers that the towers name, with loops over heads, patches and tokens in place of
the towers' batched products, so that the two share no way of going wrong. Names of parameters are paths:
``visual.blocks.attn.query.kernel``; a parameter of the blocks has the layers as its first axis.
"""

import dataclasses
import math

import numpy as np

ERF = np.vectorize(math.erf, otypes=[float])


class Params(dict):
    """Parameters by path, with a view of those under one prefix."""

    def under(self, prefix):
        start = f"{prefix}."
        return Params({k[len(start) :]: v for k, v in self.items() if k.startswith(start)})

    def layer(self, index):
        return Params({k: v[index] for k, v in self.items()})


def activation(x, kind):
    if kind == "gelu":
        return x * (1 + ERF(x / math.sqrt(2))) / 2
    if kind == "gelu_tanh":
        return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    assert kind == "quick_gelu"
    return x / (1 + np.exp(-1.702 * x))


def layer_norm(x, p, eps):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt(x.var(-1, keepdims=True) + eps) * p["scale"] + p["bias"]


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def batch_norm(x, p):
    return (x - p["mean"]) / np.sqrt(p["var"] + 1e-5) * p["scale"] + p["bias"]


def turn(x, angles):
    """Each pair of numbers as a complex one, turned by its angle: x [N,d], angles [N,d/2]."""
    turned = (x[:, ::2] + 1j * x[:, 1::2]) * np.exp(1j * angles)
    return np.stack([turned.real, turned.imag], -1).reshape(x.shape)


def attention(queries, keys, p, *, config, seen=None, angles=None):
    """queries [Q,D], keys [K,D], seen bool[Q,K], angles [Q,d/2] where queries are the keys -> [Q,D]."""
    heads = []
    for head in range(p["query.kernel"].shape[1]):
        q, k, v = (
            x @ p[f"{name}.kernel"][:, head] + (p[f"{name}.bias"][head] if f"{name}.bias" in p else 0)
            for name, x in (("query", queries), ("key", keys), ("value", keys))
        )
        if config.qk_norm:
            q, k = layer_norm(q, p.under("ln_q"), config.ln_eps), layer_norm(k, p.under("ln_k"), config.ln_eps)
        if angles is not None:
            q, k = turn(q, angles), turn(k, angles)
        out = np.zeros((len(queries), v.shape[1]))
        for i in range(len(queries)):
            use = np.arange(len(keys)) if seen is None else np.flatnonzero(seen[i])
            if len(use):
                out[i] = softmax(k[use] @ q[i] / math.sqrt(q.shape[1])) @ v[use]
        heads.append(out)
    joined = np.concatenate(heads, axis=1)
    if "ln_inner.scale" in p:
        joined = layer_norm(joined, p.under("ln_inner"), config.ln_eps)
    if "out.kernel" not in p:
        return joined
    return joined @ p["out.kernel"].reshape(joined.shape[1], -1) + p["out.bias"]


def mlp(x, p, *, config):
    hidden = x @ p["fc1.kernel"] + p["fc1.bias"]
    if "gate.kernel" in p:
        gate = x @ p["gate.kernel"] + p["gate.bias"]
        hidden = gate / (1 + np.exp(-gate)) * hidden
    else:
        hidden = activation(hidden, config.activation)
    if "ln.scale" in p:
        hidden = layer_norm(hidden, p.under("ln"), config.ln_eps)
    return hidden @ p["fc2.kernel"] + p["fc2.bias"]


def blocks(x, p, *, config, seen=None, angles=None):
    for i in range(config.layers):
        layer = p.layer(i)

        def attend(h, layer=layer):
            return attention(h, h, layer.under("attn"), config=config, seen=seen, angles=angles)

        for number, part in ((1, attend), (2, lambda h, layer=layer: mlp(h, layer.under("mlp"), config=config))):

            def norm(h, layer=layer, number=number):
                return layer_norm(h, layer.under(f"ln_{number}"), config.ln_eps)

            scale = layer.get(f"ls_{number}.gamma", 1.0)
            if config.block_norm == "pre":
                x = x + scale * part(norm(x))
            elif config.block_norm == "post":
                x = norm(x + scale * part(x))
            else:
                x = x + scale * norm(part(x))
    return x


def project(x, p, *, config):
    if config.proj_type == "none":
        return x
    if config.proj_type == "mlp":
        x = activation(x @ p["proj_hidden.kernel"], "gelu")
    y = x @ p["proj.kernel"]
    return y + p["proj.bias"] if config.proj_bias else y


def patches(image, kernel, stride, pad=0):
    """Convolution by its definition: image [H,W,C], kernel [k,k,C,D] -> [H',W',D]."""
    size = kernel.shape[0]
    image = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    high, wide = ((side - size) // stride + 1 for side in image.shape[:2])
    out = np.empty((high, wide, kernel.shape[-1]))
    for r in range(high):
        for c in range(wide):
            window = image[r * stride : r * stride + size, c * stride : c * stride + size]
            out[r, c] = np.tensordot(window, kernel, 3)
    return out


def stem(image, p, *, config):
    """[H,W,C] -> [grid², width], rows of the grid one after the other."""
    if config.stem == "resnet":
        return resnet(image, p, config=config)
    if config.stem == "patch":
        x = patches(image, p["kernel"], config.patch_size) + (p["bias"] if config.patch_bias else 0)
        return x.reshape(-1, config.width)
    x = image
    for i in range(len(config.stem_widths)):
        q = p.under(f"conv_{i}")
        if i:
            x = activation(x, config.activation)
        if config.stem == "conv":
            x = patches(x, q["kernel"], 2, pad=1)
        else:
            x = patches(x, q["kernel"], q["kernel"].shape[0])
        x = x + q.get("bias", 0)
        norm = p.under(f"norm_{i}")
        if norm:
            x = batch_norm(x, norm) if "var" in norm else layer_norm(x, norm, config.ln_eps)
    return x.reshape(-1, config.width)


def halves(x):
    """Means of 2×2 pixels."""
    return (x[::2, ::2] + x[1::2, ::2] + x[::2, 1::2] + x[1::2, 1::2]) / 4


def resnet(x, p, *, config):
    for i in range(3):
        x = patches(x, p[f"conv_{i}.kernel"], 1 if i else 2, pad=1)
        x = np.maximum(batch_norm(x, p.under(f"norm_{i}")), 0)
    x = halves(x)
    for stage, layers in enumerate(config.stem_layers):
        for layer in range(layers):
            q = p.under(f"stage_{stage}_{layer}")
            halve = halves if stage and not layer else lambda x: x
            y = np.maximum(batch_norm(patches(x, q["conv_0.kernel"], 1), q.under("norm_0")), 0)
            y = np.maximum(batch_norm(patches(y, q["conv_1.kernel"], 1, pad=1), q.under("norm_1")), 0)
            y = batch_norm(patches(halve(y), q["conv_2.kernel"], 1), q.under("norm_2"))
            if "shortcut.kernel" in q:
                x = batch_norm(patches(halve(x), q["shortcut.kernel"], 1), q.under("shortcut_norm"))
            x = np.maximum(x + y, 0)
    return x.reshape(-1, config.width)


def sin_cos(grid, width):
    """Positions [grid², width]: a quarter each of sin and cos of the column, sin and cos of the row."""
    quarter = width // 4
    table = np.zeros((grid * grid, width))
    for r in range(grid):
        for c in range(grid):
            for k in range(quarter):
                rate = 10000 ** (-k / quarter)
                waves = math.sin(c * rate), math.cos(c * rate), math.sin(r * rate), math.cos(r * rate)
                table[r * grid + c, k::quarter] = waves
    return table


def positions(p, *, config):
    """The class token's position and those of the patches."""
    if config.pos_embed_type == "sin_cos_2d":
        return np.zeros(config.width), sin_cos(config.grid, config.width)
    table = p["pos_embed"]
    return (table[0], table[1:]) if config.class_token and config.class_position else (0, table)


def rotary(config):
    """The angle of each token and pair; a quarter of a head's numbers is turned by each frequency of a coordinate."""
    quarter, scale = config.head_width // 4, (config.rope_grid or config.grid) / config.grid
    rows = [np.zeros(2 * quarter)] * (config.class_token + config.registers)
    for r in range(config.grid):
        for c in range(config.grid):
            pair = (r, c) if config.rope == "row_column" else (c, r)
            rows.append(
                [(x + config.rope_offset) * scale * 10000 ** (-k / quarter) for x in pair for k in range(quarter)]
            )
    return np.array(rows)


def pixels(image, channels, *, config):
    """u8 [H,W,channels] as the stem sees it."""
    mean, sd = np.array(config.image_mean), np.array(config.image_std)
    x = image.astype(np.float64) / 255
    if channels == 1 and config.fusion != "channels":
        return (np.repeat(x, 3, axis=-1) - mean) / sd
    return (x - mean) / sd if channels == 3 else (x - mean.mean()) / sd.mean()


def vision_tokens(images, p, *, config):
    """What enters the first block, for one example {modality: [H,W,C]} that makes one row."""
    present = [m for m in config.modalities if m in images]
    of_class, of_patches = positions(p, config=config)
    channels = dict(zip(config.modalities, config.modality_channels, strict=True))
    seen = [pixels(images[m], channels[m], config=config) for m in present]
    if config.fusion == "channels":
        seen = [np.concatenate(seen, -1)]
    raw = [stem(x, p.under("patch_embed"), config=config) for x in seen]
    parts = [x + of_patches for x in raw]
    if config.fusion != "channels" and len(config.modalities) > 1:
        parts = [x + p["modality_embed"][config.modalities.index(m)] for x, m in zip(parts, present, strict=True)]
    if config.registers:
        parts = [p["registers"], *parts]
    if config.class_token:
        cls = np.concatenate(raw).mean(0) if config.pool_type == "attn" else p["cls"]
        parts = [(cls + of_class)[None], *parts]
    x = np.concatenate(parts)
    return x if config.no_ln_pre else layer_norm(x, p.under("ln_pre"), config.ln_eps)


def pooler(x, p, *, config):
    """Learned queries attend to x, in ``attn_pooler_heads`` heads."""
    queries = layer_norm(p["probe"], p.under("ln_q"), config.ln_eps)
    plain = dataclasses.replace(config, qk_norm=False)
    return attention(queries, layer_norm(x, p.under("ln_k"), config.ln_eps), p.under("attn"), config=plain)


def vision_sequence(x, p, *, config):
    """What a decoder sees of the last block's output."""
    if config.attentional_pool == "none":
        return layer_norm(x, p.under("ln_post"), config.ln_eps)
    sequence = layer_norm(pooler(x, p.under("attn_pooler"), config=config), p.under("ln_post"), config.ln_eps)
    return sequence[1:] if config.attentional_pool == "shared" and config.pool_type == "tok" else sequence


def vision_pool(x, p, *, config):
    def norm(x):
        return layer_norm(x, p.under("ln_post"), config.ln_eps)

    if config.attentional_pool == "shared":
        sequence = norm(pooler(x, p.under("attn_pooler"), config=config))
        return sequence[0] if config.pool_type == "tok" else sequence.mean(0)
    if config.attentional_pool in ("cascade", "parallel"):
        x = vision_sequence(x, p, config=config) if config.attentional_pool == "cascade" else x
        return norm(pooler(x, p.under("attn_pooler_contrastive"), config=config))[0]
    if config.pool_type == "attn":
        return attention(x[:1], x, p.under("attn_pool"), config=config)[0]
    if config.pool_type == "map":
        head = p.under("map_head")
        pooled = attention(head["probe"][None], norm(x), head.under("attn"), config=config)
        hidden = layer_norm(pooled, head.under("ln"), config.ln_eps)
        return (pooled + mlp(hidden, head.under("mlp"), config=config))[0]
    use = slice(0, 1) if config.pool_type == "tok" else slice(config.class_token + config.registers, None)
    return norm(x[use].mean(0)) if config.final_ln_after_pool else norm(x[use]).mean(0)


def encode_image(params, images, *, config, end=None):
    """{modality: u8[N,H,W,C]} -> float64[N',E], the rows of one modality before those of the next, or fused.

    With ``end=vision_sequence`` the sequences [N',T,D].
    """
    p, tower = Params(params).under("visual"), config.vision_cfg
    n = len(next(iter(images.values())))
    rows = [{m: x[i] for m, x in images.items()} for i in range(n)]
    given = [m for m in tower.modalities if m in images]
    if tower.fusion in ("views", "gated"):
        rows = [{m: row[m]} for m in given for row in rows]
    out = []
    for row in rows:
        angles = None if tower.rope == "none" else rotary(tower)
        x = blocks(vision_tokens(row, p, config=tower), p.under("blocks"), config=tower, angles=angles)
        out.append(end(x, p, config=tower) if end else vision_pool(x, p, config=tower))
    if tower.fusion == "gated":
        of = p.under("gates")
        bias = of["modality_bias"][[tower.modalities.index(m) for m in given]]
        out = [gated(np.stack(out[i::n]), of.under("score")["kernel"], bias) for i in range(n)]
    return np.stack(out if end else [project(x, p, config=tower) for x in out])


def gated(features, kernel, bias):
    """One example's features [M,D] of the modalities that it has, weighed by the softmax of their scores."""
    scores = np.exp(features @ kernel + bias)
    return (scores / scores.sum(0) * features).sum(0)


def encode_text(params, ids, *, config, sequence=False):
    """i32[M,L] -> float64[M,E], or with ``sequence`` [M,L,D]."""
    p, tower = Params(params).under("text"), config.text_cfg
    out = []
    for row in ids:
        n = len(row)
        masked = tower.pool_type == "mean" or tower.mask_padding
        counts = row != tower.pad_id if masked else np.ones(n, bool)
        places = list(range(n))
        if tower.positions_from_pad:
            real = [i for i in range(n) if row[i] != tower.pad_id]
            places = [tower.pad_id + 1 + real.index(i) if i in real else tower.pad_id for i in range(n)]
        x = p["token_embed.embedding"][row]
        if tower.embed_cls:
            x, n, places = np.concatenate([x, p["cls_embed"][None]]), n + 1, [*places, n]
            masks = [row != tower.pad_id, [True]]  # open_clip's have the two the wrong way round
            counts = np.concatenate(masks if tower.correct_cls_mask else masks[::-1])
        x = x + p["pos_embed"][places]
        if tower.token_types:
            x = x + p["type_embed"][0]
        if tower.embed_norm:
            x = layer_norm(x, p.under("ln_embed"), tower.ln_eps)
        seen = np.tile(counts, (n, 1))
        if not tower.no_causal_mask:
            seen &= np.tril(np.ones((n, n), bool))
        x = blocks(x, p.under("blocks"), config=tower, seen=seen)
        if sequence:
            last = tower.block_norm != "post" and not tower.final_ln_after_pool
            out.append((layer_norm(x, p.under("ln_final"), tower.ln_eps) if last else x)[: len(row)])
            continue
        if tower.embed_cls:
            use = [n - 1]
        elif tower.pool_type == "mean":
            use = np.flatnonzero(counts)
        else:
            first_eos = next((i for i in range(n) if row[i] == tower.eos_id), 0)
            highest = max(range(n), key=lambda i: (row[i], -i))
            use = [{"argmax": highest, "eos": first_eos, "first": 0, "last": n - 1}[tower.pool_type]]
        if tower.block_norm == "post":
            pooled = x[use].mean(0)
        elif tower.final_ln_after_pool:
            pooled = layer_norm(x[use].mean(0), p.under("ln_final"), tower.ln_eps)
        else:
            pooled = layer_norm(x[use], p.under("ln_final"), tower.ln_eps).mean(0)
        if tower.pool_tanh:
            pooled = np.tanh(pooled @ p["pooler.kernel"] + p["pooler.bias"])
        out.append(project(pooled, p, config=tower))
    return np.stack(out)
