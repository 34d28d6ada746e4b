"""The towers in stages: one clean forward with the features at each tap, and the rest of the network for views."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from mmjax.augment.common.base import Features, Tap, TokenMask, TowerInfo, View
from mmjax.augment.common.sequence_dropout import keep_patches
from mmjax.core.sphere import unit
from mmjax.core.types import Batch, Provenance
from mmjax.models.clip import Clip
from mmjax.models.config import ClipConfig
from mmjax.train.micro_batches import in_parts

Shorten = Callable[[jax.Array], jax.Array]
Choose = Callable[[int, int], jax.Array | None]
"""Which patches of so many images, of so many each, enter the first block: i32[rows, kept], or None for all."""

_Key = TypeVar("_Key", bound=Hashable)


def every_patch(rows: int, patches: int) -> jax.Array | None:
    """Drops none."""
    return None


def described(config: ClipConfig) -> TowerInfo:
    """What augmentations may know of a model that knows its vocabulary."""
    vision, text = config.vision_cfg, config.text_cfg
    if text.vocab_size is None or text.eos_id is None or text.pad_id is None:
        raise ValueError("text_cfg.vocab_size, eos_id and pad_id come from the tokenizer, before anything is built")
    return TowerInfo(
        image_width=vision.width,
        text_width=text.width,
        embed_dim=config.embed_dim,
        image_layers=vision.layers,
        text_layers=text.layers,
        vocab_size=text.vocab_size,
        eos_id=text.eos_id,
        pad_id=text.pad_id,
        num_prefix_tokens=vision.class_token + vision.registers,
    )


def clean(
    model: Clip,
    batch: Batch,
    *,
    towers: TowerInfo,
    taps: Iterable[Tap] = (),
    shorten_images: Choose = every_patch,
    shorten_texts: Shorten = lambda ids: ids,
    parts: int = 1,
) -> dict[Tap, Features]:
    """Features at ``taps`` and at ``pooled``, from one run of each tower, in ``parts`` micro-batches.

    ``shorten_texts`` changes token ids, and ``shorten_images`` chooses what enters the image tower's first block.
    """
    wanted = [tap for tap in taps if tap.startswith(("input", "tokens"))]
    blocks = {tap: towers.blocks(tap) for tap in wanted}
    ids = shorten_texts(batch.tokens)
    examples = batch.image_source.ids.shape[0]

    def of_images(rows: tuple[Any, Any]) -> tuple[jax.Array, dict[int, jax.Array]]:
        return model.visual.pool_with_block_inputs(
            _entering(model, rows, num_prefix_tokens=towers.num_prefix_tokens), blocks={k for k, _ in blocks.values()}
        )

    def of_texts(ids: jax.Array) -> tuple[jax.Array, dict[int, jax.Array], jax.Array | None]:
        text = model.text.embed(ids)
        pooled, found = model.text.pool_with_block_inputs(text, ids, blocks={k for _, k in blocks.values()})
        return pooled, found, text if "input" in blocks else None

    # Drawn for all rows at once: each then keeps the same patches in whichever part it is.
    chosen = _chosen(model, batch.images, shorten_images, towers=towers)
    pooled_image, images = in_parts(of_images, (batch.images, chosen), parts=parts, count=examples)
    pooled_text, texts, embedded_text = in_parts(of_texts, ids, parts=parts, count=ids.shape[0])
    make = functools.partial(
        Features,
        image_source=_repeated(batch.image_source, pooled_image.shape[0] // examples),
        text_source=batch.text_source,
        examples=examples,
    )
    token_mask = TokenMask.from_ids(ids, eos_id=towers.eos_id) if wanted else None
    found = {
        tap: make(image=images[k], text=texts[m], token_mask=token_mask, num_prefix_tokens=towers.num_prefix_tokens)
        for tap, (k, m) in blocks.items()
    }
    if embedded_text is not None:
        # Apart from the tower's own use of them: the two would be fused.
        pixels = {name: jax.lax.optimization_barrier(x).astype(jnp.float32) for name, x in batch.images.items()}
        found["input"] = make(image=pixels, text=embedded_text, image_source=batch.image_source, token_mask=token_mask)
    return found | {"pooled": make(image=pooled_image, text=pooled_text)}


def embedded(
    views: Sequence[tuple[Tap, View]],
    *,
    rest: Mapping[str, Clip],
    taps: Mapping[Tap, Features],
    towers: TowerInfo,
    shorten_images: Choose = every_patch,
    parts: int = 1,
) -> list[Features]:
    """Views as unit embeddings: what is left of the network runs once for all that leave from one place.

    Its blocks, and what is before them, take the rows in ``parts``.

    ``rest`` are the models for views whose projection is ``trained`` or ``frozen``; sides that a view leaves out are
    the clean ones of ``taps``, which at ``embedding`` are not yet of length one.
    """
    known = taps["embedding"]
    clean_image, clean_text = unit(known.image), unit(known.text)
    projections = [view.projection for _, view in views]
    images: list[Any] = [view.image for _, view in views]
    texts: list[Any] = [view.text for _, view in views]
    image_at: list[int | str] = [towers.blocks(tap)[0] if _sequences(tap) else tap for tap, _ in views]
    text_at: list[int | str] = [towers.blocks(tap)[1] if _sequences(tap) else tap for tap, _ in views]
    ids = [view.ids if view.ids is not None else _ids(taps[tap], view) for tap, view in views]

    for i, image in enumerate(images):
        if isinstance(image, Mapping):
            model = rest[projections[i]]
            chosen = _chosen(model, image, shorten_images, towers=towers)
            images[i] = in_parts(
                functools.partial(_entering, model, num_prefix_tokens=towers.num_prefix_tokens),
                (image, chosen),
                parts=parts,
                count=next(iter(image.values())).shape[0],
            )

    def image_pooled(key: tuple[str, Any], tokens: jax.Array, members: list[int]) -> jax.Array:
        pool = functools.partial(rest[key[0]].visual.pool, start=key[1])
        return in_parts(pool, tokens, parts=parts, count=tokens.shape[0])

    def text_pooled(key: tuple[str, Any], tokens: jax.Array, members: list[int]) -> jax.Array:
        own = jnp.stack([jnp.asarray(ids[i]) for i in members], axis=1)
        rows = tokens, own.reshape(-1, own.shape[-1])
        tower = rest[key[0]].text
        return in_parts(lambda rows: tower.pool(*rows, start=key[1]), rows, parts=parts, count=tokens.shape[0])

    def project(side: str, key: tuple[str, str], rows: jax.Array, members: list[int]) -> jax.Array:
        return getattr(rest[key[0]], side).project(rows)

    for side, rows, at, pool in (("visual", images, image_at, image_pooled), ("text", texts, text_at, text_pooled)):
        through = [i for i, row in enumerate(rows) if row is not None and isinstance(at[i], int)]
        _together(rows, {i: (projections[i], at[i]) for i in through}, pool)
        through += [i for i, row in enumerate(rows) if row is not None and at[i] == "pooled"]
        _together(rows, {i: (projections[i], "pooled") for i in through}, functools.partial(project, side))

    found = []
    for (tap, view), image, text in zip(views, images, texts, strict=True):
        there = taps[tap]
        image_source = view.image_source or there.image_source
        if image is not None:
            image_source = _repeated(image_source, image.shape[0] // image_source.ids.shape[0])
        found.append(
            Features(
                image=clean_image if image is None else unit(image),
                text=clean_text if text is None else unit(text),
                image_source=known.image_source if image is None else image_source,
                text_source=view.text_source or known.text_source,
                examples=known.examples,
            )
        )
    return found


def _chosen(model: Clip, images: Mapping[str, jax.Array], choose: Choose, *, towers: TowerInfo) -> jax.Array | None:
    """What ``choose`` says of these images' tokens."""
    tokens = jax.eval_shape(model.visual.embed, images)
    return choose(tokens.shape[0], tokens.shape[1] - towers.num_prefix_tokens)


def _entering(
    model: Clip, rows: tuple[Mapping[str, jax.Array], jax.Array | None], *, num_prefix_tokens: int
) -> jax.Array:
    """What enters the image tower's first block: of pixels and of the patches chosen, [N, T', D]."""
    images, chosen = rows
    return keep_patches(model.visual.embed(images), chosen, num_prefix_tokens=num_prefix_tokens)


def _sequences(tap: Tap) -> bool:
    return tap.startswith(("input", "tokens"))


def _ids(there: Features, view: View) -> jax.Array | None:
    if view.text is None or there.token_mask is None:
        return None
    if view.text.shape[:2] != there.token_mask.ids.shape:
        raise ValueError(f"view {view.name!r}: texts of shape {view.text.shape} need their ids, [M', L]")
    return there.token_mask.ids


def _together(
    rows: list[Any], keys: Mapping[int, _Key], run: Callable[[_Key, jax.Array, list[int]], jax.Array]
) -> None:
    """Puts in place of ``rows[i]`` what ``run`` makes of it, in one call for all of one key and shape."""
    groups: dict[tuple[_Key, tuple[int, ...]], list[int]] = {}
    for i, key in keys.items():
        groups.setdefault((key, rows[i].shape), []).append(i)
    for (key, shape), members in groups.items():
        # A new second axis: joined along the first, rows would have to move between devices.
        stacked = jnp.stack([rows[i] for i in members], axis=1)
        made = run(key, stacked.reshape(-1, *shape[1:]), members)
        made = made.reshape(shape[0], len(members), *made.shape[1:])
        for place, i in enumerate(members):
            rows[i] = made[:, place]


def _repeated(source: Provenance, times: int) -> Provenance:
    """For the views of further modalities, which follow one another in whole batches of rows."""
    if times == 1:
        return source
    return Provenance(ids=jnp.tile(source.ids, (times, 1)), weight=jnp.tile(source.weight, (times, 1)))
