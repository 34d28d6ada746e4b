"""The towers in stages: a clean forward that keeps the features at taps, and the rest of the network for views."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mmjax.augment.common.base import Features, Tap, TokenMask, TowerInfo, View
from mmjax.augment.common.sequence_dropout import keep_patches
from mmjax.core.config import ConfigError
from mmjax.core.sphere import unit
from mmjax.core.types import Batch, Provenance
from mmjax.models.block_stack import TowerOutput
from mmjax.models.clip import Clip
from mmjax.models.config import ClipConfig
from mmjax.models.vision.frames import clear_padding
from mmjax.train.micro_batches import WHOLE_BATCH, MicroBatches

DropTokens = Callable[[jax.Array], jax.Array]
"""Shortens token ids: i32[M, L] -> i32[M, L']."""

ChoosePatches = Callable[[int, int], jax.Array | None]
"""Of ``rows`` images with ``patches`` each, those that enter the first block: i32[rows, kept], or None for all."""


def keep_every_patch(rows: int, patches: int) -> jax.Array | None:
    """Drops none."""
    return None


def make_tower_info(config: ClipConfig) -> TowerInfo:
    """What augmentations know of a model; its vocabulary must be resolved."""
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
        pooled_image_width=None if vision.attentional_pool == "none" else config.embed_dim,
        takes_sequences=vision.stem == "frames",
        gated=vision.fusion == "gated",
        class_after_text=text.embed_cls,
    )


def run_clean(
    model: Clip,
    batch: Batch,
    *,
    towers: TowerInfo,
    taps: Iterable[Tap] = (),
    choose_patches: ChoosePatches = keep_every_patch,
    drop_tokens: DropTokens = lambda ids: ids,
    with_sequence: bool = False,
    micro_batches: MicroBatches = WHOLE_BATCH,
) -> dict[Tap, Features]:
    """Runs each tower once and returns the features at ``pooled`` and at those of ``taps`` that lie before it.

    Args:
        taps: where augmentations make views.
        choose_patches, drop_tokens: what the towers see of images and of texts.
        with_sequence: return at ``sequence`` all tokens of the towers' ends, too.
        micro_batches: what the batch is split into; the towers run on one at a time.
    """
    blocks = {tap: towers.blocks(tap) for tap in taps if _holds_sequences(tap)}
    ids = drop_tokens(batch.tokens)
    examples = batch.image_source.ids.shape[0]

    def run_images(model: Clip, rows: tuple[Any, Any]) -> TowerOutput:
        tokens, valid = _embed_patches(model, *rows, towers=towers)
        return model.visual.run(
            tokens, blocks={k for k, _ in blocks.values()}, with_sequence=with_sequence, valid=valid
        )

    def run_texts(model: Clip, ids: jax.Array) -> tuple[TowerOutput, jax.Array | None]:
        tokens = model.text.embed(ids)
        output = model.text.run(tokens, ids, blocks={k for _, k in blocks.values()}, with_sequence=with_sequence)
        return output, tokens if "input" in blocks else None

    # Chosen for the whole batch, so that an image keeps the same patches in whichever micro-batch it is.
    chosen = _choose_patches(model, batch.images, choose_patches, towers=towers)
    images = micro_batches.map(run_images, model, (batch.images, chosen), count=examples)
    texts, embedded_text = micro_batches.map(run_texts, model, ids, count=ids.shape[0])

    fused = model.visual.fuse(images.pooled, present=batch.present)
    make_features = functools.partial(
        Features,
        image_source=_tile_source(batch.image_source, fused.shape[0] // examples),
        text_source=batch.text_source,
        examples=examples,
    )
    token_mask = TokenMask.from_ids(ids, eos_id=towers.eos_id) if blocks or with_sequence else None
    image_mask = model.visual.valid(batch.images)
    features = {
        tap: make_features(
            image=images.block_inputs[image_block],
            text=texts.block_inputs[text_block],
            token_mask=token_mask,
            image_mask=image_mask,
            num_prefix_tokens=towers.num_prefix_tokens,
        )
        for tap, (image_block, text_block) in blocks.items()
    }
    if embedded_text is not None:
        # With a barrier, so that the compiler does not fuse this use of the pixels with the tower's own.
        pixels = {name: jax.lax.optimization_barrier(x).astype(jnp.float32) for name, x in batch.images.items()}
        if image_mask is not None:
            pixels = {name: clear_padding(x) for name, x in pixels.items()}
        features["input"] = make_features(
            image=pixels, text=embedded_text, image_source=batch.image_source, token_mask=token_mask
        )
    if with_sequence:
        assert images.sequence is not None and texts.sequence is not None
        features["sequence"] = make_features(
            image=images.sequence, text=texts.sequence, token_mask=token_mask, image_mask=image_mask
        )
    return features | {"pooled": make_features(image=fused, text=texts.pooled)}


def embed_views(
    views: Sequence[tuple[Tap, View]],
    *,
    models: Mapping[str, Clip],
    taps: Mapping[Tap, Features],
    towers: TowerInfo,
    choose_patches: ChoosePatches = keep_every_patch,
    micro_batches: MicroBatches = WHOLE_BATCH,
) -> list[EmbeddedView]:
    """Runs views through the rest of the network; all that enter at one place run in one call.

    Args:
        views: each with the tap at which it enters.
        models: the models for views whose projection is ``trained`` or ``frozen``.
        taps: the clean features; at ``embedding`` they are not yet of length one. A side that a view leaves out is
            the clean one. With ``sequence`` among them, views that enter before pooling get theirs.
        micro_batches: what the batch is split into; all up to pooling runs on one at a time.

    Returns:
        The views in the order of ``views``.
    """
    clean = taps["embedding"].to_unit()
    with_sequence = "sequence" in taps

    def embed_pixels(tap: Tap, view: View) -> Any:
        if not _holds_sequences(tap):
            return view.image
        if not isinstance(view.image, Mapping):
            return view.image, taps[tap].image_mask if view.image_mask is None else view.image_mask
        model, pixels = models[view.projection], view.image
        chosen = _choose_patches(model, pixels, choose_patches, towers=towers)
        embed = lambda model, rows: _embed_patches(model, *rows, towers=towers)  # noqa: E731
        return micro_batches.map(embed, model, (pixels, chosen), count=next(iter(pixels.values())).shape[0])

    def pool_images(entry: _Entry) -> TowerOutput:
        def run(model: Clip, rows: tuple[jax.Array, jax.Array | None]) -> TowerOutput:
            tokens, valid = rows
            return model.visual.run(tokens, start=entry.block, with_sequence=with_sequence, valid=valid)

        return micro_batches.map(run, models[entry.projection], entry.rows, count=entry.rows[0].shape[0])

    def pool_texts(entry: _Entry) -> TowerOutput:
        run = lambda model, rows: model.text.run(*rows, start=entry.block, with_sequence=with_sequence)  # noqa: E731
        return micro_batches.map(run, models[entry.projection], entry.rows, count=entry.rows[0].shape[0])

    image_entries = {
        i: _Entry(embed_pixels(tap, view), tap, view.projection, towers.blocks(tap)[0])
        for i, (tap, view) in enumerate(views)
        if view.image is not None
    }
    text_entries = {
        i: _Entry(_with_ids(tap, view, taps[tap]), tap, view.projection, towers.blocks(tap)[1])
        for i, (tap, view) in enumerate(views)
        if view.text is not None
    }
    images, image_tokens = _run_to_embeddings(
        image_entries, pool_images, lambda e: models[e.projection].visual.project(e.rows)
    )
    texts, text_tokens = _run_to_embeddings(
        text_entries, pool_texts, lambda e: models[e.projection].text.project(e.rows)
    )

    def embedded(i: int, tap: Tap, view: View) -> EmbeddedView:
        rows = _make_embeddings(view, image=images.get(i), text=texts.get(i), at_tap=taps[tap], clean=clean)
        if not (with_sequence and _holds_sequences(tap)):
            return EmbeddedView(rows)
        whole = taps["sequence"]
        image, text = image_tokens.get(i, whole.image), text_tokens.get(i, whole.text)
        token_mask, image_mask = whole.token_mask, whole.image_mask
        if i in image_entries:
            image_mask = image_entries[i].rows[1]
        if i in text_entries:
            token_mask = TokenMask.from_ids(text_entries[i].rows[1], eos_id=towers.eos_id)
        return EmbeddedView(
            rows, dataclasses.replace(rows, image=image, text=text, token_mask=token_mask, image_mask=image_mask)
        )

    return [embedded(i, tap, view) for i, (tap, view) in enumerate(views)]


class EmbeddedView(NamedTuple):
    """A view at the end of the network."""

    embeddings: Features  # of length one
    sequence: Features | None = None  # all tokens of the towers' ends, if asked for and if the view has them


@dataclasses.dataclass(frozen=True)
class _Entry:
    """One side of a view, where it enters the rest of the network."""

    rows: Any  # an array; before pooling (tokens, ids) of texts and (tokens, mask or None) of images
    tap: Tap
    projection: str  # which of the models
    block: int = 0  # before pooling, the first block to run

    @property
    def key(self) -> Hashable:
        """Equal for all sides that can run in one call."""
        return self.projection, self.block, tuple(x.shape for x in jax.tree.leaves(self.rows))


def _run_to_embeddings(
    entries: Mapping[int, _Entry],
    pool: Callable[[_Entry], TowerOutput],
    project: Callable[[_Entry], jax.Array],
) -> tuple[dict[int, jax.Array], dict[int, Any]]:
    """One side's embeddings by view, not yet of length one: blocks and pooling, then the projection, as needed.

    And the sequences of those that went through blocks.
    """
    in_blocks = {i: entry for i, entry in entries.items() if _holds_sequences(entry.tap)}
    outputs: dict[int, TowerOutput] = _run_grouped(in_blocks, pool)
    pooled = {i: output.pooled for i, output in outputs.items()}
    pooled |= {i: e.rows for i, e in entries.items() if e.tap == "pooled"}
    after_pooling = {i: _Entry(rows, "pooled", entries[i].projection) for i, rows in pooled.items()}
    embeddings = _run_grouped(after_pooling, project) | {i: e.rows for i, e in entries.items() if e.tap == "embedding"}
    return embeddings, {i: output.sequence for i, output in outputs.items()}


def _run_grouped(entries: Mapping[int, _Entry], run: Callable[[_Entry], Any]) -> dict[int, Any]:
    """``run`` of each entry, by view, in one call for all entries of one key."""
    groups: dict[Hashable, list[int]] = {}
    for i, entry in entries.items():
        groups.setdefault(entry.key, []).append(i)
    results: dict[int, Any] = {}
    for members in groups.values():
        # Stacked on a new second axis: concatenated along the first, rows would move between devices.
        stacked = jax.tree.map(lambda *rows: jnp.stack(rows, axis=1), *(entries[i].rows for i in members))
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), stacked)
        result = run(dataclasses.replace(entries[members[0]], rows=flat))
        result = jax.tree.map(lambda x: x.reshape(-1, len(members), *x.shape[1:]), result)  # noqa: B023
        results |= {i: jax.tree.map(lambda x: x[:, place], result) for place, i in enumerate(members)}  # noqa: B023
    return {i: results[i] for i in entries}


def _make_embeddings(
    view: View, *, image: jax.Array | None, text: jax.Array | None, at_tap: Features, clean: Features
) -> Features:
    """A view's unit embeddings and their sources; a side that is None is the clean one."""
    image_source = clean.image_source
    if image is not None:
        image_source = view.image_source or at_tap.image_source
        image_source = _tile_source(image_source, image.shape[0] // image_source.ids.shape[0])
    return Features(
        image=clean.image if image is None else unit(image),
        text=clean.text if text is None else unit(text),
        image_source=image_source,
        text_source=view.text_source or clean.text_source,
        examples=clean.examples,
    )


def _holds_sequences(tap: Tap) -> bool:
    return tap.startswith(("input", "tokens"))


def _with_ids(tap: Tap, view: View, at_tap: Features) -> Any:
    """A view's texts; where they are sequences, with their token ids, which are the clean ones if it has none."""
    if not _holds_sequences(tap):
        return view.text
    if view.ids is not None:
        return view.text, jnp.asarray(view.ids)
    assert view.text is not None and at_tap.token_mask is not None
    if view.text.shape[:2] != at_tap.token_mask.ids.shape:
        raise ValueError(f"view {view.name!r}: texts of shape {view.text.shape} need their ids, [M', L]")
    return view.text, at_tap.token_mask.ids


def _choose_patches(
    model: Clip, images: Mapping[str, jax.Array], choose: ChoosePatches, *, towers: TowerInfo
) -> jax.Array | None:
    """The patches of these images that enter the first block."""
    tokens = jax.eval_shape(model.visual.embed, images)
    chosen = choose(tokens.shape[0], tokens.shape[1] - towers.num_prefix_tokens)
    if chosen is not None and model.visual.config.stem == "frames":
        raise ConfigError(
            "augment.patch_dropout: could leave a short sequence without a frame; leave it out with "
            "model.vision_cfg.stem='frames'"
        )
    return chosen


def _embed_patches(
    model: Clip, images: Mapping[str, jax.Array], chosen: jax.Array | None, *, towers: TowerInfo
) -> tuple[jax.Array, jax.Array | None]:
    """What enters the image tower's first block: [N, T', D] of the chosen patches, and of sequences their mask."""
    tokens = keep_patches(model.visual.embed(images), chosen, num_prefix_tokens=towers.num_prefix_tokens)
    return tokens, model.visual.valid(images)


def _tile_source(source: Provenance, times: int) -> Provenance:
    """Repeats the sources for further modalities, whose rows follow one another in whole batches."""
    if times == 1:
        return source
    return jax.tree.map(lambda x: jnp.tile(x, (times, *(1,) * (x.ndim - 1))), source)
