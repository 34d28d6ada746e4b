"""The model and the embeddings that a command searches, checked to belong together."""

from __future__ import annotations

from typing import cast

import mmjax
from mmjax.core.config import ConfigError
from mmjax.inference.embedding_store import open_store
from mmjax.inference.model import Model, Precision
from mmjax.inference.search import Searcher


def open_searched(spec: str | None, folder: str | None) -> tuple[Model, str, Searcher | None]:
    """Loads ``--model``, or the model that made the embeddings in ``--in``.

    Returns:
        The model, what names it, and what searches the embeddings; None without ``--in``.

    Raises:
        ConfigError: If the embeddings are those of another model.
    """
    if folder is None:
        if spec is None:
            raise ConfigError("no model: give --model=SPEC, or --in=DIR of mmjax embed, which names its model")
        return mmjax.load(spec), spec, None
    store = open_store(folder)
    plan = store.plan
    try:
        model = mmjax.load(spec or plan.model, precision=cast(Precision, plan.precision))
    except ConfigError as error:
        if spec is None:
            raise ConfigError(f"--in={folder}: its model is not there ({error}); name it with --model") from None
        raise
    named = f"--model={spec}" if spec else f"--in={folder}: its model {plan.model}"
    if model.config.embed_dim != plan.dimension:
        raise ConfigError(
            f"{named}: embeds in {model.config.embed_dim} dimensions, --in={folder} has {plan.dimension}; "
            f"it was made with {plan.model}"
        )
    if model.fingerprint() != plan.weights:
        raise ConfigError(
            f"{named}: has other weights than those that made --in={folder}; "
            + (f"use {plan.model}, or embed again" if spec else "embed again, or name the weights with --model")
        )
    return model, spec or plan.model, Searcher(store)
